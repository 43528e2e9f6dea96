"""Weights that torch stores as factors (masks, directions and lengths) -> the matrix that the model computes with.

torch.nn.utils.prune stores `weight_orig` and `weight_mask`, weight_norm a direction and its lengths, spectral_norm a
matrix and the vectors that give its norm; each also as a parametrisation, under `parametrizations.weight.`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..formats.tensor import Scheme, Tensor
from .checked_parts import Shape

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_PARAMETRISED = re.compile(r"(.*?)parametrizations\.([^.]+)\.")
PRUNED = Scheme("pruned", "by its mask", "masked", "float64")
WEIGHT_NORM = Scheme("weight norm", "length x direction", "direction", "float64")
SPECTRAL_NORM = Scheme("spectral norm", "over u W v", "over its norm", "float64")
FORMULAS = frozenset(scheme.formula for scheme in (PRUNED, WEIGHT_NORM, SPECTRAL_NORM))
"""The formulas of these schemes: a model that only has them is not quantised."""


class _Naming(NamedTuple):
    """The names of such tensors: the matrix's name ends in `ending`, the other parts have other endings instead."""

    ending: str
    others: Mapping[str, str]
    scheme: Scheme
    fits: Callable[[Shape, Mapping[str, Shape]], bool]


def _mask_fits(shape: Shape, others: Mapping[str, Shape]) -> bool:
    return others["mask"] == shape


def _length_fits(shape: Shape, others: Mapping[str, Shape]) -> bool:
    """True if there is a length for each row, for each column, or for all."""
    return others["length"] in ((shape[0], 1), (1, shape[1]), (1, 1), (1,), ())


def _vectors_fit(shape: Shape, others: Mapping[str, Shape]) -> bool:
    return (math.prod(others["u"]), math.prod(others["v"])) == shape


_NAMINGS = (
    _Naming("_orig", {"mask": "_mask"}, PRUNED, _mask_fits),
    _Naming("_orig", {"u": "_u", "v": "_v"}, SPECTRAL_NORM, _vectors_fit),
    _Naming("_v", {"length": "_g"}, WEIGHT_NORM, _length_fits),
    _Naming(".original1", {"length": ".original0"}, WEIGHT_NORM, _length_fits),
    _Naming(".original", {"u": ".0._u", "v": ".0._v"}, SPECTRAL_NORM, _vectors_fit),
)
_ENDINGS = tuple({naming.ending for naming in _NAMINGS})


def effective(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, where each such matrix is one tensor under its name in the model and replaces its parts.

    If parts are missing, or do not fit, all stay as they are.
    """
    listed = {tensor.name: tensor for tensor in tensors}
    found: dict[str, Tensor] = {}
    taken: set[str] = set()
    for name, tensor in listed.items():
        if name.endswith(_ENDINGS) and (made := _assembled(tensor, listed)) is not None:
            found[name] = made
            taken.update(part.name for _, part in made.parts)
    return [found.get(name, tensor) for name, tensor in listed.items() if name in found or name not in taken]


def _assembled(tensor: Tensor, listed: Mapping[str, Tensor]) -> Tensor | None:
    for naming in _NAMINGS:
        if not tensor.name.endswith(naming.ending):
            continue
        stem = tensor.name.removesuffix(naming.ending)
        inner = _PARAMETRISED.fullmatch(f"{stem}.")
        name = f"{inner[1]}{inner[2]}" if inner else stem
        others = {role: listed.get(f"{stem}{ending}") for role, ending in naming.others.items()}
        held = {role: part for role, part in others.items() if part is not None}
        parts = {"weight": tensor, **held}
        if len(held) < len(others) or name in listed or not all(_is_plain(part) for part in parts.values()):
            continue
        if len(tensor.shape) == 2 and naming.fits(tensor.shape, {role: part.shape for role, part in held.items()}):
            return tensor._replace(name=name, parts=tuple(parts.items()), scheme=naming.scheme)
    return None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype in _FLOATS and not tensor.strides and not tensor.parts
