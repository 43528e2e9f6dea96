"""Writing spectra for other programs: one tidy file, as HDF5, NumPy, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rankscope.engine.atomic import write_atomically
from rankscope.engine.errors import escaped, without_secrets
from rankscope.engine.spectrum import Projection, Slice, Values

from .entry import Entry
from .groups import RESERVED, ExportedGroup, build_groups
from .layout import build_compressed

STATE = "stored"
"""The state of every row of an export, because only stored spectra are exported."""

_SLICE = ("axis", "groups", "offset", "width")
_METRICS = ("effective_rank", "stable_rank", "sigma_max", "sigma_min")
_PROVENANCE = ("frobenius_norm", "solver", "error_bound", "noise_floor", "device", "seconds")
_UNSAFE_NAME = re.compile(r"\.{2,}|[%/\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def row(
    projection: Projection,
    entry: Entry | None,
    state: str,
    error: str | None,
    ranks: Mapping[float, int] | None,
) -> dict[str, object]:
    """One projection as a flat object of JSON values; what does not exist, or is no number, is None.

    `sigma_min_is_bound` is true where `sigma_min` is below the noise floor. `null` is "flip" in the row of a
    sign-flipped twin, which has its projection's address. Last come `weighting`, `gauge` and `derived`, the formula of
    a matrix that is not in a checkpoint.
    """
    part, made = projection.slice, projection.derived
    return {
        "address": projection.address,
        "tensor": projection.tensor,
        "slice": part and _slice(part),
        "tower": projection.tower,
        "layer": projection.layer,
        "block": projection.block,
        "role": projection.role,
        "expert": projection.expert,
        "rows": projection.rows or None,
        "cols": projection.cols or None,
        "dtype": projection.dtype,
        "state": state,
        "error": error,
        "ranks": None if ranks is None else {f"{threshold:.12g}": rank for threshold, rank in ranks.items()},
        **{name: None if entry is None else _finite(getattr(entry, name)) for name in _METRICS},
        **{name: None if entry is None else _finite(getattr(entry.provenance, name)) for name in _PROVENANCE},
        "sigma_min_is_bound": None if entry is None else _is_bound(entry),
        "null": projection.null or None,
        "weighting": (made and made.weighting) or None,
        "gauge": (made and made.gauge) or None,
        "derived": made and made.formula,
    }


def _is_bound(entry: Entry) -> bool | None:
    """Whether the smallest value is known only to be at most the noise floor; None without a smallest value."""
    if entry.sigma_min is None or entry.sigma_max is None:
        return None
    return entry.sigma_max > 0 and entry.sigma_min <= entry.provenance.noise_floor


INDEX, GROUPS = "index", "groups"
LAYOUTS = (INDEX, GROUPS)
"""The possible layouts of an .h5 file."""


def export(entries: Sequence[Entry], values: Mapping[str, Values], path: Path, layout: str = INDEX) -> None:
    """Write `entries` to `path` in one step, in the format that its suffix names.

    `.h5`: the layout of the store, compressed, or with GROUPS one group per projection, for programs that do not
        know this layout; the description in either explains how to read it.
    `.npz`: one float64 array per address, named `escape_name(address)`, or `address@weighting`, `address@gauge`.
    `.csv` and `.json`: one `row` per projection; `values` (by content key) are not needed.

    Raises:
        ValueError: the suffix is unknown; a layout is given for a format other than .h5; values of an entry are
            missing; or two entries of an .npz or of GROUPS have the same address.
        OSError: the disk is full or fails; a file that was at `path` is still there, unchanged.
    """
    path = Path(path)
    check_name(path, layout)
    suffix = path.suffix.lower()
    if layout == GROUPS:
        data = build_groups(_members(entries, _arrays(entries, values)))
    elif suffix == ".h5":
        data = build_compressed(entries, _arrays(entries, values))
    elif suffix == ".npz":
        data = _npz(entries, _arrays(entries, values))
    elif suffix == ".csv":
        data = csv_text(_rows(entries)).encode("utf-8", "backslashreplace")
    else:
        data = json_text(_rows(entries)).encode()
    write_atomically(path, data)


def check_name(path: Path, layout: str = INDEX) -> None:
    """See that an export of this layout can have this name.

    Raises:
        ValueError: it cannot.
    """
    suffix = path.suffix.lower()
    if layout != INDEX and suffix != ".h5":
        raise ValueError(f"the layout {layout} is for .h5 files, not for {path.name!r}: name the file {path.stem}.h5")
    if suffix not in (".h5", ".npz", ".csv", ".json"):
        raise ValueError(f"cannot export to {path.name!r}: the name must end in .h5, .npz, .csv or .json")


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV with a header; slice and ranks become columns slice_axis ..., rank_0.6 ...

    Text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    flat = [_flatten(item) for item in rows]
    # Rows without ranks lack those columns: the header has the longest list of each kind, in order.
    header = list(dict.fromkeys(name for item in sorted(flat, key=len, reverse=True) for name in item))
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def csv_lines(rows: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield csv_text line by line, for any number of rows; all must have the columns of the first."""
    writer: csv.DictWriter[str] | None = None
    for flat in map(_flatten, rows):
        if writer is None:
            writer = csv.DictWriter(_Echo(), list(flat), lineterminator="\n")
            yield writer.writeheader()
        yield writer.writerow(flat)


class _Echo:
    """A file whose `write` returns what is written to it."""

    def write(self, text: str) -> str:
        return text


def json_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as a JSON array, one object per line."""
    lines = ",\n".join(json.dumps(item, allow_nan=False) for item in rows)
    return f"[\n{lines}\n]\n"


def escape_name(address: str) -> str:
    """An address as the name of an array in an .npz, which is a file name; `urllib.parse.unquote` reverses it.

    `%`, `/`, `\\`, `:`, two or more dots in a row and control characters are percent-encoded.
    """

    def encode(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))

    return _UNSAFE_NAME.sub(encode, address)


def _rows(entries: Sequence[Entry]) -> list[dict[str, object]]:
    return [row(entry.projection, entry, STATE, None, entry.ranks) for entry in entries]


def _arrays(entries: Sequence[Entry], values: Mapping[str, Values]) -> list[Values]:
    for entry in entries:
        if entry.projection.key not in values:
            raise ValueError(f"the values of {entry.projection.address} are missing")
    return [values[entry.projection.key] for entry in entries]


def _npz(entries: Sequence[Entry], arrays: Sequence[Values]) -> bytes:
    # Not np.savez: it takes the names as keyword arguments, and one of them may be `file`.
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for entry, array in zip(entries, arrays, strict=True):
            name = f"{escape_name(_name(entry.projection))}.npy"
            if name in archive.NameToInfo:
                raise _of_one_address(entry.projection)
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array, np.float64), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name), member.getvalue())
    return out.getvalue()


def _of_one_address(projection: Projection) -> ValueError:
    return ValueError(
        f"Two spectra have the address {_name(projection)} (its weights changed between "
        f"revisions): export one of them, or to .csv, .json or an .h5 of the layout {INDEX}."
    )


def _members(entries: Sequence[Entry], arrays: Sequence[Values]) -> list[ExportedGroup]:
    """The contents of the groups of a file."""
    found: dict[str, ExportedGroup] = {}
    for entry, array, facts in zip(entries, arrays, _rows(entries), strict=True):
        path = group_path(entry.projection)
        if path in found:
            raise _of_one_address(entry.projection)
        found[path] = ExportedGroup(path, _facts(entry, facts), array, entry.ranks)
    return list(found.values())


def _facts(entry: Entry, facts: Mapping[str, object]) -> dict[str, object]:
    """A `row`, flat and with the source of its spectrum, without what a group holds as datasets."""
    part = entry.projection.slice
    of_slice = {f"slice_{name}": getattr(part, name, None) for name in (*_SLICE, "index")}
    kept = {name: value for name, value in facts.items() if name not in ("slice", "ranks", "state", "error")}
    source = entry.projection.source
    return {
        **kept,
        **of_slice,
        "repo": without_secrets(source.repo),
        "commit": source.commit or None,
        "file": source.file,
        "software": entry.run.software,
        "computed_at": entry.computed_at,
    }


def group_path(projection: Projection) -> str:
    """The path of a projection's group: `layers/12/attention/key`, `layers/0/mlp/up@norm`,
    `other/model.embed_tokens.weight`.

    Characters that HDF5 allows in no name, and names that a group uses for its datasets, are percent-encoded.
    """
    name = _name(projection)
    # A tensor that is no projection keeps its dots, so a.b and a.b.c become two groups, not one inside the other.
    words = name.split(".", 1) if name.startswith("other.") else name.split(".")
    return "/".join(_group_word(word) for word in words)


def _group_word(word: str) -> str:
    if word in ("", ".") or word in RESERVED:
        return "".join(f"%{byte:02X}" for byte in word[:1].encode()) + word[1:] or "%"
    return escape_name(word)


def _name(projection: Projection) -> str:
    made = projection.derived
    state = (made.weighting, made.gauge) if made is not None else ()
    return "@".join(filter(None, (projection.address, *state)))


def _slice(part: Slice) -> dict[str, int]:
    """The fields of a slice; with `index`, the number of the matrix, for one of a 3-D stack."""
    index = {} if part.index is None else {"index": part.index}
    return {name: getattr(part, name) for name in _SLICE} | index


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(item: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in item.items():
        if name == "slice":
            parts = value if isinstance(value, Mapping) else {}
            flat |= {f"slice_{part}": parts.get(part) for part in (*_SLICE, *(["index"] if "index" in parts else []))}
        elif name == "ranks":
            flat |= {f"rank_{key}": rank for key, rank in value.items()} if isinstance(value, Mapping) else {}
        elif isinstance(value, str):
            text = "\n".join(map(escaped, value.split("\n")))  # line ends are quoted
            flat[name] = f"'{text}" if value.startswith(_FORMULA) else text
        else:
            flat[name] = value
    return flat
