"""The findings of `rankscope doctor` on this machine and its store."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rankscope.engine.atomic import is_writable, nearest_existing
from rankscope.engine.checkpoint import hub
from rankscope.engine.checkpoint.open import demo_file
from rankscope.engine.compute import devices
from rankscope.engine.errors import InputError
from rankscope.store.models import stored_models
from rankscope.store.spectra import SpectraStore

_PACKAGES = ("torch", "numpy", "h5py", "safetensors", "gguf", "huggingface_hub", "textual", "plotext")


def findings(root: Path) -> Iterator[tuple[str, str]]:
    """Name and finding, one for each line, in the order in which somebody who helps would ask for them."""
    yield "rankscope", f"{version('rankscope-tui')}, Python {platform.python_version()} at {sys.executable}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield from _devices()
    yield from _store(root)
    cached = hub.cached_models()
    yield "Hub cache", f"{hub.cache_folder()}: {len(cached)} models with safetensors"
    yield "demo", _demo()
    seen = {name: os.environ.get(name, "") for name in ("TERM", "COLORTERM", "TMUX", "LC_ALL", "LANG")}
    yield "terminal", ", ".join(f"{name}={value}" for name, value in seen.items() if value) or "none"


def verify_store(root: Path, say: Callable[[str], None]) -> bool:
    """Read every byte that is stored under a root and report what is damaged or cannot be read. Return whether
    anything is."""
    count = lost = 0
    damaged: list[tuple[Path, str]] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        store = SpectraStore(root, folder.name)
        store.verify()
        damaged += store.damaged
        count, lost = count + len(store.stored()), lost + len(store.lost())
    for path, sentence in damaged:
        say(f"{path}: {sentence}")
    say(f"verified: {count} spectra are as they were written, {lost} are damaged and not computed again")
    return bool(damaged or lost)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _devices() -> Iterator[tuple[str, str]]:
    try:
        found, notes = devices.pick("auto")
    except (ImportError, InputError) as error:
        yield "devices", f"none: {error}"
        return
    yield "devices", ", ".join(f"{d.name} ({d.label})" for d in found)
    yield "threads", f"{devices.thread_count(None)} of {devices.available_cores()} cores"
    for note in notes:
        yield "", note


def _store(root: Path) -> Iterator[tuple[str, str]]:
    models = stored_models(root)
    writable = "writable" if is_writable(root) else "NOT writable"
    free = shutil.disk_usage(nearest_existing(root)).free / 1e9
    size = sum(model.size for model in models) / 1e6
    yield "store", f"{root}: {len(models)} models, {size:.1f} MB; {writable}, {free:.0f} GB free"
    for path, sentence in (damaged for model in models for damaged in model.damaged):
        yield "", f"{path}: {sentence}"


def _demo() -> str:
    try:
        return str(demo_file())
    except InputError as error:
        return str(error)
