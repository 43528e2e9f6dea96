"""The HDF5 layout of one file, and the only module that writes with libhdf5.

An image is built in memory, because libhdf5 crashed on a full disk. It is read by a strict reader (hdf5.py) after its
bytes have been verified: flipped bits crashed or hung libhdf5, and a file may have been made with that intent.

Nothing is compressed in the store (reading would be 5 times slower); exports are.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from itertools import accumulate, count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np

from rankscope.engine.spectrum import THRESHOLDS, Projection, Values

from . import regular_files
from .checks import check
from .columns import DERIVED, GENERATION, INDEX, PARENT, RUN, SOURCE, pack
from .entries import Entries, Tables
from .entry import Entry
from .hdf5 import Bytes, File
from .rows import derived_row, fields, index_row, parent_rows

h5: Any = h5py  # h5py has no types

_number = count()  # HDF5 refuses two open images of one name, in whatever threads

FORMAT = "rankscope-spectra"
FORMAT_VERSION = 1
DERIVED_VERSION = 2
"""The version of files with derived rows other than sign-flipped twins; older programs do not know these and skip the
file."""
DIRECTIONS_VERSION = 3
"""The version of files with leading directions, which are no spectra; older programs do not know these and skip the
file."""
READABLE = (FORMAT_VERSION, DERIVED_VERSION, DIRECTIONS_VERSION)

HEAD = 512
"""Size of the HDF5 user block in bytes. It holds the place of /values and a digest of everything else.

So a volume of 64 MB is safe to parse after reading the few MB that are not values; the values are checked one spectrum
at a time, against the crc32 in the index.
"""

_PROSE = """\
Singular values of the weight matrices of a neural network. Row n of /index is a matrix; its singular
values, in descending order and in the units of the weights, are /values[offset : offset + count]
(zero-based). /rank_table[n, j] is the smallest k whose k largest values hold /rank_threshold[j] of the
sum of squares. source_id and run_id are zero-based rows of /sources (files) and /runs (provenance).
slice_axis -1: the whole tensor; otherwise that axis is reshaped to (slice_groups, rest) and slots
slice_offset to slice_offset + slice_width of every group are the matrix, of a 3-D tensor in its matrix
number slice_index, or (slice_index -1) in all of it as (size, rest). slice_axis 2: the matrices of a
3-D tensor below one another; 3: each transposed before that. layer, expert -1 and tower "": none.
NaN: undefined. crc32 is of the values' bytes. Text is UTF-8, padded with NUL.
null "": the matrix itself; "flip": for comparison, its absolute values under random signs. Entry n, row
by row as stored, is negative where bit n is 1 of the 64-bit words, lowest bit first, that
numpy.random.PCG64(int(key, 16)).random_raw(number of words) gives.
"""
_DERIVED_PROSE = """\
formula: what makes the matrix of others, which are the rows of /parents whose `row` is its zero-based
row of /index, in that order; "": the matrix itself. weights_digest is then theirs. Each parent is turned
to (output, input) before. label: what that is, in words; operands: digests of the other numbers it takes.
further 1: a matrix beside those of the model; 0: another state of the matrix at that address, under a
weighting, in a gauge, "" for none. Under a weighting the values are those of W C^1/2, C the second moment of
the input; clipped: the share of its trace in negative eigenvalues, which count as 0; formula noise_...: of
Gaussian noise of the shape (rows, cols) in the place of W.
"""
_DIRECTIONS_PROSE = """\
Leading singular directions of the weight matrices of a neural network. Row n of /index is those of the matrix W of
shape (rows, cols) in its row of /parents; /directions[offset : offset + count] (zero-based, float32) are, with
k = min(8, rows, cols) and count = k (1 + rows + cols) + rows + cols: k singular values, descending, in the units of the
weights; k left vectors of `rows` numbers each; k right vectors of `cols` numbers each; the norms of all rows; those of
all columns. /rank_table holds nothing. error_bound bounds |W v - sigma u| and |W^T u - sigma v|, before the rounding to
float32. Where formula is directions_ and another formula, W is what that makes of the matrices in /parents, see files
of format version 2. The other columns are as in files of format versions 1 and 2. Text is UTF-8, padded with NUL.
"""
_GENERATION_PROSE = """\
generation: of several rows of one key the highest generation counts, and of these the newest computed_at.
"""
_PYTHON = """\
Python:
    f = h5py.File(path, "r"); index = [i for i in f["index"][:] if not i["null"]]
    spectra = {i["address"].decode(): f["values"][i["offset"] : i["offset"] + i["count"]] for i in index}
"""
_DERIVED_PYTHON = """\
Python:
    f = h5py.File(path, "r"); index = [(i["address"].decode(), i["label"].decode(), i) for i in f["index"][:]]
    spectra = {(a, label): f["values"][i["offset"] : i["offset"] + i["count"]] for a, label, i in index}
"""
_DIRECTIONS_PYTHON = """\
Python:
    f = h5py.File(path, "r"); i = f["index"][0]; k = min(8, i["rows"], i["cols"])
    numbers = f["directions"][i["offset"] : i["offset"] + i["count"]]
    sigma = numbers[:k]; u = numbers[k : k + k * i["rows"]].reshape(k, i["rows"])
"""
_MATLAB = """\
MATLAB:
    index = h5read(path, '/index'); n = 1;
    spectrum = h5read(path, '/values', double(index.offset(n)) + 1, double(index.count(n)));
"""


class UnknownFormatError(Exception):
    """An intact file that this version cannot read; the message is a sentence for the user."""


_VALUE_BYTES = 8
"""Bytes per singular value; the numbers of directions take fewer."""


class ValuesPlace(NamedTuple):
    """The place of an entry's values in its file: first byte, number of values, checksum of their bytes, and bytes per
    value."""

    start: int
    number: int
    crc32: int
    width: int = _VALUE_BYTES

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self.width * self.number


@dataclass(frozen=True, slots=True)
class FileContents:
    """The contents of one file. `first` is the byte at which the values of all entries begin."""

    entries: Entries
    first: int
    version: int

    def place(self, row: int) -> ValuesPlace:
        """The place of a row's values."""
        place = self.entries.place(row)
        width = np.dtype(_type_in(self.version)).itemsize
        return ValuesPlace(self.first + width * place.first, place.number, place.crc32, width)


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of one file, and the contents that parsing them would return."""

    data: bytes
    part: FileContents


def version_of(projection: Projection) -> int:
    """The format version of the files that hold this projection's spectrum."""
    if projection.is_directions:
        return DIRECTIONS_VERSION
    return FORMAT_VERSION if projection.derived is None or projection.null else DERIVED_VERSION


def _dataset_in(version: int) -> str:
    """The name of the dataset that holds the concatenated numbers of all rows."""
    return "directions" if version == DIRECTIONS_VERSION else "values"


def _type_in(version: int) -> str:
    """The type of the numbers in that dataset."""
    return "<f4" if version == DIRECTIONS_VERSION else "<f8"


def build(entries: Sequence[Entry], values: Sequence[Values]) -> Image:
    """Build one file of the store, with entries of one format version; `values[i]` as in Spectrum."""
    with h5.File(next_image(), "w", driver="core", backing_store=False, userblock_size=HEAD) as file:
        tables = _fill(file, entries, values, {})
        file.flush()
        # Addresses in the image count the user block, but the image does not contain it.
        body: bytes = file.id.get_file_image()
        numbers = file[_dataset_in(_version(entries))].id
        first = numbers.get_offset() or HEAD
        size: int = numbers.get_storage_size()
    rest = _digest(body[: first - HEAD], body[first - HEAD + size :])
    head = f"{FORMAT} {first} {size} {rest}\n".encode().ljust(HEAD, b"\0")
    return Image(head + body, FileContents(Entries(tables), first, _version(entries)))


def build_compressed(entries: Sequence[Entry], values: Sequence[Values]) -> bytes:
    """Build the same layout for an export: gzip and shuffle, no user block."""
    with h5.File(next_image(), "w", driver="core", backing_store=False) as file:
        packed = {"compression": "gzip", "shuffle": True} if any(len(v) for v in values) else {}
        _fill(file, entries, values, packed)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def parse(data: bytes) -> FileContents:
    """Parse a whole file whose digest has been verified.

    Raises:
        UnknownFormatError: another format or format version.
    """
    return _contents(Bytes(data))


def parse_volume(path: Path) -> FileContents | None:
    """Parse a large file without reading its values; None if it is damaged.

    Everything that is parsed is first verified against the user block (3 MB of a volume of 64 MB).

    Raises:
        UnknownFormatError: another format or format version.
        OSError: the file is gone or cannot be read.
    """
    with regular_files.open_regular(path) as raw:
        return _without_values(raw)


def parse_damaged(data: bytes) -> FileContents | None:
    """Parse a whole file whose digest is wrong; None unless the damage is confined to its values.

    Raises:
        UnknownFormatError: another format or format version.
    """
    return _without_values(io.BytesIO(data)) if data.startswith(f"{FORMAT} ".encode()) else None


def decode(raw: bytes | memoryview, place: ValuesPlace) -> Values | None:
    """Decode the stored bytes of a place into a read-only array of shape (number,), float64, or float32 for directions.
    None if they are damaged or cannot be singular values: negative, infinite or NaN."""
    if len(raw) != place.size or zlib.crc32(raw) != place.crc32:
        return None
    values: Values = np.frombuffer(raw, f"<f{place.width}")
    is_spectrum = place.width == _VALUE_BYTES and place.number
    return None if is_spectrum and not 0 <= values.min() <= values.max() < np.inf else values


def _without_values(raw: BinaryIO | io.FileIO) -> FileContents | None:
    """Parse a file without its values; None if the digest in its user block does not match."""
    head = raw.read(HEAD)
    fields = head.rstrip(b"\0").split()
    if len(fields) != 4 or not (fields[1] + fields[2]).isdigit():
        return None
    first, size = int(fields[1]), int(fields[2])
    if not HEAD <= first <= first + size <= raw.seek(0, io.SEEK_END):
        return None
    raw.seek(HEAD)
    before = raw.read(first - HEAD)
    raw.seek(first + size)
    after = raw.read()
    if _digest(before, after).encode() != fields[3]:
        return None
    return _contents(Bytes(head + before, after, first + size))


def _fill(file: Any, entries: Sequence[Entry], values: Sequence[Values], packed: Mapping[str, object]) -> Tables:
    """Write every dataset and attribute; return the tables."""
    version = _version(entries)
    kind = _type_in(version)
    flat = np.concatenate([np.zeros(0, kind), *values]).astype(kind, copy=False)
    file.create_dataset(_dataset_in(version), data=flat, **packed).attrs["units"] = "1"
    tables = _tables_of(entries, values, version)
    _write_tables(file, tables)
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = version
    file.attrs["software"] = software()
    # To the microsecond: every file gets a different name, so no merge can overwrite one of its inputs.
    file.attrs["created_at"] = datetime.now(UTC).isoformat(timespec="microseconds")
    has_generations = not GENERATION.keys().isdisjoint(tables.index.dtype.names or ())
    file.attrs["description"] = _description(version, has_generations)
    return tables


def _tables_of(entries: Sequence[Entry], values: Sequence[Values], version: int) -> Tables:
    """The tables of a file with these entries."""
    crc32 = [zlib.crc32(v.astype(_type_in(version)).tobytes()) for v in values]
    every = (p.source for entry in entries for p in (entry.projection, *entry.projection.parents))
    sources = {source: n for n, source in enumerate(dict.fromkeys(every))}
    runs = {run: n for n, run in enumerate(dict.fromkeys(e.run for e in entries))}
    places = zip(_offsets(values), map(len, values), crc32, strict=True)
    rows = [
        index_row(entry) + place + (sources[entry.projection.source], runs[entry.run])
        for entry, place in zip(entries, places, strict=True)
    ]
    columns = INDEX
    if version != FORMAT_VERSION:
        columns = columns | DERIVED
        rows = [row + derived_row(entry) for row, entry in zip(rows, entries, strict=True)]
    if any(entry.generation for entry in entries):
        columns = columns | GENERATION
        rows = [(*row, entry.generation) for row, entry in zip(rows, entries, strict=True)]
    ranks = [[entry.ranks[threshold] for threshold in THRESHOLDS] for entry in entries]
    return Tables(
        index=pack(columns, rows),
        sources=pack(SOURCE, [fields(source, SOURCE) for source in sources]),
        runs=pack(RUN, [fields(run, RUN) for run in runs]),
        ranks=np.array(ranks, "<u4").reshape(-1, len(THRESHOLDS)),
        thresholds=np.array(THRESHOLDS, "<f8"),
        parents=None if version == FORMAT_VERSION else pack(PARENT, parent_rows(entries, sources)),
    )


def _write_tables(file: Any, tables: Tables) -> None:
    """Write every table; the index and the thresholds are the dimension scales of the table of ranks."""
    index = file.create_dataset("index", data=tables.index)
    if tables.parents is not None:
        file.create_dataset("parents", data=tables.parents)
    file.create_dataset("sources", data=tables.sources)
    file.create_dataset("runs", data=tables.runs)
    table = file.create_dataset("rank_table", data=tables.ranks)
    axis = file.create_dataset("rank_threshold", data=tables.thresholds)
    for dimension, scale, label in ((table.dims[0], index, "projection"), (table.dims[1], axis, "threshold")):
        scale.make_scale(label)
        dimension.attach_scale(scale)
        dimension.label = label


def _description(version: int, has_generations: bool) -> str:
    """An explanation of the layout, and how to read it, for a stranger who has only the file."""
    generations = _GENERATION_PROSE if has_generations else ""
    if version == FORMAT_VERSION:
        return _PROSE + generations + _PYTHON + _MATLAB
    if version == DIRECTIONS_VERSION:
        return _DIRECTIONS_PROSE + _DERIVED_PROSE + generations + _DIRECTIONS_PYTHON
    return _PROSE + _DERIVED_PROSE + generations + _DERIVED_PYTHON + _MATLAB


def _contents(data: Bytes) -> FileContents:
    with _as_unknown_format():
        file = File(data)
        if file.attributes.get("format") != FORMAT:
            raise UnknownFormatError("It is not a file of spectra.")
        found = int(file.attributes["format_version"])
        if found not in READABLE:
            known = " and ".join(filter(None, [", ".join(map(str, READABLE[:-1])), str(READABLE[-1])]))
            raise UnknownFormatError(f"It has format version {found}; this version of rankscope reads {known}.")
        datasets = file.datasets()
        tables = Tables(
            index=file.table(datasets["index"]),
            sources=file.table(datasets["sources"]),
            runs=file.table(datasets["runs"]),
            ranks=file.table(datasets["rank_table"]),
            thresholds=file.table(datasets["rank_threshold"]),
            parents=file.table(datasets["parents"]) if found != FORMAT_VERSION else None,
        )
        numbers = datasets[_dataset_in(found)]
        if numbers.dtype != np.dtype(_type_in(found)):
            raise ValueError(f"{_dataset_in(found)} holds other numbers")
        check(tables, numbers.shape[0], is_directions=found == DIRECTIONS_VERSION)
        return FileContents(Entries(tables), numbers.start or HEAD, found)


def _version(entries: Sequence[Entry]) -> int:
    return max((version_of(entry.projection) for entry in entries), default=FORMAT_VERSION)


def _offsets(values: Sequence[Values]) -> list[int]:
    """The start of each array in their concatenation, in elements."""
    return [0, *accumulate(map(len, values))][:-1]


def _digest(*parts: bytes) -> str:
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


@contextmanager
def _as_unknown_format() -> Iterator[None]:
    """Turn any error in parsing verified bytes that this program did not write into one sentence."""
    try:
        yield
    except UnknownFormatError:
        raise
    except (LookupError, ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise UnknownFormatError(f"It cannot be read as a file of spectra ({error}).") from error


def next_image() -> str:
    """A unique name for an image in memory."""
    return f"image-{next(_number)}"


@cache
def software() -> str:
    """The name of this program and its version."""
    return f"rankscope-tui {version('rankscope-tui')}"
