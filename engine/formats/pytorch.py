"""PyTorch files (.bin, .pt, .pth, .ckpt): torch tells where each tensor lies; then bytes are read as in other formats.

Nothing in a file is executed. Its pickle may only name tensors and containers, which is checked on the
pickle's tokens before `torch.load(weights_only=True)` sees it: torch's own list also allows `bytearray` and
device copies, with which a file of 200 bytes can fill the memory. A listing needs torch (1 to 3 s), so it
is kept (Listings). Reading does not need torch: records of a zip and storages of a legacy file lie uncompressed
in one piece, and one `pread` per tensor serves prefetching, digests and the check for a changed file.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import ZipFile

from ..errors import InputError, WeightsError, printable
from ..landing import Landing
from ..spectrum import Source
from ..weights import TORCH_NAMES, Weights
from . import foreign
from .format import Ends, Listing, Listings, Origin, Parsed, Ranged
from .guarded import open_regular
from .parts import grouped, is_part
from .pickles import ZIP, bad_file, check_pickle, damaged
from .safetensors import DTYPE_BITS
from .tensor import FileAccess, FileStamp, Tensor, identify, read_plain

if TYPE_CHECKING:
    import torch

INDEX = "pytorch_model.bin.index.json"
_DIFFUSERS = "diffusion_pytorch_model.bin"
LISTING = "torch-1"
"""The prefix of the keys of kept listings; change it with the form of the listings."""
_HEAD = 4096
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, the keys of its storages
_NESTS = ("state_dict", "model_state_dict", "model", "module", "params", "weights")
_MAX_DEPTH = 8
_DTYPES = {name: code for code, name in TORCH_NAMES.items()} | {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "complex64": "C64", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


_TRAINER_STATE = re.compile(
    r"(?:training_args|trainer_state|(?:optimizer|scheduler|scaler|rng_state|random_states|sampler|dl_state_dict)(?:_\d+)?"
    r"|.*optim_states)\.(?:bin|pt|pth|ckpt)",
    re.IGNORECASE,
)
_ADAPTER = re.compile(r"adapter_model.*\.(?:bin|pt|pth)", re.IGNORECASE)


_OLMO = frozenset({"optim.pt", "train.pt"})  # beside its model.pt


class _Region(NamedTuple):
    """`size` bytes in memory, at `address`, that are the bytes of the file from `offset` on."""

    address: int
    size: int
    offset: int


class PyTorch(Ranged):
    """See Format; listing a file imports torch, unless `listings` holds an earlier listing of this very file. A file on
    a server is listed from a stand-in that only lacks the storages.
    """

    suffixes = (".bin", ".pt", ".pth", ".ckpt")
    index = INDEX

    def recognises(self, head: bytes) -> bool:
        """See Format."""
        return head.startswith((ZIP, _LEGACY))

    def models(self, names: Collection[str]) -> list[list[str]]:
        """See Format: the files that transformers and diffusers save."""
        for name in (INDEX, "pytorch_model.bin", f"{_DIFFUSERS}.index.json", _DIFFUSERS):
            if name in names:
                return [[name]]
        shards = [name for name in self.candidates(names) if name.startswith("pytorch_model-") and is_part(name)]
        return [shards] if shards else []

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:  # noqa: ARG002 - the name tells
        """See Format: an adapter."""
        return _ADAPTER.fullmatch(name) is not None

    def doubtful(self, names: Collection[str]) -> list[list[str]]:
        """See Format: torch.save writes all kinds of objects to files with these suffixes."""
        return grouped(self.candidates(names))

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """See Format; InputError is also raised if the file holds no state dict, or would have to execute code."""
        _refuse_trainer_state(file)
        try:
            with open_regular(file) as handle:
                stamp, head = FileStamp.of(file.stat()), handle.read(_HEAD)
        except OSError as error:
            raise InputError(f"cannot read {printable(str(file))}: {error.strerror}") from None
        source = identify(file, origin.repo, origin.commit, head)
        rows = _kept_rows(lambda: _list_rows(file, head, file), source, origin.listings)
        return Listing(_tensors(rows, file, stamp.size, source), stamp)

    def header(self, ends: Ends, size: int, file: Path) -> bytes:
        """See Ranged: everything except the storages; nothing is unpickled yet."""
        from .torch_zip import header_of, unread_in_part  # not needed for the first screen

        _refuse_trainer_state(file)
        head = ends.first(foreign.HEAD)
        if head.startswith(ZIP):
            return header_of(ends, size, file)
        if head.startswith(_LEGACY):
            raise unread_in_part(file, "is of the format before torch 1.6, which has no directory")
        raise _no_checkpoint(file, head)

    def parse(self, header: bytes, file: Path, size: int, source: Source, origin: Origin) -> Parsed:
        """See Ranged."""

        from .torch_zip import stand_in

        def listed() -> list[Any]:
            try:
                with stand_in(header, size) as path:
                    return _list_rows(path, ZIP, file)
            except OSError as error:
                raise InputError(
                    f"{printable(str(file))} cannot be listed: {error.strerror or error} in {tempfile.gettempdir()}"
                ) from None

        return Parsed(_tensors(_kept_rows(listed, source, origin.listings), file, size, source))

    def read_matrix(self, tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights, str]:
        """See Format; a transposed or sliced view is brought into row-major order.

        Raises:
            WeightsError: as in Format, or if elements of the view share their bytes.
        """
        if not tensor.strides:
            return read_plain(tensor, stored, landing)
        if math.prod(tensor.shape) * DTYPE_BITS.get(tensor.dtype, 0) > 8 * (tensor.end - tensor.begin):
            raise WeightsError("elements of this view share their bytes: it is not a weight matrix")
        flat, seen = read_plain(tensor._replace(shape=(-1,)), stored, landing)
        import numpy as np

        if isinstance(flat, np.ndarray):
            strides = [step * flat.itemsize for step in tensor.strides]
            return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)), seen
        return flat.as_strided(tensor.shape, tensor.strides).contiguous(), seen

    def candidates(self, names: Iterable[str]) -> list[str]:
        """See Format: without the files that trainers save beside a model."""
        held = [name for name in self.named(names) if not (_is_trainer_state(name) or foreign.kind_by_name(name))]
        return [name for name in held if name not in _OLMO] or held


PYTORCH = PyTorch()


def _is_trainer_state(name: str) -> bool:
    return _TRAINER_STATE.fullmatch(name) is not None


def _refuse_trainer_state(file: Path) -> None:
    if _is_trainer_state(file.name):
        raise bad_file(file, "holds the state of a trainer or optimiser, not a model: name the file with the weights")


def _no_checkpoint(file: Path, head: bytes) -> InputError:
    """The error about a file whose first bytes torch.save never writes."""
    other = "was not written by torch.save: name a file that was, or a .safetensors or .gguf file"
    return bad_file(file, foreign.content(head[: foreign.HEAD]) or other)


def _tensors(rows: Iterable[Any], file: Path, size: int, source: Source) -> list[Tensor]:
    tensors = [
        Tensor(name, dtype, tuple(shape), file, begin, end, source, strides=tuple(strides))
        for name, dtype, shape, begin, end, strides in rows
    ]
    if any(not 0 <= t.begin <= t.end <= size for t in tensors):
        raise bad_file(file, "has tensors beyond its end: download it again")
    return tensors


def _kept_rows(listed: Callable[[], list[Any]], source: Source, listings: Listings | None) -> list[Any]:
    """The rows of _list_rows, from `listings` if they were kept before."""
    key = f"{LISTING}-{source.identity}"
    rows = _parsed(listings.get(key) if listings else None)
    if rows is None:
        rows = listed()
        if listings:
            listings.put(key, json.dumps(rows))
    return rows


def _parsed(text: str | None) -> list[Any] | None:
    """The rows of a kept listing: name, dtype, shape, first byte, end, strides."""
    rows = json.loads(text) if text else None
    return rows if isinstance(rows, list) else None


def _list_rows(path: Path, head: bytes, file: Path) -> list[Any]:
    """The rows of the file at `path`, which begins with `head`; messages call it `file`."""
    try:
        if head.startswith((ZIP, _LEGACY)):
            _need_torch()
        if head.startswith(ZIP):
            found, regions = _load_zip(path, file)
        elif head.startswith(_LEGACY):
            found, regions = _load_legacy(file)
        else:
            raise _no_checkpoint(file, head)
        return _rows(file, found, regions)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {printable(str(file))}: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # noqa: BLE001 - torch, zipfile and pickletools raise whatever bad bytes lead to
        raise damaged(file, str(error).partition("\n")[0] or type(error).__name__) from None


def _need_torch() -> None:
    """Import torch; if that fails, say so instead of blaming the file.

    Raises:
        InputError: torch is missing or broken.
    """
    try:
        import torch  # noqa: F401
    except Exception as error:  # noqa: BLE001 - OSError if a shared library is missing, others if numpy's ABI differs
        reason = printable(str(error).partition("\n")[0] or type(error).__name__, 120)
        raise InputError(
            f"torch, which lists PyTorch files, cannot be imported ({reason}): install it again, or name a .safetensors"
        ) from None


def _load_zip(path: Path, file: Path) -> tuple[object, list[_Region]]:
    """Load what the archive holds, mapped and not read, with the places of its records in memory.

    torch does not say which record a storage is. Each storage is passed to `map_location` at its address in the
    mapping. torch.save only writes records that the pickle names, so in the order of their addresses the storages
    are the records, all at one distance from them.
    """
    from .torch_zip import load_mapped, records

    with ZipFile(path) as archive:
        held = records(path, archive, file)
    storages: dict[int, int] = {}

    def stay(storage: Any, _: str) -> Any:
        storages[storage.data_ptr()] = storage.nbytes()
        return storage

    found = load_mapped(path, stay, is_stand_in=path != file)
    placed = sorted((address, size) for address, size in storages.items() if size)
    if [size for _, size in placed] != [size for _, size in held]:
        raise ValueError("its records are not those that its pickle names")
    regions = [_Region(*p, offset) for p, (offset, _) in zip(placed, held, strict=True)]
    if len({region.address - region.offset for region in regions}) > 1:
        raise ValueError("its records lie elsewhere than its directory says")
    return found, regions


class _UnreadFile:
    """A legacy file as torch reads it: pickles are passed on, but storages are only noted with their addresses.

    torch cannot map such a file; it would copy all of it into memory. It reads each storage straight to its final
    address (`readinto`), so the address is known, and the pages stay untouched: nothing is read, and 0 bytes of memory
    are used instead of the file's size. Counts of elements (8 bytes) are passed on, because torch compares them.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.read, self.readline, self.seek, self.tell = data.read, data.readline, data.seek, data.tell
        self.regions: list[_Region] = []

    def readinto(self, target: memoryview) -> int:
        """Note where these bytes of the file would go, and return how many there are; 0 at the end."""
        import torch

        offset = self.tell()
        count = min(len(target), len(self.data) - offset)
        if count:
            address = torch.frombuffer(target, dtype=torch.uint8).data_ptr()
            last = self.regions[-1] if self.regions else _Region(0, 0, 0)
            if (last.address + last.size, last.offset + last.size) == (address, offset):  # torch reads 1 GB at a time
                self.regions[-1] = last._replace(size=last.size + count)
            else:
                self.regions.append(_Region(address, count, offset))
        if count <= 8:
            target[:count] = self.data[offset : offset + count]
        self.seek(offset + count)
        return count


def _load_legacy(file: Path) -> tuple[object, list[_Region]]:
    """Load what a file from before the zip format (torch 1.6) holds, with the places of its storages in memory."""
    import torch

    with open_regular(file) as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(_LEGACY_PICKLES):
            check_pickle(file, data, len(data))
        data.seek(0)
        unread, left = _UnreadFile(data), len(data)

        def stay(storage: Any, _: str) -> Any:
            nonlocal left
            left -= storage.nbytes()
            if left < 0:  # check before a view beyond its end makes torch enlarge the storage, and so write all of it
                raise ValueError("its storages are larger than the file")
            return storage

        found = torch.load(unread, weights_only=True, map_location=stay)  # type: ignore[arg-type]
    return found, sorted(unread.regions)


def _rows(file: Path, found: object, regions: list[_Region]) -> list[Any]:
    if isinstance(found, Mapping) and {"state", "param_groups"} <= found.keys():
        raise bad_file(file, "holds the state of an optimiser, not a model: name the file with the weights")
    parts = found.get("mp_world_size") if isinstance(found, Mapping) else None  # DeepSpeed's word
    if isinstance(parts, int) and parts > 1:
        raise bad_file(file, f"is one of {parts} parts of a tensor-parallel model: save the whole model")
    rows = [_row(name, tensor, regions) for name, tensor in _tensors_in(_state_dict(found))]
    if not rows:
        keys = [printable(str(key), 40) for key in found][:5] if isinstance(found, Mapping) else []
        held = f"its keys are {', '.join(keys)}" if keys else f"it is a {type(found).__name__}"
        raise bad_file(file, f"holds no state dict ({held}): save the model's state_dict()")
    if len({name for name, *_ in rows}) < len(rows):
        raise ValueError("a tensor name occurs twice")
    "".join(name for name, *_ in rows).encode()  # raises on half a surrogate pair, which only a pickle may hold
    return rows


def _state_dict(found: object, depth: int = 0) -> Mapping[Any, Any]:
    """The innermost of nested state dicts, as trainers save them; {} if there is none.

    Besides the names of `_NESTS` it may be under any name with tensors: one dictionary or several (Megatron's encoder,
    embedding).
    """
    if not isinstance(found, Mapping) or depth > _MAX_DEPTH or {"state", "param_groups"} <= found.keys():
        return {}
    inner = (_state_dict(found[nest], depth + 1) for nest in _NESTS if nest in found)
    if named := next(filter(None, inner), None):
        return named
    if any(_is_tensor(value) for value in found.values()):
        return found
    held = {key: state for key, value in found.items() if type(key) is str and (state := _state_dict(value, depth + 1))}
    return next(iter(held.values())) if len(held) == 1 else held


def _tensors_in(state: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if depth > _MAX_DEPTH:
        raise ValueError("its dictionaries are nested too deep")
    for key, value in state.items():
        if _is_tensor(value):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{key}.", depth + 1)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _row(name: str, tensor: torch.Tensor, regions: list[_Region]) -> tuple[Any, ...]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    span = tensor.element_size() * (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))
    begin, end = _bytes_of(tensor.data_ptr(), span, regions) if tensor.numel() else (0, 0)
    strides = () if tensor.is_contiguous() else tensor.stride()
    return name, _DTYPES.get(dtype, dtype.upper()), tuple(tensor.shape), begin, end, strides


def _bytes_of(address: int, span: int, regions: list[_Region]) -> tuple[int, int]:
    """First byte and end, in the file, of `span` bytes at an address in memory."""
    number = bisect_right(regions, address, key=lambda region: region.address) - 1
    region = regions[max(number, 0)]
    if number < 0 or address + span > region.address + region.size:
        raise ValueError("a tensor lies outside its storage")
    begin = region.offset + address - region.address
    return begin, begin + span
