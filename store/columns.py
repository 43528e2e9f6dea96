"""The columns of the compound tables, and how text is stored in them.

Within a file a text column has a fixed width, that of its longest string: an index of 46,000 rows is then one flat
array (6 ms to read; 230 ms with variable-length strings), and h5dump, pandas, PyTables and MATLAB read it as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rankscope.engine.errors import escaped

h5: Any = h5py  # h5py has no types

Table = NDArray[np.void]
TableRow = tuple[Any, ...]

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
"""Columns of the index in format version 1: matrices of checkpoints, and their sign-flipped twins."""
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
"""Columns of the index in format version 2, which holds every other derived matrix."""
PARENT = {"row": "<u4"} | PROJECTION | {"weights_digest": "text", "source_id": "<u4"}
"""Columns of the table of parents in format version 2: the matrices that a derived row is made from, in order."""
GENERATION = {"generation": "<i4"}
"""A column that only some files have. Among results for the same matrix the highest generation counts, and among equal
generations the newest. So a new result replaces the old one even when the clock was set back between them."""
ADDED: dict[str, str | int | float] = {"null": "", "slice_index": -1, "generation": 0, "clipped": 0.0}
"""Columns that older files lack, and the value that every row of such a file has."""

_FREE_TEXT = {"repo", "file", "tensor", "label", "host", "command"}
"""Columns whose text may have any character and is returned unchanged: whoever shows it must escape it. No other text
that this program writes has control characters, so there they would be an attack on the terminal and are escaped."""


def pack(kinds: Mapping[str, str], rows: Sequence[TableRow]) -> Table:
    """Pack rows into a compound array whose text columns are as wide as their longest string."""
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    arrays: list[NDArray[Any]] = []
    types: list[tuple[str, Any]] = []
    for (name, kind), column in zip(kinds.items(), columns, strict=True):
        if kind == "text":
            # surrogatepass: a local path need not be UTF-8, and must be read back unchanged.
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


class Columns:
    """The rows of a stored table; a column or a row is unpacked when it is read.

    A column that an older file lacks has its default from ADDED.
    """

    def __init__(self, kinds: Mapping[str, str], table: Table) -> None:
        self._table = table
        there = table.dtype.names or ()
        self._missing = {name: meant for name, meant in ADDED.items() if name in kinds and name not in there}
        self._places = [(name, there.index(name)) for name in kinds if name not in self._missing]
        self._text = [name for name, kind in kinds.items() if kind == "text" and name not in self._missing]

    def __len__(self) -> int:
        return len(self._table)

    def row(self, number: int) -> dict[str, Any]:
        """Return a row as a mapping from column name to int, float or str."""
        values = self._table[number].item()
        found = {name: values[place] for name, place in self._places} | self._missing
        for name in self._text:
            text = _text(found[name])
            found[name] = text if name in _FREE_TEXT else escaped(text)
        return found

    def stored(self, name: str) -> NDArray[Any]:
        """Return a column as it is stored, text as bytes."""
        if name in self._missing:
            meant = self._missing[name]
            return np.full(len(self), meant.encode() if isinstance(meant, str) else meant)
        return self._table[name]

    def list_of(self, name: str) -> list[Any]:
        """Return a column as a list of int, float or str."""
        items: list[Any] = self.stored(name).tolist()
        return list(map(_text, items)) if name in self._text else items


def _text(item: bytes) -> str:
    try:
        return item.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # never written by this program
        return item.decode("utf-8", "backslashreplace")
