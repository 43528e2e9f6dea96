"""A stored tensor: where its bytes lie, and reading them with a check that the file has not changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from xxhash import xxh3_128

from ..errors import WeightsError, cannot_read, printable
from ..landing import Fill, Landing
from ..spectrum import Source, digest
from ..weights import TORCH_NAMES, Weights, plain, why_no_weights

PEEK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the parts of a quantised matrix become floats.

    `formula` names a function of engine/quantised/dequantisation. `floats` is the torch dtype of its result, wide
    enough to hold every product of a stored number and its scale exactly. `name` is the format as a user
    knows it, `detail` whatever else distinguishes one reading of the same bytes from another: together they
    are the projection's `dequantisation`, and so part of its content key. The numbers are arguments of the
    formula: `block` (rows, columns) share a scale, a packed integer has `bits`.
    """

    name: str
    detail: str
    formula: str
    floats: str
    block: tuple[int, int] = (1, 1)
    bits: int = 0
    nested: int = 0
    offset: float = 0.0

    @property
    def text(self) -> str:
        """The scheme as shown in the tree and in the provenance, e.g. `gptq int4, groups of 128`."""
        return ", ".join(filter(None, (self.name, self.detail)))


class Tensor(NamedTuple):
    """One tensor of a checkpoint file: bytes `begin` to `end` of `file`, `shape` in (out, in) order.

    `strides` (in elements) are those of a view that a PyTorch file may hold; () if rows follow one another.
    A quantised matrix is one Tensor too: name and shape are those of the matrix, file, bytes and dtype those of
    the packed numbers, and `parts` all tensors that `scheme` needs, under the names that its formula gives them. A
    matrix whose parts are in several files has `parts` too, but no `scheme`.
    `problem` says in a sentence why it cannot be read, "" if it can. `content` holds all its bytes if they came with
    the header, b"" if they are on a server and did not, None if they are to be read from the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int
    source: Source
    parts: tuple[tuple[str, Tensor], ...] = ()
    scheme: Scheme | None = None
    problem: str = ""
    strides: tuple[int, ...] = ()
    content: bytes | None = None

    @property
    def stored_bytes(self) -> int:
        """The number of bytes that are read from files for it."""
        if self.parts:
            return sum(part.end - part.begin for _, part in self.parts)
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size, time and inode of a file: they show that it changed, without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp of a file with this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Remote(Protocol):
    """A file that is not on this machine."""

    def reading(self, begin: int, end: int) -> AbstractContextManager[Fill]:
        """A function that fills views with bytes `begin` to `end` of the file, in order.

        Raises:
            WeightsError: when filling, if the bytes cannot be fetched.
        """
        ...


FileAccess: TypeAlias = FileStamp | Remote
"""How to read a file: a stamp that the local file must still have, or access to a file elsewhere."""


def identify(file: Path, repo: str, commit: str, header: bytes) -> Source:
    """The source of a file. Its identity is the blob's digest in the Hub cache, else that of size, time, inode,
    header."""
    try:
        stamp = FileStamp.of(file.stat())
        blob = file.resolve()
    except OSError as error:
        raise cannot_read(file, error) from None
    in_cache = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
    addressed = in_cache and len(blob.name) in (40, 64) and set(blob.name) <= set("0123456789abcdef")
    identity = (
        blob.name
        if addressed
        else digest(stamp.size, stamp.mtime_ns, stamp.inode, blake2b(header, digest_size=16).digest())
    )
    return Source(repo, commit, file.name, identity, stamp.size, addressed)


def peek(tensor: Tensor) -> bytes:
    """The bytes of a small tensor, read while listing: a shape or a description that no header holds.

    Raises:
        ValueError: the file cannot be read, or the tensor is too large to be a description.
    """
    shown = printable(tensor.name)
    if tensor.end - tensor.begin > PEEK_BYTES:
        raise ValueError(f"{shown} is too large for what it should describe")
    if tensor.content:
        return tensor.content
    if tensor.content is not None:  # on a server, where a request for each tensor would take as long as the download
        raise ValueError(f"how it is packed is written in {shown}, which is not here: use --download")
    try:
        with open(tensor.file, "rb") as handle:
            handle.seek(tensor.begin)
            return handle.read(tensor.end - tensor.begin)
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None


def read_bytes(tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights, str]:
    """Read a tensor's bytes, uint8, shape (end - begin,), with their digest.

    The digest is taken for content-addressed files too, as a server may send other bytes than those whose digest it
    states. It is XXH3-128, which makes 10 GB/s and more; hashlib's digests make 0.4 to 1.1 on the host of an H100.

    Raises:
        WeightsError: the file changed since it was opened, is truncated, or cannot be read.
    """
    state = xxh3_128()
    with (
        _reading(tensor, stored) if isinstance(stored, FileStamp) else stored.reading(tensor.begin, tensor.end) as read
    ):

        def fill(view: memoryview, at: int) -> None:
            read(view, at)
            state.update(view)

        data = landing.land(tensor.end - tensor.begin, fill)
    return data, state.hexdigest()


def read_plain(tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights, str]:
    """Read a tensor to where its bytes land (see weights.plain), with the digest of the bytes (see read_bytes).

    Raises:
        WeightsError: the file changed or cannot be read, or the dtype is no floating-point type.
    """
    if tensor.dtype not in TORCH_NAMES:
        raise WeightsError(why_no_weights(tensor.dtype))
    data, seen = read_bytes(tensor, stored, landing)
    return plain(data, tensor.dtype).reshape(tensor.shape), seen


@contextmanager
def _reading(tensor: Tensor, stamp: FileStamp) -> Iterator[Fill]:
    """A function that fills views with a tensor's bytes, from a file that must not have changed."""
    try:
        with open(tensor.file, "rb", buffering=0) as handle:
            if FileStamp.of(os.fstat(handle.fileno())) != stamp:
                raise WeightsError(f"{tensor.file.name} changed since it was opened: open the model again")

            def fill(view: memoryview, at: int) -> None:
                while view:
                    count = os.preadv(handle.fileno(), [view], tensor.begin + at)
                    if count == 0:
                        raise WeightsError(
                            f"{tensor.file.name} ends inside tensor {printable(tensor.name)}: fetch it again"
                        )
                    view, at = view[count:], at + count

            yield fill
    except OSError as error:
        raise WeightsError(f"cannot read {tensor.file.name}: {error.strerror or error}") from None
