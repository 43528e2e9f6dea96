"""Entries as rows of the tables of a file, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from math import isnan
from typing import Any

import numpy as np

from rankscope.engine.spectrum import FLIPPED, Derived, Operand, Projection, Provenance, Run, Slice, Source

from .columns import (
    DERIVED,
    DERIVED_INDEX,
    GENERATION,
    INDEX,
    METRICS,
    PARENT,
    PROVENANCE,
    RUN,
    SOURCE,
    Row,
    Table,
    unpack,
    unpack_rows,
)
from .entry import Entry

Columns = Mapping[str, Sequence[Any]]


def index_row(entry: Entry) -> Row:
    """The columns of PROJECTION, RESULT and METRICS, in order; the digests of a derived row's parents lie with them."""
    return (
        *_projection_row(entry.projection),
        *fields(entry.provenance, PROVENANCE),
        entry.computed_at,
        "" if _has_parents(entry.projection) else entry.weights_digests[0],
        *(np.nan if value is None else value for value in fields(entry, METRICS)),
    )


def derived_row(entry: Entry) -> Row:
    """The columns of DERIVED, in order."""
    made = entry.projection.derived
    if made is None:
        return "", 0, "", 0, "", "", "", 0.0
    digests = " ".join(operand.digest for operand in made.operands)
    clipped = entry.provenance.clipped
    return made.formula, made.version, made.label, made.is_further, digests, made.weighting, made.gauge, clipped


def parent_rows(entries: Sequence[Entry], sources: Mapping[Source, int]) -> list[Row]:
    """The columns of PARENT, in order; `sources` gives the row of each source."""
    return [
        (row, *_projection_row(parent), digest, sources[parent.source])
        for row, entry in enumerate(entries)
        if _has_parents(entry.projection)
        for parent, digest in zip(entry.projection.parents, entry.weights_digests, strict=True)
    ]


def fields(item: object, names: Mapping[str, str]) -> Row:
    """The attributes of these names."""
    return tuple(getattr(item, name) for name in names)


def entries_of(index: Table, file: Any) -> list[Entry]:
    """The rows of the index of an open file as objects, made column by column."""
    sources = [
        Source(repo, commit, name, identity, size, bool(addressed))
        for repo, commit, name, identity, size, addressed in unpack_rows(SOURCE, file["sources"][()])
    ]
    runs = [Run(*row) for row in unpack_rows(RUN, file["runs"][()])]
    columns = unpack((DERIVED_INDEX if "parents" in file else INDEX) | GENERATION, index)
    digests: list[tuple[str, ...]] = [(digest,) for digest in columns["weights_digest"]]
    clipped = columns.get("clipped", repeat(0.0))
    if "parents" in file:
        derived = _with_parents(columns, digests, unpack(PARENT, file["parents"][()]), sources)
    else:
        derived = [_TWINS[null] for null in columns["null"]]
    thresholds = file["rank_threshold"][()].tolist()
    return list(
        map(
            Entry,
            _projections(columns, sources, derived),
            map(Provenance, *(columns[name] for name in PROVENANCE), clipped),
            columns["computed_at"],
            digests,
            map(runs.__getitem__, columns["run_id"]),
            (dict(zip(thresholds, ranks, strict=True)) for ranks in file["rank_table"][()].tolist()),
            *((None if isnan(v) else v for v in columns[name]) for name in METRICS),
            columns["generation"],
        )
    )


_TWINS = {"": None, FLIPPED.formula: FLIPPED}
"""By the column `null`, which tells all that is derived in files of format version 1."""


def _with_parents(
    columns: Columns, digests: list[tuple[str, ...]], table: Columns, sources: Sequence[Source]
) -> list[Derived | None]:
    """How the matrix of each row is made; in `digests` those of its parents take the place of its own."""
    parents: dict[int, list[Projection]] = defaultdict(list)
    read: dict[int, list[str]] = defaultdict(list)
    plain = _projections(table, sources, repeat(None, len(table["row"])))
    for row, parent, digest in zip(table["row"], plain, table["weights_digest"], strict=True):
        parents[row].append(parent)
        read[row].append(digest)
    for row in parents:
        digests[row] = tuple(read[row])
    made: list[Derived | None] = []
    for row, columns_of in enumerate(zip(*(columns[name] for name in DERIVED), strict=True)):
        formula, version, label, further, operands, weighting, gauge, _ = columns_of
        taken = tuple(map(Operand, operands.split()))
        one = Derived(formula, version, label, bool(further), tuple(parents[row]), taken, weighting, gauge)
        made.append(one if formula else None)
    return made


def _projections(
    columns: Columns, sources: Sequence[Source], derived: Sequence[Derived | None] | repeat[None]
) -> Iterator[Projection]:
    places = zip(*(columns[f"slice_{name}"] for name in ("axis", "groups", "offset", "width", "index")), strict=True)
    slices = (
        None if axis < 0 else Slice(axis, groups, offset, width, None if index < 0 else index)
        for axis, groups, offset, width, index in places
    )
    return map(
        Projection,
        columns["address"],
        columns["tensor"],
        slices,
        (tower or None for tower in columns["tower"]),
        (None if layer < 0 else layer for layer in columns["layer"]),
        columns["block"],
        columns["role"],
        (None if expert < 0 else expert for expert in columns["expert"]),
        columns["rows"],
        columns["cols"],
        columns["dtype"],
        columns["dequantisation"],
        map(bool, columns["transposed"]),
        map(sources.__getitem__, columns["source_id"]),
        columns["key"],
        repeat(None),
        repeat(""),
        derived,
    )


def _projection_row(p: Projection) -> Row:
    """The columns of PROJECTION, in order."""
    s = p.slice
    return (
        p.address,
        p.tensor,
        *((-1, -1, -1, -1) if s is None else (s.axis, s.groups, s.offset, s.width)),
        p.tower or "",
        -1 if p.layer is None else p.layer,
        p.block,
        p.role,
        -1 if p.expert is None else p.expert,
        *(p.rows, p.cols, p.dtype, p.dequantisation, p.transposed, p.key, p.null),
        -1 if s is None or s.index is None else s.index,
    )


def _has_parents(projection: Projection) -> bool:
    return projection.derived is not None and bool(projection.derived.parents)
