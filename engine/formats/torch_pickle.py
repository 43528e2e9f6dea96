"""What the pickles of a PyTorch file describe: dictionaries, and tensors as places in records of bytes.

Neither torch nor memory for the weights is needed, and nothing in the pickle is executed: every name in it becomes one
of the few functions here. Formulas of places as in torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

_MOST = 1 << 63
_ELEMENT_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float4_e2m1fn_x2", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
_STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


class Storage(NamedTuple):
    """A piece of the record `key`: `size` bytes from its byte `first` on, which are numbers of type `dtype`."""

    key: str
    dtype: str
    first: int
    size: int


class StoredTensor(NamedTuple):
    """A tensor: the numbers of a storage, of type `dtype`, from byte `begin` of the record `key` up to `end`. `strides`
    count elements."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_contiguous(self) -> bool:
        """True if its elements lie in row-major order without gaps."""
        expected = 1
        for count, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if count != 1 and step != expected:
                return 0 in self.shape
            expected *= count
        return True


class _Function(NamedTuple):
    """A function that a pickle may call. Unlike a plain one it has no attributes that a pickle could change."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self.make(*arguments)


class Unpickler(pickle.Unpickler):
    """Loads pickles that `check_pickle` has passed. `records` gets the size of each record that they name."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.records: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name in the pickle.

        Raises:
            ValueError: there is none.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("torch", "torch.storage", "torch.nn.parameter") and name not in ("Size", "device"):
            return _STORAGES.get(name, name)
        if name not in _FUNCTIONS:
            raise ValueError(f"its pickle names {module}.{name}")
        return _FUNCTIONS[name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage as torch.save names it: "storage", type, key, device and count of elements; before torch 1.6 also
        which part of the record is meant.

        Raises:
            ValueError: its type or its size is not known.
        """
        _, dtype, key, _, count, *part = pid
        size = _whole(count) * _element_bytes(dtype)
        if self.records.setdefault(str(key), size) != size:
            raise ValueError("its pickle gives a record two sizes")
        if not part or part[0] is None:
            return Storage(str(key), dtype, 0, size)
        _, first, count = part[0]
        held = Storage(str(key), dtype, _whole(first) * _element_bytes(dtype), _whole(count) * _element_bytes(dtype))
        if held.first + held.size > size:
            raise ValueError("a storage lies outside its record")
        return held


def _tensor(storage: Storage, first: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> StoredTensor:
    return _typed(storage, first, shape, strides, storage.dtype)


def _tensor_of_type(storage: Storage, first: int, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """A tensor of a type without a storage class: its type follows two values that only training needs."""
    return _typed(storage, first, shape, strides, rest[2])


def _typed(storage: Storage, first: int, shape: Any, strides: Any, dtype: Any) -> StoredTensor:
    shape, strides = tuple(map(_whole, shape)), tuple(map(_whole, strides))
    size = _element_bytes(dtype)
    count = math.prod(shape)
    if len(strides) != len(shape) or count >= _MOST:
        raise ValueError("a tensor has no possible shape")
    if count == 0:
        return StoredTensor(storage.key, dtype, shape, strides, 0, 0)
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    begin = _whole(first) * size
    end = begin + size * (1 + last)
    if end > storage.size:
        raise ValueError("a tensor lies outside its storage")
    return StoredTensor(storage.key, dtype, shape, strides, storage.first + begin, storage.first + end)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < _MOST:
        raise ValueError("a size in its pickle is not a whole number of 64 bits")
    return number


def _element_bytes(dtype: Any) -> int:
    if dtype not in _ELEMENT_BYTES:
        raise ValueError(f"the type {dtype} of its numbers is not known")
    return _ELEMENT_BYTES[dtype]


def _first(held: Any, *_: Any) -> Any:
    return held


_FUNCTIONS = {
    "_rebuild_tensor": _Function(_tensor),
    "_rebuild_tensor_v2": _Function(_tensor),
    "_rebuild_tensor_v3": _Function(_tensor_of_type),
    "_rebuild_parameter": _Function(_first),
    "_rebuild_parameter_with_state": _Function(_first),
    "_rebuild_from_type_v2": _Function(lambda rebuild, _, arguments, *__: rebuild(*arguments)),
    "Size": _Function(_first),
    # What is not needed is not made: the same text or list, named again and again, could fill the memory.
    "device": _Function(lambda *_: ""),
    "set": _Function(lambda *_: ()),
    "encode": _Function(lambda *_: ""),
}
