"""Opening the files of a store, which others may have put there: regular files of a size that a store writes."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

MOST_BYTES = 2**30
"""No file of a store is larger: the largest that 64 directions of the largest matrices make is half of it."""


def open_regular(path: Path) -> io.FileIO:
    """A regular file, to be read. A pipe is never waited for, and a device never opened.

    A link is followed where the reader made it, or where it leads to a file of whoever made it: not where somebody
    else could have it lead to a file that only the reader may read.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is something else, or larger than any file of a store.
    """
    link = path.lstat()
    if not stat.S_ISREG(path.stat().st_mode):
        raise _refused(path, "it is not a regular file")
    file = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is not a regular file")
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (os.geteuid(), found.st_uid):
            raise _refused(path, "it is a link of another user to a file that is not theirs")
        if found.st_size > MOST_BYTES:
            raise _refused(path, "it is larger than any file of a store")
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        As `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.EINVAL, why, str(path))
