"""GGUF: headers are read by gguf_header, blocks without a formula of ours are dequantised by the `gguf` package."""

from __future__ import annotations

import math
import mmap
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError, cannot_read, printable
from ..landing import HOST, Landing
from ..spectrum import Source
from ..weights import TORCH_NAMES, Packed, Weights
from . import foreign
from .format import Ends, Listing, Origin, Parsed, Ranged
from .ggml_types import GGML_TYPES, UNREAD
from .gguf_header import (
    MAGIC,
    Described,
    ShortError,
    TensorHeader,
    bad,
    config,
    described,
    entries,
    heads,
    no_model,
    one_line_errors,
    opening,
    texts,
)
from .guarded import open_regular
from .parts import is_part
from .tensor import FileAccess, FileStamp, Tensor, identify, read_bytes, read_plain
from .tokenizer_texts import readable

_TOKENS, _TOKENIZER = "tokenizer.ggml.tokens", "tokenizer.ggml.model"
MAX_HEADER = 100_000_000
"""The most bytes of a header that are fetched; the largest published vocabulary takes 12 MB."""
_MORE = 1_000_000
"""The least number of bytes to fetch if the first ones are not the whole header: most vocabularies take 1 to 8 MB."""


class Gguf(Ranged):
    """See Format; blocks of quantised weights are dequantised when they are read. The header's length is not stated:
    for a file on a server, first bytes are fetched until the header has been read to its end.
    """

    suffixes = (".gguf",)
    stands_alone = True

    def recognises(self, head: bytes) -> bool:
        """See Format."""
        return head.startswith(MAGIC)

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:
        """See Format: an importance matrix, a control vector, a vocabulary, an adapter."""
        data = head()
        if data[:4] != MAGIC:
            return bool(foreign.signature(data[: foreign.HEAD]))
        metadata: dict[str, Any] = {}
        first: list[str] | None = None
        try:
            walk, tensors, number = opening(data, Path(name))
            first = [] if not tensors and not is_part(name) else None
            for key, value in entries(walk, number):
                metadata[key] = value
            first = [found.name for found in heads(walk, min(tensors, 1))]
        except (InputError, struct.error, OverflowError, ValueError):
            pass  # the head ends within the metadata, or opening the file will report the error
        return metadata.get("general.type") == "adapter" or bool(no_model(metadata, first))

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """See Format: shapes in (out, in) order. InputError is also raised if the file is one of several parts."""
        with _mapped(file) as (data, stamp):
            found = described(data, file, stamp.size)
            source = identify(file, origin.repo, origin.commit, data[: found.end])
            tensors, about = _model(found, file, stamp.size, source, origin.parts)
            return Listing(tensors, stamp, about)

    def header(self, ends: Ends, size: int, file: Path) -> bytes:
        """See Ranged."""
        data = ends.first(0)
        while (needed := _needed_bytes(data, size, file)) > len(data):
            data = ends.first(max(needed, min(max(2 * len(data), _MORE), MAX_HEADER)))
        return data[:needed]

    def parse(self, header: bytes, file: Path, size: int, source: Source, origin: Origin) -> Parsed:
        """See Ranged."""
        with one_line_errors(file):
            return _model(described(header, file, size), file, size, source, origin.parts)

    def read_matrix(self, tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights | Packed, str]:
        """See Format; blocks are dequantised on the device where they land, or on the CPU for types without a formula.

        Raises:
            WeightsError: the file changed or cannot be read, or the type has no dequantiser.
        """
        if tensor.dtype in TORCH_NAMES:
            return read_plain(tensor, stored, landing)
        from .gguf_blocks import gguf_matrix, is_on_device  # not needed for the first screen

        blocks, seen = read_bytes(tensor, stored, landing if is_on_device(tensor.dtype) else HOST)
        try:
            return gguf_matrix(blocks, tensor.dtype, tensor.shape), seen
        except NotImplementedError:
            raise WeightsError(f"{tensor.dtype} has no dequantiser: unsupported quantisation") from None

    def dequantisation(self, dtype: str) -> str:
        """See Format."""
        return "" if dtype in TORCH_NAMES else f"gguf {dtype}"

    def quantisation(self, tensors: Iterable[Tensor]) -> str:
        """See Format: the block type."""
        sizes: Counter[str] = Counter()
        for tensor in tensors:
            if len(tensor.shape) > 1 and not tensor.problem:
                sizes[tensor.dtype] += math.prod(tensor.shape)
        quantised = {name: size for name, size in sizes.items() if name not in TORCH_NAMES}
        return max(quantised, key=quantised.__getitem__) if quantised else ""

    def vocabulary(self, file: Path) -> dict[int, str]:
        """See Format; in a split model only the first part has one."""
        with _mapped(file) as (data, stamp):
            begun = opening(data, file, stamp.size)
            found = texts(begun.cursor, begun.entries, _TOKENS, (_TOKENIZER,))
        tokens = found.get(_TOKENS)
        return readable(enumerate(tokens if isinstance(tokens, list) else ()), by_bytes=found.get(_TOKENIZER) == "gpt2")

    def bytes_on(self, device: str, tensor: Tensor) -> int:
        """See Format; blocks take the memory of the float32 numbers too (in a stack: of one matrix). On a GPU they stay
        packed until they are solved."""
        if tensor.dtype in TORCH_NAMES:
            return super().bytes_on(device, tensor)
        from .gguf_blocks import is_on_device  # not needed for the first screen

        if device != "cpu" and is_on_device(tensor.dtype):
            return tensor.stored_bytes
        return tensor.stored_bytes + 4 * math.prod(tensor.shape[-2:])


GGUF = Gguf()


def list_any(file: Path) -> tuple[dict[str, Any], Listing]:
    """The kept metadata and the tensors of a GGUF file, which need not be a model.

    Raises:
        InputError: the file cannot be read, is truncated or malformed.
    """
    with _mapped(file) as (data, stamp):
        found = described(data, file, stamp.size)
        source = identify(file, str(file.resolve()), "", data[: found.end])
        return found.metadata, Listing(_placed_tensors(found, file, stamp.size, source), stamp)


@contextmanager
def _mapped(file: Path) -> Iterator[tuple[mmap.mmap, FileStamp]]:
    """Map a file into memory; errors in reading it become one line."""
    try:
        with open_regular(file) as handle:
            stamp = FileStamp.of(file.stat())
            if not stamp.size:
                raise bad(file, foreign.content(b""))
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data, one_line_errors(file):
                yield data, stamp
    except OSError as error:
        raise cannot_read(file, error) from None


def _needed_bytes(data: bytes, size: int, file: Path) -> int:
    """Where the header of a file of `size` bytes ends, or how many first bytes are needed to read on."""
    with one_line_errors(file):
        try:
            return described(data, file, size).end
        except ShortError as short:
            if short.needed > MAX_HEADER:
                raise bad(file, f"has a header of more than {MAX_HEADER:,} bytes: download it") from None
            return short.needed


def _model(found: Described, file: Path, size: int, source: Source, parts: int) -> Parsed:
    """The model, or one of its `parts`, in a file of `size` bytes.

    Raises:
        InputError: it is no model, or is one of another number of parts, or is truncated.
        ValueError: the header is malformed.
    """
    if what := no_model(found.metadata, [head.name for head in found.heads[:1]]):
        raise bad(file, foreign.NO_MODEL.format(what))
    stated = found.metadata.get("split.count") or parts
    if type(stated) is not int or stated != parts:
        number = printable(str(stated), 20)
        raise bad(file, f"is one of {number} parts, which must be named NAME-00001-of-{number:0>5}.gguf and so on")
    return Parsed(_placed_tensors(found, file, size, source), config(found.metadata))


def _placed_tensors(found: Described, file: Path, size: int, source: Source) -> list[Tensor]:
    """The tensors of a file of `size` bytes."""
    align = found.metadata.get("general.alignment", 32)
    if type(align) is not int or align <= 0:
        raise ValueError(f"the alignment {align} is not a positive number")
    return _tensors(found.heads, -(-found.end // align) * align, size, file, source)


def _tensors(heads: Sequence[TensorHeader], start: int, size: int, file: Path, source: Source) -> list[Tensor]:
    """The tensors of a file of `size` bytes whose data begin at `start`. A tensor of unknown type is taken to end where
    the next begins, and cannot be read.
    """
    offsets = sorted(head.offset for head in heads)
    tensors = []
    for head in heads:
        name, shape, kind, offset = head
        if kind in GGML_TYPES:
            tensors.append(_tensor(head, start, size, file, source))
            continue
        following = bisect_right(offsets, offset)
        end = start + offsets[following] if following < len(offsets) else size
        if start + offset >= size or end > size:
            raise bad(file, f"is truncated: tensor {printable(name)} lies beyond its end; download it again")
        dtype, whose = UNREAD.get(kind, (f"type {kind}", ""))
        problem = f"GGUF type {kind} {f'({dtype}{whose})' if whose else 'is not known'}: unsupported quantisation"
        tensors.append(Tensor(name, dtype, shape, file, start + offset, end, source, problem=problem))
    return tensors


def _tensor(head: TensorHeader, start: int, size: int, file: Path, source: Source) -> Tensor:
    name, shape, kind, offset = head
    dtype, block, bytes_ = GGML_TYPES[kind]
    if shape and shape[-1] % block:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, not a multiple of {dtype}'s block {block}")
    end = start + offset + math.prod(shape) // block * bytes_
    if end > size:
        raise bad(file, f"is truncated: {end - size} bytes are missing; download it again")
    return Tensor(name, dtype, shape, file, start + offset, end, source)
