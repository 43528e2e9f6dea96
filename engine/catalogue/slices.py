"""The slices of a tensor that are its projections: the planes of a stack, and the parts of a fused tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import TypeAlias

from ..spectrum import HEADS, TURNED_HEADS, Slice
from .layouts import NAMES, Layout, Rule
from .rules import split
from .sizes import Sizes

_PROOF = (("attended", "output matrix"), ("heads", "number of heads"))
_HEADS = {"heads": HEADS, "turned heads": TURNED_HEADS}
_Numbers: TypeAlias = Callable[[int, Collection[str]], Sizes]


def slices_of(
    shape: tuple[int, ...], rule: Rule, turned: bool, numbers: _Numbers
) -> Iterator[tuple[int | None, str, Slice | None]]:
    """Yield number in its stack (None outside of one), role and slice (None: all) of each projection of a tensor.

    `turned`: the planes of a stack are (in, out). `numbers` returns the sizes that layouts name, for a size and roles.

    Raises:
        ValueError: no layout fits.
    """
    if rule.stack == "flat":
        yield None, rule.role, Slice(1, 1, 0, prod(shape[1:]))
    elif rule.stack in _HEADS:
        axis = _HEADS[rule.stack]
        yield None, rule.role, Slice(axis, 1, 0, shape[2 if axis == HEADS else 1])
    elif rule.stack == "rows":
        count = numbers(shape[0], ()).get(rule.count, 0)
        if not count or shape[0] % count:
            raise ValueError(f"expected equal blocks of {count or 'unknown'} {rule.count} along axis 0 of {shape[0]}")
        width = shape[0] // count
        yield from ((n, rule.role, Slice(0, 1, n * width, width)) for n in range(count))
    elif rule.stack:
        plane = (shape[1], shape[2])
        parts = _split_any(plane, rule, turned, numbers) if rule.layouts else [(rule.role, Slice(0, 1, 0, plane[0]))]
        yield from ((n, role, replace(part, index=n)) for n in range(shape[0]) for role, part in parts)
    else:
        divide = _split_proven if rule.proven else _split_any
        parts = divide((shape[0], shape[1]), rule, turned, numbers)
        yield from ((None, role, part if len(parts) > 1 else None) for role, part in parts)


def _split_any(shape: tuple[int, int], rule: Rule, turned: bool, numbers: _Numbers) -> list[tuple[str, Slice]]:
    """Split by the first layout that fits; if none does, the error is that of the first."""
    refusals: list[ValueError] = []
    for layout in rule.layouts:
        placed = replace(layout, axis=1 - layout.axis) if turned else layout
        try:
            return split(shape, placed, numbers(shape[placed.axis], layout.roles))
        except ValueError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _split_proven(shape: tuple[int, int], rule: Rule, turned: bool, numbers: _Numbers) -> list[tuple[str, Slice]]:
    """Split by the layouts that fit, provided that all of them cut the same rows.

    Raises:
        ValueError: no layout, no heads or no output matrix is known, none fits, or some that fit cut differently.
    """
    if not rule.layouts:
        raise ValueError("no model_type says how it is fused: not split")
    known = numbers(shape[0], rule.layouts[0].roles)
    if missing := [text for name, text in _PROOF if name not in known]:
        raise ValueError(f"no model_type says how it is fused, and there is no {' and no '.join(missing)}: not split")
    if known["heads"] * known["head_dim"] != known["attended"] or known["keys"] % known["head_dim"]:
        raise ValueError(f"{known['heads']} heads fit neither queries nor keys of {shape[0]} rows: not split")
    first = _split_any(shape, rule, turned, numbers)
    fitting: dict[tuple[tuple[str, Slice], ...], Layout] = {}
    for layout in rule.layouts:
        with suppress(ValueError):
            fitting.setdefault(tuple(split(shape, layout, numbers(shape[0], layout.roles))), layout)
    if len(fitting) > 1:
        names = " and ".join(name for name, layout in NAMES.items() if layout in fitting.values())
        raise ValueError(f"no model_type says how it is fused, and it fits as {names}: not split")
    return first
