"""The zip archive that torch.save writes: its pickle, and where its storages lie, here or on a server.

The directory at the end of an archive says where the header of each record begins and how long the record is, but not
how long that header is: torch pads it so that the record begins at a multiple of 64. From the server we fetch what
comes before the first storage (the pickle) and after the last (the directory); where each storage begins is computed
from the start of the next record.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from ..errors import InputError
from .format import Ends
from .pickles import ZIP, bad_file, check_pickle, damaged

MAX_HEADER = 100_000_000
"""The most bytes that are fetched from each end; 100,000 tensors take 15 MB of pickle and 10 MB of directory."""
_MORE = 100_000
"""How many last bytes are fetched at first: the directory takes 60 to 100 bytes a tensor."""
_BEFORE = 4000
"""How many bytes are fetched before a longer directory, for the small records between the storages and it."""
_FIXED = struct.Struct("<4s22xHH")
"""The header of a record: its signature, and the lengths of the name and the padding that follow."""
_DESCRIBED = 8
"""The bit in the directory that says that the record's checksum and sizes follow the record too."""
_DESCRIPTORS = (16, 24)
"""The bytes that these take with sizes of 32 and of 64 bits. They differ by 8, so only one of them can lead to a record
that begins at a multiple of _ALIGNED."""
_ALIGNED = 16
_MOST_BETWEEN = 100_000
"""More than zipfile reads at once in search of the directory, which a comment of 65,535 bytes may follow."""
_LENGTH = struct.Struct("<Q")


class _Place(NamedTuple):
    """Where a storage lies: `key` is its name, `header` the first byte of its header."""

    key: str
    header: int
    begin: int
    end: int


class _ShortError(Exception):
    """Bytes of a file, from `begin` on, are needed but not at hand."""

    def __init__(self, begin: int) -> None:
        super().__init__()
        self.begin = begin


class _FileEnds(io.RawIOBase):
    """A file of `size` bytes of which only the last ones are at hand, or the first too; then up to _MOST_BETWEEN bytes
    between them are read as zeros."""

    def __init__(self, last: bytes, size: int, first: bytes = b"") -> None:
        self._last, self._size, self._first, self._at = last, size, first, 0

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        self._at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence], 0)
        return self._at

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        """See io.RawIOBase.

        Raises:
            _ShortError: the bytes are not at hand.
        """
        begin, behind = self._at, self._size - len(self._last)
        end = self._size if count is None or count < 0 else max(begin, min(begin + count, self._size))
        first = self._first[begin:end]
        last = self._last[max(begin - behind, 0) : max(end - behind, 0)]
        between = end - begin - len(first) - len(last)
        if between and (not self._first or between > _MOST_BETWEEN):
            raise _ShortError(begin)
        self._at = end
        return first + bytes(between) + last


def header_of(ends: Ends, size: int, file: Path) -> bytes:
    """The bytes before and after the storages of an archive of `size` bytes, for `opened`.

    Raises:
        InputError: it is damaged, not written by torch.save, or its directory does not tell where its records lie.
    """
    infos, directory = _directory(ends, size, file)
    check_records(file, infos)
    places = _places(infos, directory)
    if places is None:
        raise unread_in_part(file, "is an archive whose directory does not tell where its tensors begin")
    begin, behind = (places[0].begin, places[-1].end) if places else (size, size)
    if max(begin, size - behind) > MAX_HEADER:
        raise unread_in_part(file, f"holds more than {MAX_HEADER:,} bytes that are no tensors")
    before = ends.first(begin)[:begin]
    if places and _record_start(before, places[0].header) != begin:
        raise unread_in_part(file, "is an archive whose records lie elsewhere than its directory tells")
    return _LENGTH.pack(begin) + before + (ends.last(size - behind)[behind - size :] if behind < size else b"")


def opened(header: bytes, size: int) -> tuple[ZipFile, dict[str, tuple[int, int]]]:
    """The archive of `size` bytes of which `header_of` gave the header, and the offset and size of each storage by its
    name; only what is in the header can be read."""
    (count,) = _LENGTH.unpack_from(header)
    begin = _LENGTH.size + count
    archive = ZipFile(_FileEnds(header[begin:], size, header[_LENGTH.size : begin]))
    places = _places(_by_offset(archive), archive.start_dir) or []
    return archive, {place.key: (place.begin, place.end - place.begin) for place in places}


def storages_in(handle: BinaryIO, archive: ZipFile) -> dict[str, tuple[int, int]]:
    """Offset and size of the storages in a local archive, by their names; `handle` reads the same file.

    Raises:
        ValueError: a record is not at the place that the directory names.
    """
    found = {}
    for info in archive.infolist():
        if (key := _key(info)) and info.file_size:
            handle.seek(info.header_offset)
            header = handle.read(_FIXED.size)
            if not header.startswith(ZIP):
                raise ValueError("its records lie elsewhere than its directory says")
            found[key] = info.header_offset + _record_start(header, 0), info.file_size
    return found


def pickle_of(archive: ZipFile, file: Path, size: int) -> bytes:
    """The pickle of an archive of `size` bytes, checked; messages call it `file`.

    Raises:
        InputError: torch.save did not write it, or it needs more than tensors and containers.
    """
    infos = check_records(file, archive.infolist())
    if "byteorder" in infos and archive.read(infos["byteorder"]) != b"little":
        raise bad_file(file, "was saved on a big-endian machine: load it there and save it as safetensors")
    pickle = archive.read(infos["data.pkl"])
    check_pickle(file, io.BytesIO(pickle), size)
    return pickle


def check_records(file: Path, infos: Iterable[ZipInfo]) -> dict[str, ZipInfo]:
    """The records of an archive by name, without the archive's folder.

    Raises:
        InputError: torch.save did not write them, or they are compressed.
    """
    found = {info.filename.partition("/")[2]: info for info in infos}
    if "constants.pkl" in found:
        raise bad_file(file, "is a TorchScript program, which would have to be executed: save its state_dict()")
    if any(info.compress_type != ZIP_STORED or info.flag_bits & 1 for info in found.values()):
        raise damaged(file, "it is a compressed or encrypted zip file")
    if "data.pkl" not in found:
        raise bad_file(
            file, "is a zip archive that torch.save did not write: unpack it, and name the file with the weights"
        )
    return found


def unread_in_part(file: Path, what: str) -> InputError:
    """The error that says why a file cannot be listed on a server."""
    return bad_file(file, f"{what}: it cannot be read in part, use --download or name a copy of it here")


def _directory(ends: Ends, size: int, file: Path) -> tuple[list[ZipInfo], int]:
    """The records in the order of their places, and where the directory begins."""
    held = ends.last(_MORE)
    while True:
        try:
            with ZipFile(_FileEnds(held, size)) as archive:
                return _by_offset(archive), archive.start_dir
        except _ShortError as short:
            needed = size - short.begin
        except Exception as error:  # noqa: BLE001 - zipfile raises whatever bad bytes lead to
            raise damaged(file, str(error) or type(error).__name__) from None
        if needed > MAX_HEADER:
            raise unread_in_part(file, f"has a directory of more than {MAX_HEADER:,} bytes")
        held = ends.last(needed + _BEFORE)


def _key(info: ZipInfo) -> str:
    """The name of the storage in a record, "" if it holds none."""
    folder, _, key = info.filename.partition("/")[2].partition("/")
    return key if folder == "data" else ""


def _by_offset(archive: ZipFile) -> list[ZipInfo]:
    return sorted(archive.infolist(), key=lambda info: info.header_offset)


def _places(infos: Sequence[ZipInfo], directory: int) -> list[_Place] | None:
    """Where the storages lie of an archive with these records before its directory, [] if it has none; None if that
    cannot be told, or other records lie between them. One writer puts descriptors behind all non-empty records, or
    none.
    """
    numbers = [n for n, info in enumerate(infos) if _key(info)]
    if not numbers:
        return []
    described = {info.flag_bits & _DESCRIBED for info in (infos[n] for n in numbers) if info.file_size}
    if numbers[-1] - numbers[0] >= len(numbers) or infos[0].header_offset < 0 or len(described) > 1:
        return None
    following = [*(info.header_offset for info in infos[1:]), directory]
    found = [_place(infos[n], following[n]) for n in numbers]
    known = [place for place in found if place is not None]
    return known if len(known) == len(found) else None


def _place(info: ZipInfo, following: int) -> _Place | None:
    """Where a record lies, from `following`, where the next record or the directory begins; None if that is ambiguous.

    The rest of the room between them is padding, at most as much as a header can state.
    """
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    least = info.header_offset + _FIXED.size + len(name)
    if info.flag_bits & _DESCRIBED:
        begins = [following - length - info.file_size for length in _DESCRIPTORS]
        begins = [begin for begin in begins if begin % _ALIGNED == 0]
    else:
        begins = [following - info.file_size]
    fitting = [begin for begin in begins if 0 <= begin - least < 1 << 16]
    return (
        _Place(_key(info), info.header_offset, fitting[0], fitting[0] + info.file_size) if len(fitting) == 1 else None
    )


def _record_start(data: bytes, at: int) -> int:
    """Where the record begins whose header is at position `at` of these bytes."""
    _, name, padding = _FIXED.unpack_from(data, at)
    return at + _FIXED.size + int(name) + int(padding)
