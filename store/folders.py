"""Where spectra are kept, and under which folder name. Imports neither numpy nor h5py: a program asks at its start."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from rankscope.engine.spectrum import digest


def default_root() -> Path:
    """Where spectra are kept: $RANKSCOPE_STORE, else the user's data folder."""
    chosen = os.environ.get("RANKSCOPE_STORE")
    return Path(chosen).expanduser() if chosen else user_data_path("rankscope")


def model_folder(repo_or_path: str | Path) -> str:
    """The folder name of a Hub id (str): `org--repo`; of a local checkpoint (Path): `name--<8 hex>`.

    The 8 hex digits are of the real path, so two folders of one name are two models. Characters that
    a folder name should not have become `_`.
    """
    if isinstance(repo_or_path, Path):
        real = os.path.realpath(repo_or_path)
        return f"{_safe(Path(real).name[:60])}--{digest(os.fsencode(real))[:8]}"
    return _safe(repo_or_path.replace("/", "--"))


def is_model_folder(name: str) -> bool:
    """Whether `model_folder` could have given this name: not to `lost+found`, nor to a hidden folder."""
    return _safe(name) == name


def _safe(name: str) -> str:
    # A leading dot would hide the folder, or be `..`.
    return re.sub(r"[^\w.-]|^\.|^$", "_", name)
