"""A stored tensor: where its bytes lie, and reading them without being fooled by a changed file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeAlias

from ..errors import InputError, WeightsError, printable
from ..spectrum import Source, digest


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint file: bytes `begin` to `end` of `file`, `shape` in (out, in) order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int
    source: Source


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a file from a changed one without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Remote(Protocol):
    """A file that is not on this machine."""

    def read_into(self, view: memoryview, begin: int) -> None:
        """Bytes `begin` to `begin + len(view)` of the file into `view`; thread-safe.

        Raises:
            WeightsError: they cannot be had.
        """
        ...


Stored: TypeAlias = FileStamp | Remote
"""How the bytes of a file are had: it is here and must still look like this, or it is elsewhere."""


def identify(file: Path, repo: str, commit: str, header: bytes) -> Source:
    """The source of a file: the blob's digest in the Hub cache, else size, time, inode and header."""
    try:
        stamp = FileStamp.of(file.stat())
        blob = file.resolve()
    except OSError as error:
        raise InputError(f"cannot read {printable(str(file))}: {error.strerror}") from None
    in_cache = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
    addressed = in_cache and len(blob.name) in (40, 64) and set(blob.name) <= set("0123456789abcdef")
    identity = (
        blob.name
        if addressed
        else digest(stamp.size, stamp.mtime_ns, stamp.inode, blake2b(header, digest_size=16).digest())
    )
    return Source(repo, commit, file.name, identity, stamp.size, addressed)


def read_bytes(tensor: Tensor, stored: Stored) -> tuple[bytearray, str]:
    """The tensor's bytes and, where the source is not content-addressed, their digest.

    Raises:
        WeightsError: the file changed since it was opened, is truncated, or cannot be read.
    """
    data = bytearray(tensor.end - tensor.begin)
    if isinstance(stored, FileStamp):
        _read_local(tensor, stored, memoryview(data))
    else:
        stored.read_into(memoryview(data), tensor.begin)
    return data, "" if tensor.source.content_addressed else blake2b(data, digest_size=16).hexdigest()


def _read_local(tensor: Tensor, stamp: FileStamp, view: memoryview) -> None:
    try:
        with open(tensor.file, "rb", buffering=0) as handle:
            if FileStamp.of(os.fstat(handle.fileno())) != stamp:
                raise WeightsError(f"{tensor.file.name} changed since it was opened: open the model again")
            done = 0
            while done < len(view):
                count = os.preadv(handle.fileno(), [view[done:]], tensor.begin + done)
                if count == 0:
                    raise WeightsError(f"{tensor.file.name} ends inside tensor {printable(tensor.name)}")
                done += count
    except OSError as error:
        raise WeightsError(f"cannot read {tensor.file.name}: {error.strerror or error}") from None
