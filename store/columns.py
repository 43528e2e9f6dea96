"""The columns of the compound tables, and text in them.

Text columns have a fixed width per file, the longest string in it: an index of 46,000 rows is then
one flat array (6 ms to read; with variable-length strings 230 ms), and h5dump, pandas, PyTables and
MATLAB read it as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

h5: Any = h5py  # it has no types

Table = NDArray[np.void]
Row = tuple[Any, ...]

# Name and type of every column, in order; "text" is UTF-8 padded with NUL.
SOURCE = {
    "repo": "text",
    "commit": "text",
    "file": "text",
    "identity": "text",
    "size": "<i8",
    "content_addressed": "u1",
}
RUN = {
    "run_id": "text",
    "software": "text",
    "torch": "text",
    "cuda": "text",
    "driver": "text",
    "host": "text",
    "command": "text",
    "started_at": "text",
}
PROJECTION = {
    "address": "text",
    "tensor": "text",
    "slice_axis": "<i4",
    "slice_groups": "<i8",
    "slice_offset": "<i8",
    "slice_width": "<i8",
    "tower": "text",
    "layer": "<i4",
    "block": "text",
    "role": "text",
    "expert": "<i4",
    "rows": "<i8",
    "cols": "<i8",
    "dtype": "text",
    "dequantisation": "text",
    "transposed": "u1",
    "key": "text",
    "null": "text",
    "slice_index": "<i4",
}
PROVENANCE = {
    "frobenius_norm": "<f8",
    "solver": "text",
    "solver_version": "<i4",
    "compute_dtype": "text",
    "error_bound": "<f8",
    "noise_floor": "<f8",
    "device": "text",
    "seconds": "<f8",
}
RESULT = PROVENANCE | {"computed_at": "text", "weights_digest": "text"}
METRICS = {"effective_rank": "<f8", "stable_rank": "<f8", "sigma_max": "<f8", "sigma_min": "<f8"}
PLACE = {"offset": "<i8", "count": "<i8", "crc32": "<u4", "source_id": "<u4", "run_id": "<u4"}
INDEX = PROJECTION | RESULT | METRICS | PLACE
"""Of format version 1: matrices of checkpoints, and their sign-flipped twins."""
DERIVED = {
    "formula": "text",
    "formula_version": "<i4",
    "label": "text",
    "further": "u1",
    "operands": "text",
    "weighting": "text",
    "gauge": "text",
    "clipped": "<f8",
}
DERIVED_INDEX = INDEX | DERIVED
"""Of format version 2, for every other derived matrix."""
PARENT = {"row": "<u4"} | PROJECTION | {"weights_digest": "text", "source_id": "<u4"}
"""Of format version 2: what the matrix in a row of the index is made of, in order."""
GENERATION = {"generation": "<i4"}
"""Only in the index of files that need it: of results of the same matrix the one of the highest generation counts, and
of these the newest. So a new result replaces what it was computed to replace when the clock went back meanwhile."""
ADDED: dict[str, str | int | float] = {"null": "", "slice_index": -1, "generation": 0, "clipped": 0.0}
"""Columns that older files do not have, and what every row of such a file means."""


def pack(kinds: Mapping[str, str], rows: Sequence[Row]) -> Table:
    """Rows as a compound array whose text columns are as wide as their longest string."""
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    arrays: list[NDArray[Any]] = []
    types: list[tuple[str, Any]] = []
    for (name, kind), column in zip(kinds.items(), columns, strict=True):
        if kind == "text":
            # surrogatepass: a local path need not be UTF-8, and must come back as it was.
            text = np.array([item.encode("utf-8", "surrogatepass") for item in column], "S")
            arrays.append(text)
            types.append((name, h5.string_dtype("utf-8", max(1, text.itemsize))))
        else:
            arrays.append(np.array(column, kind))
            types.append((name, kind))
    table = np.empty(len(rows), types)
    for (name, _), array in zip(types, arrays, strict=True):
        table[name] = array
    return table


def unpack(kinds: Mapping[str, str], table: Table) -> dict[str, list[Any]]:
    """The columns as lists of int, float and str; those that may be missing (ADDED) by what that means."""
    missing = ADDED.keys() - set(table.dtype.names or ())
    return {
        name: [ADDED[name]] * len(table) if name in missing else _column(kind, table[name])
        for name, kind in kinds.items()
    }


def unpack_rows(kinds: Mapping[str, str], table: Table) -> Iterator[Row]:
    """The rows as tuples of int, float and str."""
    return zip(*unpack(kinds, table).values(), strict=True)


def _column(kind: str, array: NDArray[Any]) -> list[Any]:
    items: list[Any] = array.tolist()
    if kind != "text":
        return items
    # Most columns repeat a few strings: decode each once, and keep one object of it.
    text = {item: item.decode("utf-8", "surrogatepass") for item in set(items)}
    return [text[item] for item in items]
