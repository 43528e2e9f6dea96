"""A strict reader for the HDF5 files that a store writes; any other layout is refused.

libhdf5 opens other files that a file refers to (external storage, virtual datasets, external links) and allocates
whatever its shapes demand; among 3,000 mutated files one crashed it and one hung it. So libhdf5 only writes, and never
opens a file that somebody else may have made. What h5py writes by default uses a small part of the format, and this
module reads only that: old-style groups with hard links, version 1 object headers, contiguous datasets of plain
numbers, fixed-length text, and rows of both. After "HDF5 File Format Specification Version 3.0" (The HDF Group); each
function names its section.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BASES = (512, 0)
"""Possible starts of the HDF5 data: behind a user block, or at the first byte."""
_UNDEFINED = 2**64 - 1
_MOST_LINKS = 64
_LONGEST_NAME = 256
_REFUSED = {0x06: "links of its own", 0x07: "external storage", 0x0B: "filters"}
_LAYOUTS = {0: "compact", 2: "chunked", 3: "virtual"}
_SKIPPED = {0x00, 0x04, 0x05, 0x12}
"""Messages that do not affect where bytes lie: no-ops, fill values, modification times."""
_SPACE, _TYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _GROUP = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
_FLOATS = {
    4: ("<f4", struct.pack("<HHBBBBI", 0, 32, 23, 8, 0, 23, 127), b"\x20\x1f\x00"),
    8: ("<f8", struct.pack("<HHBBBBI", 0, 64, 52, 11, 0, 52, 1023), b"\x20\x3f\x00"),
}
"""IEEE floats of a little-endian machine by size: numpy type, properties and bit field of the datatype message."""


class Bytes:
    """The bytes of a file; those between the end of `before` and `resume` may be missing."""

    def __init__(self, before: bytes, after: bytes = b"", resume: int | None = None) -> None:
        self._before, self._after = memoryview(before), memoryview(after)
        self._resume = len(before) if resume is None else resume
        self.size = self._resume + len(after)

    def at(self, start: int, count: int) -> memoryview:
        """Return `count` bytes from a place in the file.

        Raises:
            ValueError: some of them are missing.
        """
        for piece, first in ((self._before, 0), (self._after, self._resume)):
            if 0 <= start - first <= start - first + count <= len(piece):
                return piece[start - first : start - first + count]
        raise ValueError("it points to bytes that are not in it")


class Dataset(NamedTuple):
    """Numbers or rows: `start` is the place of their first byte in the file, None for an empty dataset."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int | None


@dataclass(frozen=True, slots=True)
class _Message:
    kind: int
    flags: int
    data: memoryview


class File:
    """The root group of a file: `attributes` that are single numbers or texts, and `datasets` by name.

    Raises:
        ValueError: the layout is not that of a store's file; the message names the difference.
        struct.error, LookupError: the file ends too early.
    """

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._base = self._find_base()
        header = struct.unpack("<QQ", self._at(40 + 24, 16))[0]
        self._root = list(self._messages(header))
        self.attributes: dict[str, int | str] = {}
        for message in self._root:
            if message.kind == _ATTRIBUTE:
                self._read_attribute(_plain(message))

    def datasets(self) -> dict[str, Dataset]:
        """Return every dataset; the group may hold nothing else.

        Raises:
            As the class.
        """
        groups = [struct.unpack("<QQ", _plain(message)) for message in self._root if message.kind == _GROUP]
        if len(groups) != 1:
            raise ValueError("its group is not one that a store writes")
        tree, heap = groups[0]
        found: dict[str, Dataset] = {}
        for name, header in self._links(tree, heap):
            if name in found:
                raise ValueError(f"two datasets are called {name}")
            found[name] = self._dataset(name, header)
        return found

    def table(self, dataset: Dataset) -> NDArray[Any]:
        """Read the contents of a dataset.

        Raises:
            As the class.
        """
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        data = b"" if dataset.start is None else self._data.at(dataset.start, size)
        return np.ndarray(dataset.shape, dataset.dtype, data).copy()

    def _at(self, address: int, count: int) -> memoryview:
        return self._data.at(self._base + address, count)

    def _find_base(self) -> int:
        """Section II.A: superblock of version 0, with addresses and sizes of 8 bytes."""
        for base in _BASES:
            if base + 96 <= self._data.size and self._data.at(base, 8) == _SIGNATURE:
                head = self._data.at(base, 40)
                if bytes(head[8:15]) != b"\0\0\0\0\0\x08\x08" or struct.unpack("<Q", head[24:32])[0] != base:
                    raise ValueError("its superblock is not one that a store writes")
                return base
        raise ValueError("it is not an HDF5 file")

    def _messages(self, header: int) -> Iterator[_Message]:
        """Section IV.A.1.a: the messages of a version 1 object header and its continuations."""
        version, left, _, size = struct.unpack("<BxHII", self._at(header, 12))
        if version != 1:
            raise ValueError("its object headers are not those that a store writes")
        blocks = [(header + 16, size)]
        while blocks:
            start, size = blocks.pop(0)
            block, place = self._at(start, size), 0
            while place + 8 <= size and left:
                kind, length, flags = struct.unpack("<HHB", block[place : place + 5])
                message = _Message(kind, flags, block[place + 8 : place + 8 + length])
                if len(message.data) != length:
                    raise ValueError("a message is cut off")
                place, left = place + 8 + length, left - 1
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack("<QQ", _plain(message)))
                elif kind not in _SKIPPED:
                    yield message

    def _links(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """Section III.A.1, III.B, III.D: name and object header of each member of a group."""
        node = self._at(tree, 24)
        names = self._at(heap, 32)
        if bytes(node[:6]) != b"TREE\0\0" or bytes(names[:5]) != b"HEAP\0":
            raise ValueError("its group is not one that a store writes")
        size, _, start = struct.unpack("<QQQ", names[8:])
        texts = self._at(start, size)
        (children,) = struct.unpack("<H", node[6:8])
        left = _MOST_LINKS
        for child in range(children):
            (leaf,) = struct.unpack("<Q", self._at(tree + 32 + 16 * child, 8))
            head = self._at(leaf, 8)
            (count,) = struct.unpack("<H", head[6:])
            left -= count + 1
            if bytes(head[:5]) != b"SNOD\1" or left < 0:
                raise ValueError("its group is not one that a store writes")
            for number in range(count):
                name, header, cache = struct.unpack("<QQI", self._at(leaf + 8 + 40 * number, 20))
                if cache != 0:
                    raise ValueError("it has links that are not to a dataset in it")
                yield _decoded(_name_at(texts, name)), header

    def _dataset(self, name: str, header: int) -> Dataset:
        """Read a dataset from its three messages, each of which must occur once."""
        found: dict[int, memoryview] = {}
        for message in self._messages(header):
            if message.kind == _ATTRIBUTE:
                continue
            if message.kind in found or message.kind not in (_SPACE, _TYPE, _LAYOUT):
                what = _REFUSED.get(message.kind, f"a message of kind {message.kind}")
                raise ValueError(f"{name} has {what}")
            found[message.kind] = _plain(message)
        if len(found) != 3:
            raise ValueError(f"{name} is not a dataset")
        shape, (dtype, _) = _shape(found[_SPACE]), _dtype(found[_TYPE])
        version, kind, address, size = struct.unpack("<BBQQ", found[_LAYOUT][:18])
        if (version, kind) != (3, 1):
            raise ValueError(f"{name} is {_LAYOUTS.get(kind, 'laid out in another way')}, not contiguous")
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has a size that its shape does not have")
        if address == _UNDEFINED and size == 0:
            return Dataset(shape, dtype, None)
        if self._base + address + size > self._data.size:
            raise ValueError(f"{name} ends outside the file")
        return Dataset(shape, dtype, self._base + address)

    def _read_attribute(self, data: memoryview) -> None:
        """Section IV.A.2.m, version 1: read a number of 8 bytes or a text; skip any other attribute."""
        version, *sizes = struct.unpack("<BxHHH", data[:8])
        places = [8]
        for size in sizes:
            places.append(places[-1] + (size + 7) // 8 * 8)
        name, kind, space = (data[place : place + size] for place, size in zip(places, sizes, strict=False))
        value = data[places[-1] :]
        if version != 1 or len(space) != sizes[-1]:
            raise ValueError("its attributes are not those that a store writes")
        if _shape(space) != ():
            return
        if kind[0] == 0x19 and kind[1] == 1:
            self.attributes[_decoded(_name_at(name, 0))] = self._shared_text(value)
        elif kind[0] == 0x10 and (number := _dtype(kind)[0]).itemsize == 8:
            self.attributes[_decoded(_name_at(name, 0))] = int(np.ndarray((), number, value[:8]))

    def _shared_text(self, value: memoryview) -> str:
        """Section III.E: a text of variable length, stored in a global heap."""
        length, address, wanted = struct.unpack("<IQI", value[:16])
        signature, size = struct.unpack("<5s3xQ", self._at(address, 16))
        if signature != b"GCOL\1":
            raise ValueError("its texts are not those that a store writes")
        heap, place = self._at(address, size), 16
        while place + 16 <= size:
            number, taken = struct.unpack("<H6xQ", heap[place : place + 16])
            if number == 0:
                break
            if number == wanted:
                if not length <= taken <= size - place - 16:
                    break
                return _decoded(bytes(heap[place + 16 : place + 16 + length]))
            place += 16 + (taken + 7) // 8 * 8
        raise ValueError("a text of it is not there")


def _plain(message: _Message) -> memoryview:
    """The data of a message. Shared messages, which only refer to another place, are refused."""
    if message.flags & 2:
        raise ValueError("it has shared messages")
    return message.data


def _name_at(data: memoryview, start: int) -> bytes:
    """The NUL-terminated name at this place."""
    name, end, _ = bytes(data[start : start + _LONGEST_NAME]).partition(b"\0")
    if not end:
        raise ValueError("a name of it has no end")
    return name


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _shape(data: memoryview) -> tuple[int, ...]:
    """Section IV.A.2.b, version 1: the shape of a dataset; () for a single value."""
    version, rank = struct.unpack("<BB", data[:2])
    if version != 1 or rank > 2:
        raise ValueError("its shapes are not those that a store writes")
    return struct.unpack(f"<{rank}Q", data[8 : 8 + 8 * rank])


def _dtype(data: memoryview) -> tuple[np.dtype[Any], int]:
    """Section IV.A.2.d, version 1: a type, and the number of bytes of its description."""
    kind, (size,), bits = data[0], struct.unpack("<I", data[4:8]), bytes(data[1:4])
    if kind == 0x16 and size:
        return _rows(data, size, int.from_bytes(bits[:2], "little")), len(data)
    if kind == 0x13 and size and bits in (b"\x01\0\0", b"\x11\0\0"):  # NUL-padded ASCII or UTF-8
        return np.dtype(f"S{size}"), 8
    is_number = kind == 0x10 and size in (1, 2, 4, 8) and bits in (b"\0\0\0", b"\x08\0\0")
    if is_number and bytes(data[8:12]) == struct.pack("<HH", 0, 8 * size):
        return np.dtype(f"<{'i' if bits[0] else 'u'}{size}"), 12
    if kind == 0x11 and size in _FLOATS:
        name, properties, expected = _FLOATS[size]
        if (bits, bytes(data[8:20])) == (expected, properties):
            return np.dtype(name), 20
    raise ValueError("it has types that are not those that a store writes")


def _rows(data: memoryview, size: int, columns: int) -> np.dtype[Any]:
    """A compound type: consecutive columns of numbers and text."""
    names, types, offsets = [], [], []
    place, end = 8, 0
    for _ in range(columns):
        name = _name_at(data, place)
        place += (len(name) // 8 + 1) * 8
        offset, dimensions = struct.unpack("<IB", data[place : place + 5])
        place += 32
        if dimensions or data[place] == 0x16 or offset < end:
            raise ValueError("its columns are not those that a store writes")
        dtype, length = _dtype(data[place:])
        names.append(_decoded(name))
        types.append(dtype)
        offsets.append(offset)
        place, end = place + length, offset + dtype.itemsize
    if end > size:
        raise ValueError("its columns are not those that a store writes")
    return np.dtype({"names": names, "formats": types, "offsets": offsets, "itemsize": size})
