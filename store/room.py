"""Free space on a disk: whether an error is due to a full disk, and how much space is left."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk or the user's quota is full: there may be room later."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def free(folder: Path) -> int | None:
    """Bytes that this user may still write in a folder, ignoring quotas; None if the file system does not tell."""
    with suppress(OSError):
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
    return None


def full_line(folder: Path, size: int) -> str:
    """A line for the user when `size` bytes do not fit on a full disk: how much is missing, and where."""
    left = free(folder) or 0
    missing = f"{max(size - left, 1e5) / 1e6:.1f} MB missing" if left < size else "no quota or no inodes left"
    return f"full disk: {missing} in {folder}"
