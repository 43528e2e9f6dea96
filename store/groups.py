"""Spectra as HDF5 that other programs can read without instructions: one group per projection, with its axes as HDF5
dimension scales, which xarray and netCDF treat as coordinates. For exports; the store's own layout is in layout.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np

from rankscope.engine.spectrum import Values

from .layout import next_image, software

h5: Any = h5py  # h5py has no types

FORMAT = "rankscope-groups"
FORMAT_VERSION = 1
TABLE = "projections"
"""The name of the table beside the groups of projections, at the root."""
RESERVED = frozenset({TABLE, "component", "singular_values", "threshold", "threshold_rank"})
"""Names with a meaning in this layout, which no part of a projection's path may have."""

_DESCRIPTION = """\
Singular values of the weight matrices of a neural network. Each matrix has a group, its address with / for the dots.
singular_values are descending, in the units of the weights, over component 1, 2, ...; threshold_rank is the smallest k
whose k largest values hold `threshold` of the sum of squares. Attributes of singular_values say what the matrix is and
how they came about. /projections has the same as columns, a row for each matrix, with its path. Missing numbers are
NaN, missing texts "".
Python:
    h5py.File(path)["layers/0/attention/key/singular_values"][:]
    xarray.open_dataset(path, group="layers/0/attention/key", engine="h5netcdf").singular_values
    xarray.open_dataset(path, group="projections", engine="h5netcdf").to_dataframe()
    pandas.DataFrame({name: column.asstr()[:] if column.dtype == object else column[:]
                      for name, column in h5py.File(path)["projections"].items()})
MATLAB:
    h5read(path, '/layers/0/attention/key/singular_values')
"""


@dataclass(frozen=True, slots=True)
class ExportedGroup:
    """One group: its path without a leading /; its facts for attributes and the table, None for what does not exist;
    its singular values; and its ranks by threshold, with the same thresholds in every group."""

    path: str
    facts: Mapping[str, object]
    values: Values
    ranks: Mapping[float, int]


def build_groups(members: Sequence[ExportedGroup]) -> bytes:
    """The bytes of a file with these groups. Not compressed: singular values would shrink by only a tenth."""
    with h5.File(next_image(), "w", driver="core", backing_store=False) as file:
        for member in members:
            _add_group(file, member)
        _add_table(file, members)
        file.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "software": software(),
                "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
                "description": _DESCRIPTION,
            }
        )
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _add_group(file: Any, member: ExportedGroup) -> None:
    """Add a group with scales of its own: a shared scale would list every dataset that uses it, in at most 64 KB, and
    rewrite that list for each."""
    group = file.require_group(member.path)  # one address may be a prefix of another
    components = _scale(group, "component", np.arange(1, len(member.values) + 1, dtype="<i4"))
    sigma = _add_dataset(group, "singular_values", np.asarray(member.values, "<f8"), components)
    sigma.attrs["units"] = "1"
    for name, value in member.facts.items():
        if value is not None:
            sigma.attrs[name] = _plain(value)
    thresholds = _scale(group, "threshold", np.array([*member.ranks], "<f8"))
    _add_dataset(group, "threshold_rank", np.array([*member.ranks.values()], "<i4"), thresholds)


def _add_table(file: Any, members: Sequence[ExportedGroup]) -> None:
    """Add a table with one column per attribute; columns that are empty for every projection are left out."""
    group = file.create_group(TABLE, track_order=True)  # columns in the order of writing
    paths = _scale(group, "path", np.array([_plain(member.path) for member in members], h5.string_dtype()))
    columns: dict[str, list[object]] = {
        name: [member.facts[name] for member in members] for name in (members[0].facts if members else ())
    }
    for threshold in members[0].ranks if members else ():
        columns[f"rank_{threshold:.12g}"] = [member.ranks[threshold] for member in members]
    for name, column in columns.items():
        if any(value is not None for value in column):
            _add_dataset(group, name, _column(column), paths)


def _column(column: Sequence[object]) -> np.ndarray[Any, Any]:
    """Text, whole numbers, or float64 with NaN where a number is missing."""
    if any(isinstance(value, str) for value in column):
        return np.array([_plain("" if value is None else value) for value in column], h5.string_dtype())
    if all(isinstance(value, int) for value in column):
        return np.array(column, "<i8")
    return np.array(column, "<f8")  # None becomes NaN


def _scale(group: Any, name: str, data: np.ndarray[Any, Any]) -> Any:
    dataset = group.create_dataset(name, data=data)
    dataset.make_scale(name)
    return dataset


def _add_dataset(group: Any, name: str, data: np.ndarray[Any, Any], scale: Any) -> Any:
    """Add a one-dimensional dataset with this scale."""
    dataset = group.create_dataset(name, data=data)
    dataset.dims[0].attach_scale(scale)
    return dataset


def _plain(value: object) -> object:
    """A value that other programs can read: no booleans, which HDF5 stores as an enumeration; no text that is not UTF-8
    or has a NUL, at which C programs would stop."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return int(value) if isinstance(value, bool) else value
