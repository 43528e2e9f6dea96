"""Meta's own files, `consolidated.NN.pth`, which may hold a part of every matrix each: joined to one tensor a
matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError, printable
from ..formats.guarded import check_inside, read_json
from ..formats.joined_tensors import AXES
from ..formats.tensor import Tensor

PARAMS = "params.json"
_PART = re.compile(r"(consolidated\.)(\d+)(\.[A-Za-z]+)")
# The name of each module, and the sizes of its matrix (out, in). Matrices are cut along the axis that is not `dim`,
# except the embeddings: those by columns (LLaMA 1 and 2) or by rows (3).
_MODULES = {
    "wq": ("query", "dim"), "wk": ("key", "dim"), "wv": ("key", "dim"), "wo": ("dim", "query"),
    "w1": ("inner", "dim"), "w2": ("dim", "inner"), "w3": ("inner", "dim"),
    "tok_embeddings": ("vocabulary", "dim"), "output": ("vocabulary", "dim"),
}  # fmt: skip
S = TypeVar("S")


def numbered(file: Path) -> list[Path]:
    """All existing files of the set that a file belongs to by its name, in order; [] for a name of another kind."""
    if not _PART.fullmatch(file.name):
        return []
    try:
        names = [path.name for path in file.parent.iterdir()]
    except OSError:  # a folder that may not be listed, though the file in it may be read
        return [file]
    return [file.with_name(name) for name in belonging(file.name, names)]


def belonging(name: str, names: Iterable[str]) -> list[str]:
    """The file names among `names` that belong to the set of file `name`, in order; [] for a name of another kind."""
    named = _PART.fullmatch(name)
    held = [(int(found[2]), other) for other in names if (found := _PART.fullmatch(other)) and _same_set(named, found)]
    return [other for _, other in sorted(held)]


def params_of(folder: Path) -> Mapping[str, Any] | None:
    """The content of params.json in a folder, None if there is none.

    Raises:
        InputError: it cannot be read, or is a link out of the folder.
    """
    file = folder / PARAMS
    if not file.is_file():
        return None
    check_inside(file)
    return read_json(file)


def join(
    files: Sequence[Path],
    listed: Mapping[Path, tuple[list[Tensor], S]],
    params: Callable[[], Mapping[str, Any] | None],
) -> dict[Path, tuple[list[Tensor], S]]:
    """The listings of `numbered` files, where a tensor that is in several files is listed once, in the first.

    `params` returns the content of params.json beside them, None if there is none. If every tensor is in one file, all
    stay as they are: Mistral's files with such names are plain shards.

    Raises:
        InputError: a part is missing, or params.json, which states the sizes of the matrices.
    """
    for number, file in enumerate(files):
        named = _PART.fullmatch(file.name)
        assert named is not None
        if int(named[2]) != number:
            lacking = f"{named[1]}{number:0{len(named[2])}}{named[3]}"
            raise InputError(f"{lacking} is missing beside {printable(str(file))}: fetch all parts")
    held: dict[str, list[Tensor]] = {}
    for file in files:
        for tensor in listed[file][0]:
            held.setdefault(tensor.name, []).append(tensor)
    if len(files) > 1 and all(len(parts) == 1 for parts in held.values()):
        return dict(listed)
    sizes = _sizes(files, held, params())
    _check_number(files, held, sizes)
    if len(files) == 1:
        return dict(listed)
    whole = [_join_parts(parts, len(files), sizes) for parts in held.values()]
    return {file: (whole if file == files[0] else [], stamp) for file, (_, stamp) in listed.items()}


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes in params.json by the names of _MODULES; 0 or absent if it does not state them."""

    of: Mapping[str, int]

    def fits(self, shape: tuple[int, ...], module: str, count: int, axis: int) -> int:
        """How often `count` parts of this shape, joined along an axis, repeat the matrix; 0 if they do not form it."""
        names = _MODULES[module]
        along, across = self.of.get(names[axis], 0), self.of.get(names[1 - axis], 0)
        if across and across != shape[1 - axis]:
            return 0
        if not along:
            return 1
        copies, left = divmod(count * shape[axis], along)
        return copies if copies and not left and not count % copies else 0


def _same_set(one: re.Match[str] | None, other: re.Match[str]) -> bool:
    return one is not None and (one[1], one[3]) == (other[1], other[3])


def _sizes(files: Sequence[Path], held: Mapping[str, list[Tensor]], params: Mapping[str, Any] | None) -> _Sizes:
    """The sizes in params.json beside the files; for a single file it may be missing."""
    file = files[0].parent / PARAMS
    if params is None:
        if len(files) == 1:
            return _Sizes({})
        raise InputError(
            f"{printable(str(files[0]))} is part 1 of {len(files)} of a tensor-parallel model, and {PARAMS}, "
            "which says how they join, is missing beside it: fetch it too"
        )
    dim, heads = _stated_size(params, "dim"), _stated_size(params, "n_heads")
    if not dim or not heads:
        if len(files) == 1:
            return _Sizes({})
        raise InputError(
            f"{printable(str(file))} gives no dim and n_heads, which joining the parts needs: fetch it again"
        )
    width = _stated_size(params, "head_dim") or dim // heads
    cut = [parts[0].shape for name, parts in held.items() if _module_name(name) == "tok_embeddings"]
    by_columns = [rows for rows, columns in (s for s in cut if len(s) == 2) if columns * len(files) == dim]
    found: dict[str, int] = {
        "dim": dim,
        "query": heads * width,
        "key": (_stated_size(params, "n_kv_heads") or heads) * width,
        "inner": _feed_forward_width(params, dim),
        "vocabulary": _stated_size(params, "vocab_size") or next(iter(by_columns), 0),
    }
    return _Sizes(found)


def _feed_forward_width(params: Mapping[str, Any], dim: int) -> int:
    """The width of the feed-forward block by the formula of Meta's code, 0 if params.json does not state enough."""
    multiple = _stated_size(params, "multiple_of")
    if stated := _stated_size(params, "hidden_dim"):
        return stated
    if not multiple:
        return 0
    factor = params.get("ffn_dim_multiplier")
    width = 2 * 4 * dim // 3
    if isinstance(factor, (int, float)) and 0 < factor < 1000:
        width = int(factor * width)
    return -(-width // multiple) * multiple


def _stated_size(params: Mapping[str, Any], name: str) -> int:
    """A size, 0 if there is none; LLaMA 1 and 2 state a vocabulary of -1, as the tokenizer has the size."""
    size = params.get(name)
    return size if type(size) is int and 0 < size < 1 << 31 else 0


def _check_number(files: Sequence[Path], held: Mapping[str, list[Tensor]], sizes: _Sizes) -> None:
    """Refuse an incomplete set: its queries and outputs are smaller than in params.json, all by one factor."""
    lacking: set[int] = set()
    for name, parts in held.items():
        module, shape = _module_name(name), parts[0].shape
        axis = module == "wo"
        if module in ("wq", "wo") and len(shape) == 2 and shape[1 - axis] == sizes.of.get("dim"):
            total = shape[axis] * len(files)
            lacking.add(sizes.of["query"] // total if total and sizes.of["query"] % total == 0 else 0)
    if len(lacking) == 1 and (factor := lacking.pop()) > 1:
        wanted = factor * len(files)
        raise InputError(
            f"{printable(str(files[-1]))} is part {len(files)} of {wanted} of a tensor-parallel model by what {PARAMS} "
            f"says, and the rest is missing: fetch all parts"
        )


def _join_parts(parts: Sequence[Tensor], count: int, sizes: _Sizes) -> Tensor:
    """One tensor made of the parts of one name, with a problem if they are not provably parts of one matrix."""
    first = parts[0]
    if len(first.shape) < 2:  # norms, biases: no matrices
        return first
    shown, module = " x ".join(map(str, first.shape)), _module_name(first.name)
    refused = first._replace(parts=tuple((f"part {n}", part) for n, part in enumerate(parts, 1)), strides=())
    if len(parts) < count:
        return refused._replace(problem=f"{len(parts)} of {count} parts of the model hold it")
    if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in parts):
        return refused._replace(problem=f"its {count} parts differ in shape or type")
    if module not in _MODULES or len(first.shape) != 2:
        return refused._replace(problem=f"its name does not say how its {count} parts of {shown} join")
    for axis in (0, 1):
        if axis != _cut_axis(module) and module != "tok_embeddings":
            continue
        if copies := sizes.fits(first.shape, module, count, axis):
            shape = list(first.shape)
            shape[axis] *= count // copies
            labelled = tuple((f"{AXES[axis]} {n // copies}", part) for n, part in enumerate(parts))
            return refused._replace(shape=tuple(shape), parts=labelled)
    return refused._replace(problem=f"its {count} parts of {shown} do not join to the shape that {PARAMS} gives")


def _cut_axis(module: str) -> int:
    """The axis along which a module's matrix is cut: the one whose size is not `dim`."""
    return 1 - _MODULES[module].index("dim")


def _module_name(name: str) -> str:
    """The module of a tensor: the last word before `weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]
