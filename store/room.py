"""Room on a disk: whether an error says that there is none, and how much there is."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or what the user may take of it, is full: it may have room later."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def free(folder: Path) -> int | None:
    """Bytes that this user may still write in a folder; None where the file system does not say. Knows no quotas."""
    with suppress(OSError):
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
    return None


def full_line(folder: Path, size: int) -> str:
    """What to tell a user where so many bytes are to be saved and the disk is full: how much is missing, and where."""
    left = free(folder) or 0
    missing = f"{max(size - left, 1e5) / 1e6:.1f} MB missing" if left < size else "no quota or no inodes left"
    return f"full disk: {missing} in {folder}"
