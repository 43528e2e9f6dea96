"""Checks that the tables of a file are consistent: every size and offset they name lies within the file.

Digests and checksums show that a file is unchanged since it was written, not that this program wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.engine.spectrum import DIRECTIONS, FACTORS, FACTORS_ALPHA, LEADING

from .columns import ADDED, DERIVED_INDEX, GENERATION, INDEX, PARENT, RUN, SOURCE, Table
from .entries import Tables

_LONGEST = 2**40
"""An upper bound for the rows or columns of any matrix."""


def check(tables: Tables, stored: int, *, is_directions: bool) -> None:
    """Check the tables of a file that holds `stored` numbers in all.

    Raises:
        ValueError: a table points outside the file, or two tables contradict each other.
    """
    index = tables.index
    kinds = (INDEX if tables.parents is None else DERIVED_INDEX) | GENERATION
    _check_columns("index", index, kinds)
    _check_columns("sources", tables.sources, SOURCE)
    _check_columns("runs", tables.runs, RUN)
    _check_shapes("index", index)
    offset, count = index["offset"], index["count"]
    _must((offset >= 0) & (count <= stored) & (offset <= stored - count), "index: values that are not in the file")
    _must(~(np.isinf(index["sigma_max"]) | np.isinf(index["sigma_min"])), "index: an infinite singular value")
    _must(index["run_id"] < len(tables.runs), "index: a run that is not in the file")
    _must(index["source_id"] < len(tables.sources), "index: a source that is not in the file")
    _check_ranks(tables)
    if tables.parents is not None:
        _must(_is_directions(index["formula"]) == is_directions, "index: a formula of another format version")
        _check_columns("parents", tables.parents, PARENT)
        _check_shapes("parents", tables.parents)
        _must(tables.parents["row"] < len(index), "parents: a row that is not in the index")
        _must(tables.parents["source_id"] < len(tables.sources), "parents: a source that is not in the file")
    expected = _counts(tables, is_directions=is_directions)
    _must(count == expected, "index: a count that the shape of its matrix does not have")


def _check_columns(name: str, table: Table, kinds: Mapping[str, str]) -> None:
    if table.ndim != 1 or table.dtype.names is None:
        raise ValueError(f"{name} is not a table")
    for column, kind in kinds.items():
        if column in ADDED and column not in table.dtype.names:
            continue
        found = table.dtype[column]
        if found.kind != "S" if kind == "text" else found != np.dtype(kind):
            raise ValueError(f"{name}: {column} is of another type")


def _check_shapes(name: str, table: Table) -> None:
    for side in ("rows", "cols"):
        _must((table[side] >= 0) & (table[side] <= _LONGEST), f"{name}: a shape that no matrix has")


def _check_ranks(tables: Tables) -> None:
    ranks, thresholds = tables.ranks, tables.thresholds
    if (ranks.dtype, thresholds.dtype) != (np.dtype("<u4"), np.dtype("<f8")):
        raise ValueError("rank_table or rank_threshold holds other numbers")
    if thresholds.ndim != 1 or ranks.shape != (len(tables.index), len(thresholds)):
        raise ValueError("rank_table has another shape than index and rank_threshold")
    _must((thresholds > 0) & (thresholds <= 1), "rank_threshold: not a share of the energy")
    _must(ranks <= tables.index["count"][:, None], "rank_table: not a rank of its matrix")


def _counts(tables: Tables, *, is_directions: bool) -> NDArray[Any]:
    """How many numbers are stored for each row of the index: Projection.stored_count."""
    rows, cols = tables.index["rows"], tables.index["cols"]
    short: NDArray[Any] = np.minimum(rows, cols)
    if is_directions:
        leading: NDArray[Any] = np.minimum(LEADING, short) * (1 + rows + cols) + rows + cols
        return leading
    if tables.parents is None:
        return short
    inner = _inner(tables.index["formula"], tables.parents)
    shared: NDArray[Any] = np.where(inner > 0, np.minimum(short, inner), short)
    return shared


def _inner(formulas: NDArray[Any], parents: Table) -> NDArray[Any]:
    """Projection.inner for each row: for a product the number of rows of A, which is its last parent, or the one before
    its alpha; 0 for any other matrix."""
    found = np.zeros(len(formulas), np.int64)
    in_order = np.argsort(parents["row"], kind="stable")
    rows = parents["row"][in_order]
    for formula, from_end in ((FACTORS, 1), (FACTORS_ALPHA, 2)):
        products = np.flatnonzero(formulas == formula.encode())
        at = np.searchsorted(rows, products, side="right") - from_end
        _must(at >= np.searchsorted(rows, products), "parents: a product without its factors")
        found[products] = parents["rows"][in_order[at]]
    return found


def _is_directions(formulas: NDArray[Any]) -> NDArray[np.bool_]:
    """Projection.is_directions for each row."""
    name = DIRECTIONS.encode()
    found: NDArray[np.bool_] = (formulas == name) | np.char.startswith(formulas, name + b"_")
    return found


def _must(holds: NDArray[np.bool_], otherwise: str) -> None:
    if not holds.all():
        raise ValueError(otherwise)
