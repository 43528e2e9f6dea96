"""Opening files of a store that somebody else may have put there: only regular files of a plausible size."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

MOST_BYTES = 2**30
"""No file of a store is larger: 64 sets of directions of the largest matrices take half of it."""


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file for reading. It never waits for a pipe and never opens a device.

    A link is followed if the reader made it or if it leads to a file of whoever made it, but not if somebody else could
    use it to expose a file that only the reader may read.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is not a regular file, or larger than any file of a store.
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
    """Read the bytes of a regular file.

    Raises:
        As `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.EINVAL, why, str(path))
