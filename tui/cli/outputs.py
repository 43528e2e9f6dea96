"""The files and folders that commands write, checked before anything is opened, read or computed."""

from __future__ import annotations

from pathlib import Path

from rankscope.engine.atomic import why_no_file, why_no_folder
from rankscope.engine.errors import InputError, printable


def output_file(text: str, option: str) -> Path:
    """The path of the file that a user names with this option, such as `-o FILE.json`.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(text).expanduser()
    if why := why_no_file(path):
        raise InputError(f"cannot write {printable(text)}: {why}: name another with {option}")
    return path


def output_folder(text: str, option: str) -> Path:
    """The path of the folder that a user names with this option, such as `-o DIR`. The command makes it; it may also be
    an empty folder.

    Raises:
        InputError: it cannot be made, or holds something.
    """
    path = Path(text).expanduser().absolute()
    if why := why_no_folder(path):
        raise InputError(f"cannot make the folder {printable(text)}: {why}: name a new folder with {option}")
    return path
