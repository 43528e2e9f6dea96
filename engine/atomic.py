"""Writing a file in one step: its name always holds either the whole old content or the whole new one.

Append-only logs and files kept by other libraries (the Hub cache) are not written with this.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

Buffer: TypeAlias = bytes | memoryview

HOST = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"
"""This machine's name, in the characters that names of temporary files may have."""
TEMPORARY = re.compile(r"\.tmp-(?P<host>[\w.-]+)-(?P<pid>\d+)-[0-9a-f]{16}")
"""Names of temporary files, with the machine and process that write them; if it is gone, it left them behind."""


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, and return when bytes and name are on the disk.

    Raises:
        OSError: the disk is full or fails; `path` then holds its old content, or all of `data`.
    """
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[Buffer]) -> None:
    """Write pieces one after the other to `path` as write_atomically does; each is made only when it is written."""
    temporary = _temporary(path.parent)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Unlink the temporary files of processes of this machine that are gone. A missing folder is no error."""
    with suppress(OSError):  # the folder is missing or cannot be listed
        for path in folder.iterdir():
            found = TEMPORARY.fullmatch(path.name)
            if found and found["host"] == HOST and not _alive(int(found["pid"])):
                with suppress(OSError):
                    path.unlink()


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in `parent`; it goes when the `with` ends, with all that was not moved out of it.

    Folders left by killed processes of this machine are removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    for path in list(parent.iterdir()):
        found = TEMPORARY.fullmatch(path.name)
        if found and found["host"] == HOST and not _alive(int(found["pid"])) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    folder = _temporary(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_folder(folder: Path, path: Path) -> None:
    """Rename a folder, whose files are on the disk already, to `path`, replacing an empty folder there.

    Raises:
        OSError: `path` is a file, or a folder that is not empty.
    """
    where = path.parent
    sync_folder(folder)
    folder.rename(path)
    sync_folder(where)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk; at once on file systems that cannot sync folders.

    Raises:
        OSError: the disk fails, or the folder does not exist.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _temporary(folder: Path) -> Path:
    return folder / f".tmp-{HOST}-{os.getpid()}-{os.urandom(8).hex()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def is_writable(folder: Path) -> bool:
    """True if files can be made in a folder or, where it does not exist yet, if the folder can be made."""
    nearest = nearest_existing(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def why_no_file(path: Path) -> str:
    """The reason why no file can be written at a path, "" if one can: for checks before a long computation."""
    try:
        if path.is_dir():
            return "it is a folder"
        if path.exists() and not path.is_file():
            return "it is a device or a pipe"
        return _why_no_names(path.parent)
    except OSError as error:  # the name is too long, or that of a link to itself
        return error.strerror or str(error)


def why_no_folder(path: Path) -> str:
    """The reason why move_folder cannot put a folder at a path, "" if it can."""
    try:
        if path.is_dir():
            return "it is not empty" if any(path.iterdir()) else _why_no_names(path.parent)
        return "it is a file" if path.exists() else _why_no_names(path.parent)
    except OSError as error:
        return error.strerror or str(error)


def _why_no_names(folder: Path) -> str:
    """The reason why nothing can be made in a folder, "" if something can.

    It is tried, because permissions do not show that a disk is read-only.
    """
    if not folder.is_dir():
        return f"there is no folder {folder}"
    temporary = _temporary(folder)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        temporary.unlink()
    except OSError as error:
        return f"in {folder}: {error.strerror or error}"
    return ""


def nearest_existing(folder: Path) -> Path:
    """The folder itself if it exists, else the nearest folder above it that does."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())
