"""PyTorch files (.bin, .pt, .pth, .ckpt): the pickle tells where each tensor lies; bytes are read as in other formats.

Nothing in a file is executed. Its pickle may only name tensors and containers, which is checked on the pickle's tokens
before it is loaded, without torch. Records of a zip and storages of a legacy file lie uncompressed in one piece, so
that one `pread` per tensor serves prefetching, digests and the check for a changed file, and a file may be larger than
memory. Listings are kept (Listings): a pickle of 300,000 tensors takes 20 s.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from zipfile import ZipFile

from ..errors import InputError, WeightsError, cannot_read, printable
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
from .torch_pickle import StoredTensor, Unpickler

INDEX = "pytorch_model.bin.index.json"
_DIFFUSERS = "diffusion_pytorch_model.bin"
LISTING = "torch-1"
"""The prefix of the keys of kept listings; change it with the form of the listings."""
_HEAD = 4096
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_COUNT_BYTES = 8
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
_Place: TypeAlias = tuple[int, int]
"""Where a storage lies in its file: its first byte, and how many bytes there are."""


class PyTorch(Ranged):
    """See Format. A file on a server is listed from all that is no storage."""

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
            raise cannot_read(file, error) from None
        source = identify(file, origin.repo, origin.commit, head)
        rows = _kept_rows(lambda: _list_rows(file, lambda: _load_local(file, head)), source, origin.listings)
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

        from .torch_zip import opened

        def listed() -> list[Any]:
            archive, places = opened(header, size)
            with archive:
                return _list_rows(file, lambda: _load_zip(file, archive, size, places))

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


def _list_rows(file: Path, load: Callable[[], tuple[object, Mapping[str, _Place]]]) -> list[Any]:
    """The rows of what `load` finds in a file."""
    try:
        return _rows(file, *load())
    except InputError:
        raise
    except OSError as error:
        raise cannot_read(file, error) from None
    except Exception as error:  # noqa: BLE001 - zipfile and pickle raise whatever bad bytes lead to
        raise damaged(file, str(error).partition("\n")[0] or type(error).__name__) from None


def _load_local(file: Path, head: bytes) -> tuple[object, Mapping[str, _Place]]:
    """What a file that begins with `head` holds, and the places of its storages."""
    if not head.startswith((ZIP, _LEGACY)):
        raise _no_checkpoint(file, head)
    with open_regular(file) as handle:
        if head.startswith(_LEGACY):
            return _load_legacy(file, _Bounded(io.FileIO(handle.fileno(), closefd=False)))
        from .torch_zip import storages_in

        with ZipFile(handle) as archive:
            return _load_zip(file, archive, file.stat().st_size, storages_in(handle, archive))


def _load_zip(
    file: Path, archive: ZipFile, size: int, places: Mapping[str, _Place]
) -> tuple[object, Mapping[str, _Place]]:
    """What an archive of `size` bytes with storages at these places holds."""
    from .torch_zip import pickle_of

    unpickler = Unpickler(io.BytesIO(pickle_of(archive, file, size)))
    found = unpickler.load()
    if {key: size for key, size in unpickler.records.items() if size} != {k: n for k, (_, n) in places.items() if n}:
        raise ValueError("its records are not those that its pickle names")
    return found, places


class _Bounded(io.BufferedReader):
    """A file of which a pickle can read no more than is there: a usual one would first make room for what it states."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.BufferedReader."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:  # most are of a byte
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


def _load_legacy(file: Path, handle: BinaryIO) -> tuple[object, Mapping[str, _Place]]:
    """What a file from before the zip format (torch 1.6) holds: its pickles, then for each storage in the order of the
    last pickle its count of elements and its bytes.
    """
    size = file.stat().st_size
    for _ in range(_LEGACY_PICKLES):
        check_pickle(file, handle, size)
    handle.seek(0)
    unpicklers = [Unpickler(handle) for _ in range(_LEGACY_PICKLES)]
    *_, found, keys = [unpickler.load() for unpickler in unpicklers]
    records, at = unpicklers[-2].records, handle.tell()
    if set(keys) != records.keys() or len(set(keys)) < len(keys):
        raise ValueError("its records are not those that its pickle names")
    places = {}
    for key in keys:
        places[key] = at + _COUNT_BYTES, records[key]
        at += _COUNT_BYTES + records[key]
    if at > size:
        raise ValueError("its storages are larger than the file")
    return found, places


def _rows(file: Path, found: object, places: Mapping[str, _Place]) -> list[Any]:
    if isinstance(found, Mapping) and {"state", "param_groups"} <= found.keys():
        raise bad_file(file, "holds the state of an optimiser, not a model: name the file with the weights")
    parts = found.get("mp_world_size") if isinstance(found, Mapping) else None  # DeepSpeed's word
    if isinstance(parts, int) and parts > 1:
        raise bad_file(file, f"is one of {parts} parts of a tensor-parallel model: save the whole model")
    rows = [_row(name, tensor, places) for name, tensor in _tensors_in(_state_dict(found))]
    if not rows:
        keys = [printable(str(key), 40) for key in found][:5] if isinstance(found, Mapping) else []
        held = f"its keys are {', '.join(keys)}" if keys else f"it is a {_kind_of(found)}"
        raise bad_file(file, f"holds no state dict ({held}): save the model's state_dict()")
    if len({name for name, *_ in rows}) < len(rows):
        raise ValueError("a tensor name occurs twice")
    "".join(name for name, *_ in rows).encode()  # raises on half a surrogate pair, which only a pickle may hold
    return rows


def _kind_of(found: object) -> str:
    return "Tensor" if isinstance(found, StoredTensor) else type(found).__name__


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
    if any(isinstance(value, StoredTensor) for value in found.values()):
        return found
    held = {key: state for key, value in found.items() if type(key) is str and (state := _state_dict(value, depth + 1))}
    return next(iter(held.values())) if len(held) == 1 else held


def _tensors_in(state: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, StoredTensor]]:
    if depth > _MAX_DEPTH:
        raise ValueError("its dictionaries are nested too deep")
    for key, value in state.items():
        if isinstance(value, StoredTensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{key}.", depth + 1)


def _row(name: str, tensor: StoredTensor, places: Mapping[str, _Place]) -> tuple[Any, ...]:
    offset = places[tensor.key][0] if tensor.end else 0
    strides = () if tensor.is_contiguous else tensor.strides
    dtype = _DTYPES.get(tensor.dtype, tensor.dtype.upper())
    return name, dtype, tensor.shape, offset + tensor.begin, offset + tensor.end, strides
