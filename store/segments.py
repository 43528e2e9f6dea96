"""Immutable files named by the digest of their bytes: write, read, verify, merge, sweep.

A file appears under its name only when it is complete and on the disk, and never changes after
that; so a kill or a power cut leaves at most a temporary file, writers need no lock, and a reader
knows a damaged file by its name alone. Of 10,162 spectra reported as saved in 400 kills and 22,255
in 200 power cuts none was lost; one HDF5 file written in place lost all of them in a power cut.
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
"""A volume is at most this large: a merge holds its inputs and its output in memory."""

_NAME = re.compile(r"(seg|vol)-[0-9a-f]{32}\.h5")
_DAMAGED = re.compile(r"(seg|vol)-[0-9a-f]{32}\.h5\.damaged")


class DamagedFile(Exception):  # noqa: N818 - what it is, not what to do about it
    """A file whose bytes are not those that were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path}: its bytes are not those that were written")


def names(folder: Path) -> list[str]:
    """The segments and volumes in a folder, sorted; none where there is no folder.

    A listing is no snapshot: it may miss the volume that a merge adds and its inputs as well. The
    next one then sees the volume; so the folder is listed until two listings agree (20 us each).
    """
    found = None
    while found != (listed := _list(folder)):
        found = listed
    return listed


def damaged_names(folder: Path) -> list[str]:
    """The files in a folder that were set aside as damaged, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if _DAMAGED.fullmatch(path.name))
    except FileNotFoundError:
        return []


def is_ours(name: str) -> bool:
    """Whether a store wrote the file of this name: segment, volume, damaged or temporary."""
    return any(pattern.fullmatch(name) for pattern in (_NAME, _DAMAGED, TEMPORARY))


def size(folder: Path) -> int:
    """Bytes of the files in a folder that a store wrote, as far as it can be read."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # merged a moment ago
                total += path.stat().st_size if is_ours(path.name) else 0
    return total


def prepare(folder: Path) -> None:
    """Make the folder, so that it outlives a power cut, and sweep what dead processes left in it."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        sync_folder(parent.parent)
    sync_folder(folder.parent)  # another process may have made it a moment ago, and not synced yet
    sweep(folder)


def write(folder: Path, kind: str, data: bytes) -> str:
    """A new file of `kind` (SEGMENT or VOLUME) with these bytes; its name, once it is on the disk.

    Raises:
        OSError: the disk is full or fails; no other file was touched.
    """
    name = f"{kind}-{blake2b(data, digest_size=16).hexdigest()}.h5"
    write_atomically(folder / name, data)
    return name


def load(path: Path) -> bytes:
    """The bytes of a segment or volume, verified whole.

    Raises:
        DamagedFile: they are not the bytes that the name promises.
        FileNotFoundError: the file is gone, its contents are in a newer volume: list again.
        OSError: the file cannot be read.
    """
    data = read(path)
    if not is_whole(path, data):
        raise DamagedFile(path)
    return data


def read(path: Path) -> bytes:
    """The bytes of a file, whatever they are.

    Raises:
        FileNotFoundError, OSError: as `load`.
    """
    with _gone():
        return regular_files.read_bytes(path)


def is_whole(path: Path, data: bytes) -> bool:
    """Whether these are the bytes that the name of the file promises."""
    return blake2b(data, digest_size=16).hexdigest() == path.stem[4:]


class FileSpectrum(NamedTuple):
    """An entry as it lies in a file: the checksum of its values, and these, None where they are damaged."""

    entry: Entry
    crc32: int
    values: Values | None


def spectra_in(data: bytes, part: FileContents) -> Iterator[FileSpectrum]:
    """Each spectrum of a whole file."""
    for row, entry in enumerate(part.entries):
        place = part.place(row)
        values = decode(memoryview(data)[place.start : place.start + place.size], place)
        yield FileSpectrum(entry, place.crc32, values)


def load_part(path: Path) -> FileContents:
    """The index of a file, verified before a byte of it is parsed.

    A segment is verified whole, a volume without its values: they are most of its bytes, and are
    verified one spectrum at a time when they are read. A merge verifies its inputs whole.

    Raises:
        layout.UnknownFormatError: intact, but written by something else or by a later version.
        DamagedFile, FileNotFoundError, OSError: as `load`.
    """
    if path.name.startswith(SEGMENT):
        try:
            return parse(load(path))
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # else a sector that may lie among the values
    with _gone():
        part = parse_volume(path)
    # Damaged, or of a later version that marks its volumes in another way: the whole digest tells.
    return parse(load(path)) if part is None else part


def load_values(path: Path, places: Iterable[ValuesPlace]) -> list[Values]:
    """The values at each place, as `decode` gives them, verified.

    Raises:
        DamagedFile, FileNotFoundError, OSError: as `load`.
    """
    loaded = []
    with _gone(), regular_files.open_regular(path) as file:
        for place in places:
            values = decode(os.pread(file.fileno(), place.size, place.start), place)
            if values is None:
                raise DamagedFile(path)
            loaded.append(values)
    return loaded


def is_tight(folder: Path, more: int) -> bool:
    """Whether, after so many bytes more, a disk would have no room to merge the segments that it holds."""
    left = free(folder)
    if left is None or left - more > VOLUME_BYTES:  # a merge writes no more than that
        return False
    found = [path.stat().st_size for path in folder.glob(f"{SEGMENT}-*")]
    return len(found) > 1 and left - more < sum(found)


def unreadable(path: Path, places: Iterable[ValuesPlace]) -> set[int]:
    """Where those of these places start whose bytes the disk does not give back.

    Raises:
        OSError: it gives back nothing of the file.
    """
    with _gone(), regular_files.open_regular(path) as file:
        os.pread(file.fileno(), 1, 0)
        return {place.start for place in places if not _gives(file.fileno(), place.start, place.size)}


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nobody reads it again; where it stands now, for its owner to see.

    Raises:
        OSError: it is gone already, or stands in a folder that can only be read.
    """
    return path.rename(path.with_name(f"{path.name}.damaged"))


def write_verified(folder: Path, kind: str, image: Image) -> str:
    """A new file, as `write`, that was read back and holds what it should.

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
    """Which files (name -> bytes) to merge into one volume each: every segment, and some volumes.

    A volume is merged again only with at least half its size in new data: so a spectrum is
    rewritten a few times in its life, and not once in every merge.
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

    Safe against kills and against other mergers without a lock: a file is unlinked only when one
    that was made after it, and therefore never is an input of a merge that made it, holds all its
    spectra. Spectra that two mergers wrote twice become one again.

    Raises:
        DamagedFile, layout.UnknownFormatError, FileNotFoundError: of an input; nothing was written.
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
        merge(folder, inputs[:-1])  # every text column is as wide as the widest input's: leave one out
        return
    write_verified(folder, VOLUME, image)
    for name in inputs:
        with suppress(OSError):  # another merger was faster; or it stays, and is a duplicate
            (folder / name).unlink()


def remove(folder: Path, name: str, keys: Set[str]) -> None:
    """Write the spectra of a file but those of these keys into a new one; once that is verified, unlink it.

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
    """`merge`, on a disk that is nearly full in steps: of as many files at once as there is room for.

    Raises:
        As `merge`; what is full by then has not room for two.
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


def _gives(handle: int, start: int, count: int) -> bool:
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
def _gone() -> Iterator[None]:
    """NFS says ESTALE for a file that another host has unlinked."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(*error.args) from error
        raise
