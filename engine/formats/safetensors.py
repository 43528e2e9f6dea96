"""safetensors: the header is checked by the rules of the reference reader, before any tensor is read.

The `safetensors` package cannot read bf16 without torch and does not tell where a tensor's bytes lie,
which content keys and prefetching need. The header is 8 bytes of length, then JSON.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, cannot_read, printable
from ..landing import Landing
from ..spectrum import Source
from ..weights import TORCH_NAMES
from . import foreign
from .foreign import HEAD
from .format import Ends, Listing, Origin, Parsed, Ranged
from .guarded import check_dense, check_memory, open_regular
from .tensor import FileAccess, FileStamp, Tensor, identify, read_bytes

if TYPE_CHECKING:
    import torch

_OF_INDEX = ".safetensors.index.json"
_BESIDE = re.compile(
    r"(adapter_model.*|(\d+_)?adapters|pytorch_lora_weights.*|optimizer(_\d+)?|optim)\.safetensors", re.IGNORECASE
)
_HALF = re.compile("[\ud800-\udfff]")
INDEX = f"model{_OF_INDEX}"
MAX_HEADER = 100_000_000  # the limit of the reference reader
MAX_SIZE = 2**64  # also its limit

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

PART_NAMES = TORCH_NAMES | {
    "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "U32": "int32", "I64": "int64",
    "F8_E8M0": "uint8", "F4": "uint8",
}  # fmt: skip
"""The torch types that parts of a quantised matrix are read as: torch cannot compute with float8_e8m0fnu or float4."""


class Safetensors(Ranged):
    """See Format; a file on a server is listed from its first bytes."""

    suffixes = (".safetensors",)
    index = INDEX

    def recognises(self, head: bytes) -> bool:
        """See Format."""
        return head[8:9] == b"{"

    def models(self, names: Collection[str]) -> list[list[str]]:
        """See Format: the files that transformers saves come first, then those of another index, such as diffusers'.
        `consolidated*` repeats the same weights under Mistral's native names.
        """
        for name in (INDEX, "model.safetensors"):
            if name in names:
                return [[name]]
        held = [*self.named(names), *sorted(name for name in names if name.lower().endswith(_OF_INDEX))]
        held = [name for name in held if not _BESIDE.fullmatch(name)]
        whole = [name for name in held if not name.startswith("consolidated")] or held
        indexes = [name for name in whole if name.lower().endswith(_OF_INDEX)]
        return [[name] for name in indexes] or ([whole] if whole else [])

    def doubtful(self, names: Collection[str]) -> list[list[str]]:
        """See Format: the files that `models` leaves out, such as an adapter."""
        held = self.named(names)
        return [held] if held else []

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:  # noqa: ARG002 - the name tells
        """See Format: an adapter, the state of an optimiser."""
        return _BESIDE.fullmatch(name) is not None

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """See Format."""
        header, stamp = self._header(file)
        source = identify(file, origin.repo, origin.commit, header)
        return Listing(self.parse(header, file, stamp.size, source, origin).tensors, stamp)

    def metadata(self, file: Path) -> dict[str, str]:
        """The texts in the header of a file, by name, beside its tensors.

        Raises:
            InputError: the file cannot be read, is truncated or malformed.
        """
        header, stamp = self._header(file)
        found = _entries(header, file, stamp.size).get("__metadata__")
        return {name: text for name, text in found.items() if type(text) is str} if isinstance(found, dict) else {}

    def _header(self, file: Path) -> tuple[bytes, FileStamp]:
        try:
            with open_regular(file) as handle:
                stamp = FileStamp.of(file.stat())
                head = handle.read(HEAD)
                begin, end = _header_span(head, stamp.size, file)
                header = head[begin:end] + handle.read(max(end - len(head), 0))
        except OSError as error:
            raise cannot_read(file, error) from None
        if len(header) < end - begin:
            raise _bad(file, "ends inside its header; download it again")
        return header, stamp

    def header(self, ends: Ends, size: int, file: Path) -> bytes:
        """See Ranged; the first 8 bytes state the length of the header."""
        begin, end = _header_span(ends.first(HEAD), size, file)
        return ends.first(end)[begin:end]

    def parse(self, header: bytes, file: Path, size: int, source: Source, origin: Origin) -> Parsed:  # noqa: ARG002 - of any
        """See Ranged."""
        start = 8 + len(header)
        entries = _entries(header, file, size)
        tensors = [
            _tensor(name, entry, start, file, source) for name, entry in entries.items() if name != "__metadata__"
        ]
        _check_cover(tensors, start, size, file)
        return Parsed(tensors)


SAFETENSORS = Safetensors()


def read_part(tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[torch.Tensor, str]:
    """Like read_plain, but a torch tensor of any type of PART_NAMES. A byte holds two F4 numbers; those come flat.

    Raises:
        WeightsError: the file changed or cannot be read.
    """
    import torch

    data, seen = read_bytes(tensor, stored, landing)
    numbers = torch.as_tensor(data).view(getattr(torch, PART_NAMES[tensor.dtype]))
    return numbers if tensor.dtype == "F4" else numbers.reshape(tensor.shape), seen


def _header_span(head: bytes, size: int, file: Path) -> tuple[int, int]:
    """First byte and end of the header of a file of `size` bytes that begins with `head`.

    Raises:
        InputError: the header would be longer than the file or than a header may be.
    """
    (length,) = struct.unpack_from("<Q", head) if len(head) >= 8 else (size,)
    if length > size - 8:
        cut_off = head[5:9] == b"\0\0\0{"
        held = (
            f"states a header of {length} bytes in a file of {size}; it is truncated or not safetensors: fetch it again"
        )
        short = f"is {size} bytes long, too short for a header; download it again"
        raise _bad(file, ("" if cut_off else foreign.content(head)) or (held if len(head) >= 8 else short))
    if length > MAX_HEADER:
        most = f"{MAX_HEADER:,} that safetensors allows"
        raise _bad(file, f"has a header of {length:,} bytes, too large for the {most}: save the model in shards")
    return 8, 8 + int(length)


def _entries(header: bytes, file: Path, size: int) -> dict[str, Any]:
    if not header:
        raise _bad(file, "has an empty header that is not JSON, as in downloads that were cut short: download it again")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("a name occurs twice")
        if any(map(_HALF.search, entries)):  # JSON may escape half a surrogate pair, which no other text can hold
            raise ValueError("a name has half a character")
        return entries

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        check_dense(header)
        check_memory(header, size)
        text = header.decode()
        entries = json.loads(text, parse_constant=no_number)
        if not _is_plain(header, entries):
            del entries  # so that only one copy is held
            entries = json.loads(text, parse_constant=no_number, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"has a header that is not JSON ({printable(str(error), 80)}); download it again") from None
    if not isinstance(entries, dict):
        raise _bad(file, "has a header that is not a JSON object; download it again")
    return entries


def _is_plain(header: bytes, entries: Any) -> bool:
    """True if certainly no name occurs twice. Checking each object while parsing takes as long as parsing itself."""
    if not isinstance(entries, dict) or b"\\" in header:
        return False
    metadata = entries.get("__metadata__")
    tensors = len(entries) - (metadata is not None)
    names = 4 * tensors + (1 + len(metadata) if isinstance(metadata, dict) else 0)
    words = (b'"dtype"', b'"shape"', b'"data_offsets"')
    return header.count(b'":') == names and all(header.count(word) == tensors for word in words)


def _tensor(name: str, entry: Any, start: int, file: Path, source: Any) -> Tensor:
    """Check one header entry: known dtype, whole non-negative sizes, and the number of bytes that they need."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _bad(file, f"has an incomplete entry for tensor {printable(name)}; download it again") from None
    bits = DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise _bad(
            file,
            f"gives tensor {printable(name)} the unknown dtype {printable(str(dtype), 40)}; save it as F32 or BF16",
        )
    if type(shape) is not list or not _whole((begin, end)) or not _whole(shape):
        raise _bad(
            file,
            f"gives tensor {printable(name)} a shape or offsets that are not whole numbers of 64 bits; "
            "download it again",
        )
    limit = bits * MAX_SIZE
    for size in shape:
        bits *= size
        if bits >= limit:  # stops before multiplying a hostile shape takes minutes
            raise _bad(file, f"gives tensor {printable(name)} a shape that overflows 64 bits; download it again")
    if bits != 8 * (end - begin):
        held = f"{end - begin} bytes where dtype and shape need {bits // 8}"
        raise _bad(file, f"gives tensor {printable(name)} {held}; download it again")
    return Tensor(name, dtype, tuple(shape), file, start + begin, start + end, source)


def _whole(numbers: Iterable[Any]) -> bool:
    for number in numbers:  # noqa: SIM110 - `all` of a generator takes twice as long, and 100,000 tensors come here
        if type(number) is not int or not 0 <= number < MAX_SIZE:
            return False
    return True


def _check_cover(tensors: list[Tensor], start: int, size: int, file: Path) -> None:
    """Check, as the reference reader does, that the tensors follow one another without overlap or hole, to the end."""
    reached = start
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != reached:
            fault = "overlap" if tensor.begin < reached else "leave a hole"
            raise _bad(file, f"has data offsets that {fault} at tensor {printable(tensor.name)}; download it again")
        reached = tensor.end
    if reached != size:
        missing = f"is truncated: {reached - size} bytes are missing" if reached > size else "holds unlisted bytes"
        raise _bad(file, f"{missing}; download it again")


def _bad(file: Path, what: str) -> InputError:
    return InputError(f"{printable(str(file))} {what}")
