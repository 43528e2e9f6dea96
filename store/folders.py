"""The folders that spectra are kept in, and their names. Imports neither numpy nor h5py, as it is used at program
start."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from rankscope.engine.spectrum import digest


def default_root() -> Path:
    """The folder that spectra are kept in: $RANKSCOPE_STORE, else one in the user's data folder."""
    chosen = os.environ.get("RANKSCOPE_STORE")
    return Path(chosen).expanduser() if chosen else user_data_path("rankscope")


def model_folder(repo_or_path: str | Path) -> str:
    """The folder name of a Hub id (str), `org--repo`, or of a local checkpoint (Path), `name--<8 hex>`.

    The 8 hex digits are a digest of the real path, so two folders of the same name are two models. Characters that a
    folder name should not have become `_`.
    """
    if isinstance(repo_or_path, Path):
        real = os.path.realpath(repo_or_path)
        return f"{_safe(Path(real).name[:60])}--{digest(os.fsencode(real))[:8]}"
    return _safe(repo_or_path.replace("/", "--"))


def is_model_folder(name: str) -> bool:
    """Whether `model_folder` could return this name; `lost+found` and hidden folders are none."""
    return _safe(name) == name


def _safe(name: str) -> str:
    # A leading dot would hide the folder, or be `..`.
    return re.sub(r"[^\w.-]|^\.|^$", "_", name)
