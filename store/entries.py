"""The rows of a file, kept as stored columns and made into objects on demand.

A screen shows fifty of the 46,000 spectra of a large model: making an object for each would take most of the time of
opening its store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import isnan
from operator import add
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankscope.engine.spectrum import DIRECTIONS, FACTORS, FACTORS_ALPHA, Projection, Run, Source

from .columns import DERIVED_INDEX, GENERATION, INDEX, METRICS, PARENT, RUN, SOURCE, Columns, Table
from .entry import Entry
from .rows import derived_at, entry_at, projection_at


class RowPlace(NamedTuple):
    """The values of a row: the index of the first one in the file, their number, and the checksum of their bytes."""

    first: int
    number: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a file (columns.py). `ranks` has one row per row of the index and one column per threshold;
    `parents` is None in files of format version 1."""

    index: Table
    sources: Table
    runs: Table
    ranks: NDArray[Any]
    thresholds: NDArray[Any]
    parents: Table | None = None

    def same(self, other: Tables) -> bool:
        """Whether all tables are equal to the bit."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return all(
            one is two
            or (one is not None and two is not None and one.dtype == two.dtype and one.tobytes() == two.tobytes())
            for one, two in pairs
        )


@dataclass(frozen=True, slots=True)
class Readings:
    """The tensors that rows were read from, where the file does not guarantee their content: `rows` are row numbers,
    `tensors` names of file and tensor (`tensor_name`), `digests` those of the tensors' bytes. The lists have one
    length."""

    rows: list[int]
    tensors: list[bytes]
    digests: list[bytes]


def tensor_name(identity: str, tensor: str) -> bytes:
    """The name of a tensor in the source file with this identity."""
    return f"{identity}\0{tensor}".encode("utf-8", "surrogatepass")


class Entries:
    """The entries of a file by row number."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        kinds = (INDEX if tables.parents is None else DERIVED_INDEX) | GENERATION
        self._index = Columns(kinds, tables.index)
        self._parents = None if tables.parents is None else Columns(PARENT, tables.parents)
        self._generations = self._index.stored("generation")

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same rows, to the bit."""
        return isinstance(other, Entries) and self._tables.same(other._tables)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, row: int) -> Entry:
        """Make the entry of a row; each call makes a new object.

        Raises:
            IndexError: there is no such row.
        """
        columns = self._index.row(row)
        parents, digests = self._made_of.get(row, ((), (columns["weights_digest"],)))
        ranks = dict(zip(self._thresholds, self._tables.ranks[row].tolist(), strict=True))
        projection = projection_at(columns, self._sources, derived_at(columns, parents))
        return entry_at(columns, projection, self._runs[columns["run_id"]], digests, ranks)

    def projection(self, row: int) -> Projection:
        """Make the projection of a row without the rest of its entry."""
        columns = self._index.row(row)
        parents, _ = self._made_of.get(row, ((), ()))
        return projection_at(columns, self._sources, derived_at(columns, parents))

    @cached_property
    def keys(self) -> list[str]:
        """The content keys by row."""
        return self._index.list_of("key")

    @cached_property
    def computed_at(self) -> list[str]:
        """The times of computation by row."""
        return self._index.list_of("computed_at")

    @cached_property
    def derived(self) -> list[int]:
        """The rows of derived matrices, which are not themselves in a checkpoint."""
        made = self._index.stored("null") != b""
        if self._tables.parents is not None:
            made = made | (self._index.stored("formula") != b"")
        found: list[int] = np.flatnonzero(made).tolist()
        return found

    @cached_property
    def twins(self) -> list[int]:
        """The rows of sign-flipped twins."""
        found: list[int] = np.flatnonzero(self._index.stored("null") != b"").tolist()
        return found

    @cached_property
    def directions(self) -> list[int]:
        """The rows that hold leading directions instead of spectra."""
        if self._tables.parents is None:
            return []
        formulas = self._index.list_of("formula")
        return [row for row in self.derived if formulas[row].partition("_")[0] == DIRECTIONS]

    @cached_property
    def products(self) -> list[int]:
        """The rows of matrices that their model stores as two factors."""
        if self._tables.parents is None:
            return []
        formulas = self._index.list_of("formula")
        return [row for row in self.derived if formulas[row] in (FACTORS, FACTORS_ALPHA)]

    @cached_property
    def weightings(self) -> dict[int, tuple[str, str]]:
        """Name and label of the weighting for each row that is a projection's spectrum under one."""
        if self._tables.parents is None:
            return {}
        further, names, labels = (self._index.list_of(name) for name in ("further", "weighting", "label"))
        return {row: (names[row], labels[row]) for row in self.derived if names[row] and not further[row]}

    @cached_property
    def gauges(self) -> dict[int, str]:
        """The gauge for each row that is a projection's spectrum in a gauge other than the raw one."""
        if self._tables.parents is None:
            return {}
        further, gauges = (self._index.list_of(name) for name in ("further", "gauge"))
        return {row: gauges[row] for row in self.derived if gauges[row] and not further[row]}

    def order(self, row: int) -> tuple[int, str]:
        """A sort key for the results of one content key: generation, then time of computation. The largest counts."""
        return int(self._generations[row]), self.computed_at[row]

    def ranks(self, threshold: float) -> Sequence[int | None]:
        """The threshold ranks by row; None where ranks at this threshold are not stored."""
        return self._ranks.get(threshold) or self._no_ranks

    def numbers(self, name: str) -> Sequence[float | None]:
        """A column of columns.METRICS by row; None where the number is missing."""
        return self._metrics[name]

    def place(self, row: int) -> RowPlace:
        """The place of a row's values."""
        offsets, counts, checksums = self._places
        return RowPlace(offsets[row], counts[row], checksums[row])

    def readings_of(self, row: int) -> list[tuple[bytes, bytes]]:
        """Tensor and digest of each reading of a row."""
        return self._readings_by_row.get(row, [])

    @cached_property
    def readings(self) -> Readings:
        """The readings of all rows."""
        found = Readings([], [], [])
        identities = [tensor_name(source.identity, "") for source in self._sources]
        for columns in filter(None, (self._index, self._parents)):
            digests = columns.stored("weights_digest")
            rows = np.flatnonzero(digests != b"")
            found.rows.extend((rows if columns is self._index else columns.stored("row")[rows]).tolist())
            sources = map(identities.__getitem__, columns.stored("source_id")[rows].tolist())
            found.tensors.extend(map(add, sources, columns.stored("tensor")[rows].tolist()))
            found.digests.extend(digests[rows].tolist())
        return found

    @cached_property
    def _readings_by_row(self) -> dict[int, list[tuple[bytes, bytes]]]:
        found: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        read = self.readings
        for row, tensor, digest in zip(read.rows, read.tensors, read.digests, strict=True):
            found[row].append((tensor, digest))
        return found

    @cached_property
    def _made_of(self) -> dict[int, tuple[tuple[Projection, ...], tuple[str, ...]]]:
        """The parents of each derived row, and the digests of their bytes."""
        found: dict[int, list[tuple[Projection, str]]] = defaultdict(list)
        for parent in () if self._parents is None else map(self._parents.row, range(len(self._parents))):
            found[parent["row"]].append((projection_at(parent, self._sources, None), parent["weights_digest"]))
        return {row: (tuple(p for p, _ in made), tuple(digest for _, digest in made)) for row, made in found.items()}

    @cached_property
    def _sources(self) -> list[Source]:
        columns = Columns(SOURCE, self._tables.sources)
        rows = map(columns.row, range(len(columns)))
        return [Source(**row | {"content_addressed": bool(row["content_addressed"])}) for row in rows]

    @cached_property
    def _runs(self) -> list[Run]:
        columns = Columns(RUN, self._tables.runs)
        return [Run(**columns.row(number)) for number in range(len(columns))]

    @cached_property
    def _places(self) -> tuple[list[int], list[int], list[int]]:
        return self._index.list_of("offset"), self._index.list_of("count"), self._index.list_of("crc32")

    @cached_property
    def _thresholds(self) -> list[float]:
        found: list[float] = self._tables.thresholds.tolist()
        return found

    @cached_property
    def _ranks(self) -> dict[float, list[int]]:
        return dict(zip(self._thresholds, self._tables.ranks.T.tolist(), strict=True))

    @cached_property
    def _no_ranks(self) -> list[None]:
        return [None] * len(self)

    @cached_property
    def _metrics(self) -> dict[str, list[float | None]]:
        columns = {name: self._index.list_of(name) for name in METRICS}
        return {name: [None if isnan(number) else number for number in column] for name, column in columns.items()}
