"""Listings of PyTorch files, kept so that opening a file again reads no pickle. Imports neither numpy nor h5py."""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from rankscope.engine.atomic import sweep, write_atomically

from . import regular_files

_FOLDER = ".listings"
"""No model's folder begins with a dot."""


class FileListings:
    """Texts by key, each in a file of `root`/.listings that begins with a digest of the rest.

    Any number of processes may read and write at once. A full disk or a read-only store is not an error: a lost or
    damaged listing is made again.
    """

    def __init__(self, root: Path) -> None:
        self._folder = Path(root) / _FOLDER

    def get(self, key: str) -> str | None:
        """Return the text with this key, or None if it is missing or damaged."""
        try:
            checksum, _, text = regular_files.read_bytes(self._folder / key).partition(b"\n")
        except OSError:
            return None
        return text.decode() if checksum == _checksum(text) else None

    def put(self, key: str, text: str) -> None:
        """Save a text under a key (a plain file name), if possible."""
        data = text.encode()
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)
            write_atomically(self._folder / key, _checksum(data) + b"\n" + data)


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).hexdigest().encode()
