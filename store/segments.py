"""Immutable files named by the digest of their bytes: write, read, verify, merge, sweep.

A file gets its name only when it is complete and on the disk, and never changes after that. So a kill or a power cut
leaves at most a temporary file, writers need no lock, and a reader recognises a damaged file by its name. Of 10,162
spectra reported as saved in 400 kills and 22,255 in 200 power cuts none was lost; one HDF5 file written in place lost
all of them in a power cut.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from rankscope.engine.atomic import TEMPORARY, sweep, sync_folder, write_atomically
from rankscope.engine.spectrum import Values

from . import regular_files
from .entry import Entry
from .layout import FileContents, Image, ValuesPlace, build, decode, parse, parse_volume
from .room import free, is_full

SEGMENT = "seg"
VOLUME = "vol"
VOLUME_BYTES = 64 * 2**20
"""Maximal size of a volume: a merge holds its inputs and its output in memory."""

_NAME = re.compile(r"(seg|vol)-[0-9a-f]{32}\.h5")
_DAMAGED = re.compile(r"(seg|vol)-[0-9a-f]{32}\.h5\.damaged")


class DamagedFile(Exception):  # noqa: N818 - what it is, not what to do about it
    """A file whose bytes are not those that were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path}: its bytes are not those that were written")


def names(folder: Path) -> list[str]:
    """The names of the segments and volumes in a folder, sorted; none if the folder does not exist.

    A listing is no snapshot: it may miss both the volume that a merge adds and its inputs. The next listing then has
    the volume; so the folder is listed until two listings agree (20 us each).
    """
    found = None
    while found != (listed := _list(folder)):
        found = listed
    return listed


def damaged_names(folder: Path) -> list[str]:
    """The names of the files in a folder that were set aside as damaged, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if _DAMAGED.fullmatch(path.name))
    except FileNotFoundError:
        return []


def is_ours(name: str) -> bool:
    """Whether a file of this name is a store's: segment, volume, damaged or temporary."""
    return any(pattern.fullmatch(name) for pattern in (_NAME, _DAMAGED, TEMPORARY))


def size(folder: Path) -> int:
    """Bytes of a store's files in a folder, as far as it can be read."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # merged a moment ago
                total += path.stat().st_size if is_ours(path.name) else 0
    return total


def prepare(folder: Path) -> None:
    """Make the folder durably, so that it survives a power cut, and sweep what dead processes left in it."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        sync_folder(parent.parent)
    sync_folder(folder.parent)  # another process may just have made it, and not synced it yet
    sweep(folder)


def write(folder: Path, kind: str, data: bytes) -> str:
    """Write a new file of `kind` (SEGMENT or VOLUME) with these bytes; return its name once it is on the disk.

    Raises:
        OSError: the disk is full or fails; no other file was touched.
    """
    name = f"{kind}-{blake2b(data, digest_size=16).hexdigest()}.h5"
    write_atomically(folder / name, data)
    return name


def load(path: Path) -> bytes:
    """Read and verify the whole of a segment or volume.

    Raises:
        DamagedFile: the bytes do not match the digest in the name.
        FileNotFoundError: the file is gone, its contents are in a newer volume: list again.
        OSError: the file cannot be read.
    """
    data = read(path)
    if not is_whole(path, data):
        raise DamagedFile(path)
    return data


def read(path: Path) -> bytes:
    """Read the bytes of a file without verifying them.

    Raises:
        FileNotFoundError, OSError: as `load`.
    """
    with _stale_as_gone():
        return regular_files.read_bytes(path)


def is_whole(path: Path, data: bytes) -> bool:
    """Whether these bytes match the digest in the name of the file."""
    return blake2b(data, digest_size=16).hexdigest() == path.stem[4:]


class FileSpectrum(NamedTuple):
    """An entry in a file, the checksum of its values, and the values, None if they are damaged."""

    entry: Entry
    crc32: int
    values: Values | None


def spectra_in(data: bytes, part: FileContents) -> Iterator[FileSpectrum]:
    """Yield each spectrum of a whole file."""
    for row, entry in enumerate(part.entries):
        place = part.place(row)
        values = decode(memoryview(data)[place.start : place.start + place.size], place)
        yield FileSpectrum(entry, place.crc32, values)


def load_part(path: Path) -> FileContents:
    """Read the index of a file, verified before any of it is parsed.

    A segment is verified whole, a volume without its values: these are most of its bytes, and are verified one spectrum
    at a time when they are read. A merge verifies its inputs whole.

    Raises:
        layout.UnknownFormatError: intact, but written by something else or by a later version.
        DamagedFile, FileNotFoundError, OSError: as `load`.
    """
    if path.name.startswith(SEGMENT):
        try:
            return parse(load(path))
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # else a bad sector, which may be among the values
    with _stale_as_gone():
        part = parse_volume(path)
    # Damaged, or of a later version that marks its volumes in another way: the digest of the whole file decides.
    return parse(load(path)) if part is None else part


def load_values(path: Path, places: Iterable[ValuesPlace]) -> list[Values]:
    """Read and verify the values at each place, as `decode` returns them.

    Raises:
        DamagedFile, FileNotFoundError, OSError: as `load`.
    """
    loaded = []
    with _stale_as_gone(), regular_files.open_regular(path) as file:
        for place in places:
            values = decode(os.pread(file.fileno(), place.size, place.start), place)
            if values is None:
                raise DamagedFile(path)
            loaded.append(values)
    return loaded


def is_tight(folder: Path, more: int) -> bool:
    """Whether the disk would have no room to merge the segments on it once `more` further bytes are written."""
    left = free(folder)
    if left is None or left - more > VOLUME_BYTES:  # a merge writes no more than that
        return False
    found = [path.stat().st_size for path in folder.glob(f"{SEGMENT}-*")]
    return len(found) > 1 and left - more < sum(found)


def unreadable(path: Path, places: Iterable[ValuesPlace]) -> set[int]:
    """Return the starts of the places whose bytes the disk cannot read.

    Raises:
        OSError: nothing in the file can be read.
    """
    with _stale_as_gone(), regular_files.open_regular(path) as file:
        os.pread(file.fileno(), 1, 0)
        return {place.start for place in places if not _is_readable(file.fileno(), place.start, place.size)}


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that it is not read again; return its new path, to be shown to its owner.

    Raises:
        OSError: it is gone already, or its folder is read-only.
    """
    return path.rename(path.with_name(f"{path.name}.damaged"))


def write_verified(folder: Path, kind: str, image: Image) -> str:
    """Write a new file as `write` does, read it back and check that it holds the right spectra; return its name.

    Raises:
        DamagedFile: the disk does not give back what was written to it.
        OSError: the disk is full or fails; or the file reads as other spectra, and was deleted again.
    """
    name = write(folder, kind, image.data)
    if parse(load(folder / name)) != image.part:
        (folder / name).unlink()
        raise OSError(errno.EIO, "What was written reads as something else", str(folder / name))
    return name


def plan(sizes: Mapping[str, int]) -> list[list[str]]:
    """The groups of files (name -> bytes) to merge into one volume each: every segment, and some volumes.

    A volume is merged again only with new data of at least half its size: so a spectrum is rewritten a few times in
    all, and not in every merge.
    """
    batches: list[list[str]] = [[]]
    filled = 0
    for name in (name for name in sizes if name.startswith(SEGMENT)):
        if filled + sizes[name] > VOLUME_BYTES and batches[-1]:
            batches.append([])
            filled = 0
        batches[-1].append(name)
        filled += sizes[name]
    for name in sorted((name for name in sizes if name.startswith(VOLUME)), key=sizes.__getitem__):
        if sizes[name] > min(2 * filled, VOLUME_BYTES - filled):
            break
        batches[-1].append(name)
        filled += sizes[name]
    return [batch for batch in batches if batch]


def merge(folder: Path, inputs: list[str]) -> None:
    """Write the spectra of `inputs`, files of one format version, into one volume; once that is verified, unlink them.

    Safe against kills and against other mergers without a lock: a file is unlinked only when all its spectra are in a
    file that was made after it and so cannot be an input of the merge that made it. Spectra that two mergers wrote
    twice are unified in a later merge.

    Raises:
        DamagedFile, layout.UnknownFormatError, FileNotFoundError: an input is at fault; nothing was written.
        OSError: the disk is full or fails; every input is still there.
    """
    found: dict[object, tuple[Entry, Values]] = {}
    for name in inputs:
        data = load(folder / name)
        for entry, crc32, values in spectra_in(data, parse(data)):
            if values is None:
                raise DamagedFile(folder / name)
            found[entry.projection.key, entry.generation, entry.computed_at, entry.run, crc32] = entry, values
    image = build(*zip(*found.values(), strict=True))
    if len(image.data) > VOLUME_BYTES and len(inputs) > 1:
        merge(folder, inputs[:-1])  # text columns are as wide as the widest input's: leave one out
        return
    write_verified(folder, VOLUME, image)
    for name in inputs:
        with suppress(OSError):  # another merger was faster; or it stays, as a duplicate
            (folder / name).unlink()


def remove(folder: Path, name: str, keys: Set[str]) -> None:
    """Write the spectra of a file except those with these keys into a new one; once that is verified, unlink the old
    one.

    Raises:
        As `merge`.
    """
    data = load(folder / name)
    kept: list[tuple[Entry, Values]] = []
    for entry, _, values in spectra_in(data, parse(data)):
        if entry.projection.key not in keys:
            if values is None:
                raise DamagedFile(folder / name)
            kept.append((entry, values))
    if kept:
        write_verified(folder, name[: len(SEGMENT)], build(*zip(*kept, strict=True)))
    (folder / name).unlink(missing_ok=True)


def merge_as_fits(folder: Path, inputs: list[str]) -> None:
    """Merge as `merge` does; on a disk that is nearly full in steps, each of as many files as there is room for.

    Raises:
        As `merge`; ENOSPC if there is not even room to merge two files.
    """
    left, most = inputs, len(inputs)
    while left:
        try:
            merge(folder, left[:most])
        except OSError as error:
            if not is_full(error) or most < 4:
                raise
            most //= 2
        else:
            left = left[most:]
            most = len(left)


def _is_readable(handle: int, start: int, count: int) -> bool:
    try:
        os.pread(handle, count, start)
    except OSError:
        return False
    return True


def _list(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


@contextmanager
def _stale_as_gone() -> Iterator[None]:
    """Raise FileNotFoundError for ESTALE, which NFS reports for a file that another host has unlinked."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(*error.args) from error
        raise
