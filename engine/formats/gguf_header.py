"""Reading the header of a GGUF file: what it states of the model, and where its tensors lie. Arrays are skipped.

`gguf.GGUFReader` needs 2.0 s to open the demo because it builds the tokenizer's arrays; skipping
them takes 10 ms.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, printable
from . import foreign

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
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
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in _CODES.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 8
_MAX_TENSORS = 1_000_000


class ShortError(struct.error):
    """The bytes at hand end before the header does; `needed` is how many first bytes it takes to read on."""

    def __init__(self, needed: int) -> None:
        super().__init__("the header runs past the end of the file")
        self.needed = needed


class TensorHeader(NamedTuple):
    """A tensor as the header states it: shape in (out, in) order, number of its type, offset in the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class Described(NamedTuple):
    """The metadata that is kept, the tensors in the file's order, and where the header ends."""

    metadata: dict[str, Any]
    heads: list[TensorHeader]
    end: int


class HeaderCursor:
    """A cursor over the header. It never leaves the bytes at hand, nor the file of `size` bytes."""

    def __init__(self, data: mmap.mmap | bytes, size: int) -> None:
        self.data = data
        self.held = len(data)
        self.size = size
        self.at = 0

    def take(self, number: struct.Struct = _U64) -> Any:
        """The next number."""
        return number.unpack_from(self.data, self.skip(number.size))[0]

    def skip(self, count: int) -> int:
        """Step over `count` bytes and return where they begin.

        Raises:
            ShortError: they are not among the bytes at hand.
            ValueError: they are beyond the end of the file.
        """
        start = self.at
        if start + count > self.held:
            self._refuse(start + count)
        self.at = start + count
        return start

    def _refuse(self, end: int) -> None:
        if end > self.size:
            raise ValueError("the header runs past the end of the file")
        raise ShortError(end)

    def string(self) -> str:
        """The next string."""
        start = self.skip(self.take())
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0, *, texts: bool = False) -> Any:
        """The next scalar or string, or with `texts` a list of strings; any other array is skipped and gives None."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind}")
        if depth > 4:
            raise ValueError("arrays nested too deep")
        inner, count = self.take(_U32), self.take()
        if inner in _SCALARS:
            self.skip(count * _SCALARS[inner].size)
            return None
        if self.at + _U64.size * count > self.size:
            self._refuse(self.at + _U64.size * count)
        if inner == _STRING and texts:
            return [self.string() for _ in range(count)]
        if inner == _STRING:
            for _ in range(count):
                self.skip(self.take())
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


class Opening(NamedTuple):
    """A cursor at the start of the metadata, the number of tensors, and the number of metadata entries."""

    cursor: HeaderCursor
    tensors: int
    entries: int


def opening(data: mmap.mmap | bytes, file: Path, size: int = sys.maxsize) -> Opening:
    """Read the start of a file of `size` bytes.

    Raises:
        InputError: it is another kind of file, version or byte order.
    """
    walk = HeaderCursor(data, size)
    if data[:4] != MAGIC:
        raise bad(file, foreign.content(data[: foreign.HEAD]) or "is not a GGUF file: it does not begin with GGUF")
    if data[4:6] == b"\0\0" and len(data) >= 8:  # a big-endian file has the version at the end of its four bytes
        raise bad(file, "is a big-endian GGUF, for other machines than this: take the little-endian file")
    walk.at = 4
    version = walk.take(_U32)
    if version not in _VERSIONS:
        todo = "convert the model again" if version < min(_VERSIONS) else "a newer RankScope may read it"
        raise bad(file, f"is GGUF of version {version}, and versions 2 and 3 are read: {todo}")
    return Opening(walk, walk.take(), walk.take())


def described(data: mmap.mmap | bytes, file: Path, size: int) -> Described:
    """Read the whole header of a file of `size` bytes.

    Raises:
        InputError: see opening.
        ShortError: `data` ends within the header.
        ValueError: the header is malformed.
    """
    walk, count, number = opening(data, file, size)
    metadata = dict(entries(walk, number))
    listed = list(heads(walk, count))
    if len({head.name for head in listed}) < len(listed):
        raise ValueError("a tensor name occurs twice")
    return Described(metadata, listed, walk.at)


def entries(walk: HeaderCursor, count: int) -> Iterator[tuple[str, Any]]:
    """Yield the metadata that is kept; a file may hold millions of entries."""
    for _ in range(count):
        name = walk.string()
        value = walk.value(walk.take(_U32), texts=name.startswith("imatrix."))
        if name.startswith(("general.", "split.", "imatrix.", "adapter.")) or name.endswith(tuple(_CONFIG_NAMES)):
            yield name, value


def texts(walk: HeaderCursor, count: int, name: str, others: Sequence[str]) -> dict[str, Any]:
    """The list of strings under `name` in the metadata, and the values under the names of `others`."""
    found: dict[str, Any] = {}
    for _ in range(count):
        key = walk.string()
        value = walk.value(walk.take(_U32), texts=key == name)
        if key == name or key in others:
            found[key] = value
    return found


def heads(walk: HeaderCursor, count: int) -> Iterator[TensorHeader]:
    """Yield the tensors' headers."""
    if count > _MAX_TENSORS:
        raise ValueError(f"it states {count} tensors")
    for _ in range(count):
        name, dims = walk.string(), walk.take(_U32)
        if dims > _MAX_DIMS:
            raise ValueError(f"tensor {name} has {dims} dimensions")
        shape = tuple(walk.take() for _ in range(dims))[::-1]
        yield TensorHeader(name, shape, walk.take(_U32), walk.take())


def no_model(metadata: dict[str, Any], first: Sequence[str] | None) -> str:
    """Say what a file is if it is no model, "" if it may be one.

    `first` are the names of its first tensors: empty if it has none, None if that is not known. The first file of a
    model in parts may hold only the vocabulary.
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


def config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The keys under `<architecture>.` with the names that config.json gives them.

    A projector file (mmproj), whose architecture is "clip", holds a vision or an audio encoder, or both.
    """
    kind = str(metadata.get("general.architecture", ""))
    if kind != "clip":
        found = {"model_type": kind, **_sizes(metadata, kind)}
        alpha = metadata.get("adapter.lora.alpha")  # llama.cpp takes 0 as a scale of 1
        return {**found, "adapter": {"lora_alpha": alpha}} if alpha else found
    towers = {tower: _sizes(metadata, f"clip.{tower}") for tower in ("vision", "audio")}
    return {"model_type": kind, **{f"{tower}_config": sizes for tower, sizes in towers.items() if sizes}}


def _sizes(metadata: dict[str, Any], section: str) -> dict[str, Any]:
    found = {ours: metadata.get(f"{section}.{theirs}") for theirs, ours in _CONFIG_NAMES.items()}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """Turn errors about a malformed header into one line."""
    try:
        yield
    except (struct.error, OverflowError, ValueError) as error:
        raise bad(file, f"has a malformed header ({printable(str(error), 80)}); download it again") from None


def bad(file: Path, what: str) -> InputError:
    """The error about a file that cannot be opened."""
    return InputError(f"{printable(str(file))} {what}")
