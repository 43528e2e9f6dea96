"""Conversion between entries and the rows of a file's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np

from rankscope.engine import bounds
from rankscope.engine.spectrum import FLIPPED, Derived, Operand, Projection, Provenance, Run, Slice, Source

from .columns import METRICS, PROVENANCE, TableRow
from .entry import Entry


def index_row(entry: Entry) -> TableRow:
    """The columns of PROJECTION, RESULT and METRICS, in order; a derived row's digests are stored with its parents."""
    return (
        *_projection_row(entry.projection),
        *fields(entry.provenance, PROVENANCE),
        entry.computed_at,
        "" if _has_parents(entry.projection) else entry.weights_digests[0],
        *(np.nan if value is None else value for value in fields(entry, METRICS)),
    )


def derived_row(entry: Entry) -> TableRow:
    """The columns of DERIVED, in order."""
    made = entry.projection.derived
    if made is None:
        return "", 0, "", 0, "", "", "", 0.0
    digests = " ".join(operand.digest for operand in made.operands)
    clipped = entry.provenance.clipped
    return made.formula, made.version, made.label, made.is_further, digests, made.weighting, made.gauge, clipped


def parent_rows(entries: Sequence[Entry], sources: Mapping[Source, int]) -> list[TableRow]:
    """The columns of PARENT, in order; `sources` maps each source to its row."""
    return [
        (row, *_projection_row(parent), digest, sources[parent.source])
        for row, entry in enumerate(entries)
        if _has_parents(entry.projection)
        for parent, digest in zip(entry.projection.parents, entry.weights_digests, strict=True)
    ]


def fields(item: object, names: Mapping[str, str]) -> TableRow:
    """The attributes of an object with these names."""
    return tuple(getattr(item, name) for name in names)


def entry_at(
    row: Mapping[str, Any], projection: Projection, run: Run, digests: tuple[str, ...], ranks: Mapping[float, int]
) -> Entry:
    """The entry of a row of the index, given by column name."""
    made = Provenance(**{name: row[name] for name in PROVENANCE}, clipped=row.get("clipped", 0.0))
    provenance = made
    if not row.get("weighting"):  # weighted rows state bounds that the shape does not tell
        provenance = _with_bounds_that_hold(made, *[row[name] for name in ("rows", "cols", "sigma_max", "sigma_min")])
    numbers = {name: None if isnan(row[name]) else row[name] for name in METRICS}
    return Entry(
        projection, provenance, row["computed_at"], digests, run, ranks, generation=row["generation"], **numbers
    )


def _with_bounds_that_hold(made: Provenance, rows: int, cols: int, top: float, low: float) -> Provenance:
    """Replace the error bound stated by an old solver where it does not hold; `top` and `low` are sigma_max and
    sigma_min."""
    accuracy = bounds.anew(made.solver, made.solver_version, (rows, cols), (top, low), made.frobenius_norm)
    return made if accuracy is None else replace(made, error_bound=accuracy[0], noise_floor=accuracy[1])


def projection_at(row: Mapping[str, Any], sources: Sequence[Source], made: Derived | None) -> Projection:
    """The projection described by the columns of PROJECTION and `source_id`."""
    axis, index = row["slice_axis"], row["slice_index"]
    places = row["slice_groups"], row["slice_offset"], row["slice_width"]
    return Projection(
        address=row["address"],
        tensor=row["tensor"],
        slice=None if axis < 0 else Slice(axis, *places, None if index < 0 else index),
        tower=row["tower"] or None,
        layer=None if row["layer"] < 0 else row["layer"],
        block=row["block"],
        role=row["role"],
        expert=None if row["expert"] < 0 else row["expert"],
        rows=row["rows"],
        cols=row["cols"],
        dtype=row["dtype"],
        dequantisation=row["dequantisation"],
        transposed=bool(row["transposed"]),
        source=sources[row["source_id"]],
        key=row["key"],
        derived=made,
    )


def derived_at(row: Mapping[str, Any], parents: tuple[Projection, ...]) -> Derived | None:
    """How the matrix of a row is made from these parents; None for a matrix of a checkpoint.

    In format version 1 twins are the only derived rows; the column `null` marks them.
    """
    if "formula" not in row:
        return FLIPPED if row["null"] == FLIPPED.formula else None
    if not row["formula"]:
        return None
    taken = tuple(map(Operand, row["operands"].split()))
    version, label, further = row["formula_version"], row["label"], bool(row["further"])
    return Derived(row["formula"], version, label, further, parents, taken, row["weighting"], row["gauge"])


def _projection_row(p: Projection) -> TableRow:
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
