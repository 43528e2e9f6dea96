"""The parts of a quantised matrix by name, and checks of their types and shapes; contradictions are ValueErrors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..formats.tensor import Scheme, Tensor

Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A matrix of shape (out, in) or (experts, out, in), and the parts that its scheme reads, the packed numbers first.

    `peeked`: stored bytes had to be read, so another module with the same parts may be another matrix.
    """

    shape: Shape
    scheme: Scheme
    parts: dict[str, Tensor]
    peeked: bool = False


def carrier(parts: Parts, *names: str) -> Tensor:
    """The part under the first of these names that holds the packed numbers."""
    found = next((parts[name] for name in names if name in parts), None)
    if found is None:
        raise ValueError(f"{names[0]} is missing beside {', '.join(sorted(parts))}")
    if 0 in found.shape or len(found.shape) < 2:
        raise ValueError(f"not a matrix ({show(found.shape)})")
    return found


def typed(parts: Parts, name: str, types: Iterable[str]) -> Tensor:
    """A part that must be there, be of one of these types, and not be empty."""
    if name not in parts:
        raise ValueError(f"{name} is missing")
    if parts[name].dtype not in types:
        raise ValueError(f"{name} is {parts[name].dtype}, not {' or '.join(sorted(types))}")
    if 0 in parts[name].shape:
        raise ValueError(f"{name} is empty")
    return parts[name]


def check_size(name: str, tensor: Tensor, shape: Shape) -> None:
    """Refuse a part of another shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {show(tensor.shape)} where {show(shape)} is needed")


def show(shape: Shape) -> str:
    """A shape as text for messages."""
    return " x ".join(map(str, shape)) or "scalar"


def groups_of(group: int, columns: int) -> str:
    """The words for how many columns share a scale."""
    return f"groups of {group}" if group < columns else "per row"


def exact_floats(scales: Iterable[Tensor]) -> str:
    """The type that holds every product with these scales exactly.

    float32 does for an integer or float8 times a scale of 11 significant bits; scales of 24 need float64.
    """
    return "float64" if any(s.dtype in ("F32", "F64") for s in scales) else "float32"
