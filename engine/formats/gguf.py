"""GGUF: our own walk over the header, the `gguf` package for the blocks.

`gguf.GGUFReader` needs 2.0 s to open the demo because it builds the tokenizer's arrays; stepping
over them takes 10 ms.
"""

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

from ..errors import InputError, WeightsError, printable
from ..landing import HOST, Landing
from ..spectrum import Source
from ..weights import TORCH_NAMES, Packed, Weights
from . import foreign
from .format import Format, Listing, Origin
from .ggml_types import GGML_TYPES, REMOVED
from .gguf_blocks import gguf_matrix, is_on_device
from .guarded import open_regular
from .parts import is_part
from .tensor import FileStamp, Stored, Tensor, identify, read_bytes, read_plain
from .vocabulary import readable

_VERSIONS = (2, 3)
_MAGIC = b"GGUF"
_CONFIG_NAMES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.kv_lora_rank": "kv_lora_rank",
    "expert_count": "num_experts",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base": "rope_theta",
}

_TOKENS, _TOKENIZER = "tokenizer.ggml.tokens", "tokenizer.ggml.model"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 8
_MAX_TENSORS = 1_000_000
_Head = tuple[str, tuple[int, ...], int, int]


class _Walk:
    """A cursor over the header that never leaves the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def skip(self, count: int) -> int:
        start = self.at
        if count > len(self.data) - start:
            raise struct.error("the header runs past the end of the file")
        self.at += count
        return start

    def string(self) -> str:
        start = self.skip(self.take("Q"))
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0, *, texts: bool = False) -> Any:
        """A scalar or string, with `texts` a list of strings; any other array is stepped over (None)."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind}")
        if depth > 4:
            raise struct.error("arrays nested too deep")
        inner, count = self.take("I"), self.take("Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[inner]))
        elif inner == _STRING and texts:
            return [self.string() for _ in range(count)]
        elif inner == _STRING:
            for _ in range(count):
                self.skip(self.take("Q"))
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


class Gguf(Format):
    """See Format; blocks of quantised weights are dequantised when they are read."""

    suffixes = (".gguf",)
    stands_alone = True

    def recognises(self, head: bytes) -> bool:
        """See Format."""
        return head.startswith(_MAGIC)

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:
        """See Format: an importance matrix, a control vector, a vocabulary, an adapter."""
        data = head()
        if data[:4] != _MAGIC:
            return bool(foreign.signature(data[: foreign.HEAD]))
        metadata: dict[str, Any] = {}
        first: list[str] | None = None
        try:
            walk, tensors, entries = _opening(data, Path(name))
            first = [] if not tensors and not is_part(name) else None
            for key, value in _entries(walk, entries):
                metadata[key] = value
            first = [found for found, *_ in _heads(walk, min(tensors, 1))]
        except (InputError, struct.error, OverflowError, ValueError):
            pass  # the head ends in the metadata, or whoever opens the file says what is wrong
        return metadata.get("general.type") == "adapter" or bool(_no_model(metadata, first))

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """See Format: shapes in (out, in) order; InputError is raised too where the file is one of other parts."""
        with _mapped(file) as (data, stamp):
            metadata, heads, end = _described(data, file)
            if what := _no_model(metadata, [name for name, *_ in heads[:1]]):
                raise _bad(file, foreign.NO_MODEL.format(what))
            source = identify(file, origin.repo, origin.commit, data[:end])
            _check_parts(metadata, origin.parts, file)
            return Listing(_laid_out(metadata, heads, end, stamp, source, file), stamp, _config(metadata))

    def read_matrix(self, tensor: Tensor, stored: Stored, landing: Landing) -> tuple[Weights | Packed, str]:
        """See Format; blocks are dequantised where they land, those of types that this cannot be done for on the CPU.

        Raises:
            WeightsError: the file changed or cannot be read, or the type has no dequantiser.
        """
        if tensor.dtype in TORCH_NAMES:
            return read_plain(tensor, stored, landing)
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
        """See Format; a part of a split model but the first lists none."""
        found: dict[str, Any] = {}
        with _mapped(file) as (data, _):
            walk, _, count = _opening(data, file)
            for _ in range(count):
                name = walk.string()
                value = walk.value(walk.take("I"), texts=name == _TOKENS)
                if name in (_TOKENS, _TOKENIZER):
                    found[name] = value
        texts = found.get(_TOKENS)
        return readable(enumerate(texts if isinstance(texts, list) else ()), by_bytes=found.get(_TOKENIZER) == "gpt2")

    def bytes_on(self, device: str, tensor: Tensor) -> int:
        """See Format; beside blocks the float32 that they become, of a stack those of one matrix. On a GPU they stay
        packed until they are solved."""
        if tensor.dtype in TORCH_NAMES:
            return super().bytes_on(device, tensor)
        if device != "cpu" and is_on_device(tensor.dtype):
            return tensor.stored_bytes
        return tensor.stored_bytes + 4 * math.prod(tensor.shape[-2:])


GGUF = Gguf()


def list_any(file: Path) -> tuple[dict[str, Any], Listing]:
    """What is kept of the metadata of a GGUF file, and its tensors, be it a model or not.

    Raises:
        InputError: the file cannot be read, is truncated or malformed.
    """
    with _mapped(file) as (data, stamp):
        metadata, heads, end = _described(data, file)
        source = identify(file, str(file.resolve()), "", data[:end])
        return metadata, Listing(_laid_out(metadata, heads, end, stamp, source, file), stamp)


@contextmanager
def _mapped(file: Path) -> Iterator[tuple[mmap.mmap, FileStamp]]:
    """A file's bytes; what goes wrong with them as one line."""
    try:
        with open_regular(file) as handle:
            stamp = FileStamp.of(file.stat())
            if not stamp.size:
                raise _bad(file, foreign.content(b""))
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data, stamp
    except OSError as error:
        raise InputError(f"cannot read {printable(str(file))}: {error.strerror}") from None
    except (struct.error, OverflowError, ValueError) as error:
        raise _bad(file, f"has a malformed header ({printable(str(error), 80)}); download it again") from None


def _described(data: mmap.mmap, file: Path) -> tuple[dict[str, Any], list[_Head], int]:
    """Metadata and tensors as the header states them, and where it ends."""
    walk, count, entries = _opening(data, file)
    metadata = dict(_entries(walk, entries))
    heads = list(_heads(walk, count))
    if len({name for name, *_ in heads}) < len(heads):
        raise ValueError("a tensor name stands twice")
    return metadata, heads, walk.at


def _check_parts(metadata: dict[str, Any], parts: int, file: Path) -> None:
    """Refuse a file that is one of another number of parts than there are."""
    stated = metadata.get("split.count") or parts
    if type(stated) is not int or stated != parts:
        number = printable(str(stated), 20)
        raise _bad(file, f"is one of {number} parts, which must be named NAME-00001-of-{number:0>5}.gguf and so on")


def _laid_out(
    metadata: dict[str, Any], heads: Sequence[_Head], end: int, stamp: FileStamp, source: Source, file: Path
) -> list[Tensor]:
    """The tensors behind a header that ends there."""
    align = metadata.get("general.alignment", 32)
    if type(align) is not int or align <= 0:
        raise ValueError(f"the alignment {align} is no positive number")
    return _tensors(heads, -(-end // align) * align, stamp.size, file, source)


def _opening(data: mmap.mmap | bytes, file: Path) -> tuple[_Walk, int, int]:
    """A cursor at the metadata, the number of tensors, and that of entries of metadata.

    Raises:
        InputError: another kind of file, version or order of bytes.
    """
    walk = _Walk(data)
    if data[:4] != _MAGIC:
        raise _bad(file, foreign.content(data[: foreign.HEAD]) or "is no GGUF file: it does not begin with GGUF")
    if data[4:6] == b"\0\0" and len(data) >= 8:  # the version stands at the other end of its four bytes
        raise _bad(file, "is a big-endian GGUF, for other machines than this: take the little-endian file")
    walk.at = 4
    version = walk.take("I")
    if version not in _VERSIONS:
        todo = "convert the model again" if version < min(_VERSIONS) else "a newer RankScope may read it"
        raise _bad(file, f"is GGUF of version {version}, and versions 2 and 3 are read: {todo}")
    return walk, walk.take("Q"), walk.take("Q")


def _entries(walk: _Walk, count: int) -> Iterator[tuple[str, Any]]:
    """What is kept of the metadata, of which a file may hold millions."""
    for _ in range(count):
        name = walk.string()
        value = walk.value(walk.take("I"), texts=name.startswith("imatrix."))
        if name.startswith(("general.", "split.", "imatrix.", "adapter.")) or name.endswith(tuple(_CONFIG_NAMES)):
            yield name, value


def _no_model(metadata: dict[str, Any], first: Sequence[str] | None) -> str:
    """What a file with this metadata and first tensor (none where it has none, None where that is not known) is, ""
    where it may be a model.

    The first file of a model in parts may hold its vocabulary alone.
    """
    unnamed = first is None
    first = first or ()
    kind = metadata.get("general.type")
    if kind == "imatrix" or any(name.endswith((".in_sum2", ".counts")) for name in first):
        return "an importance matrix of llama.cpp"
    if metadata.get("general.architecture") == "controlvector" or any(name.startswith("direction.") for name in first):
        return "a control vector"
    if not first and not unnamed and not metadata.get("split.count"):
        return "a vocabulary without weights"
    return ""


def _heads(walk: _Walk, count: int) -> Iterator[_Head]:
    """Name, shape in (out, in) order, type number and data offset of each tensor."""
    if count > _MAX_TENSORS:
        raise ValueError(f"it states {count} tensors")
    for _ in range(count):
        name, dims = walk.string(), walk.take("I")
        if dims > _MAX_DIMS:
            raise ValueError(f"tensor {name} has {dims} dimensions")
        shape = tuple(walk.take("Q") for _ in range(dims))[::-1]
        yield name, shape, walk.take("I"), walk.take("Q")


def _tensors(heads: Sequence[_Head], start: int, size: int, file: Path, source: Source) -> list[Tensor]:
    """The tensors of a file of `size` bytes whose data begin at `start`. One of an unknown type ends where the next
    begins, and cannot be read.
    """
    offsets = sorted(head[3] for head in heads)
    tensors = []
    for head in heads:
        name, shape, kind, offset = head
        if kind in GGML_TYPES:
            tensors.append(_tensor(head, start, size, file, source))
            continue
        following = bisect_right(offsets, offset)
        end = start + offsets[following] if following < len(offsets) else size
        if start + offset >= size or end > size:
            raise _bad(file, f"is truncated: tensor {printable(name)} begins or ends behind it; download it again")
        known = f"({REMOVED[kind]}, which llama.cpp removed)" if kind in REMOVED else "is not known"
        problem = f"GGUF type {kind} {known}: unsupported quantisation"
        dtype = REMOVED.get(kind, f"type {kind}")
        tensors.append(Tensor(name, dtype, shape, file, start + offset, end, source, problem=problem))
    return tensors


def _tensor(head: _Head, start: int, size: int, file: Path, source: Source) -> Tensor:
    name, shape, kind, offset = head
    dtype, block, bytes_ = GGML_TYPES[kind]
    if shape and shape[-1] % block:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, no multiple of {dtype}'s block {block}")
    end = start + offset + math.prod(shape) // block * bytes_
    if end > size:
        raise _bad(file, f"is truncated: {end - size} bytes are missing; download it again")
    return Tensor(name, dtype, shape, file, start + offset, end, source)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The keys of `<architecture>.` under the names that config.json gives them.

    A projector file (mmproj), whose architecture is "clip", holds a vision or an audio encoder, or both.
    """
    kind = str(metadata.get("general.architecture", ""))
    if kind != "clip":
        found = {"model_type": kind, **_sizes(metadata, kind)}
        alpha = metadata.get("adapter.lora.alpha")  # 0 is a scale of 1 to llama.cpp
        return {**found, "adapter": {"lora_alpha": alpha}} if alpha else found
    towers = {tower: _sizes(metadata, f"clip.{tower}") for tower in ("vision", "audio")}
    return {"model_type": kind, **{f"{tower}_config": sizes for tower, sizes in towers.items() if sizes}}


def _sizes(metadata: dict[str, Any], section: str) -> dict[str, Any]:
    found = {ours: metadata.get(f"{section}.{theirs}") for theirs, ours in _CONFIG_NAMES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _bad(file: Path, what: str) -> InputError:
    return InputError(f"{printable(str(file))} {what}")
