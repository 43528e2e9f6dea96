"""The colour of each curve. A role has the same colour in every chart of every model; if several curves share a role,
colours are given by curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..data.grid import Column
from ..data.pair import Curve, Pair
from ..data.session import Session
from .figure import Stroke

COUNT = 8
"""Colours of curves in every palette."""
BY_CURVE = "colours by curve"
"""Legend note for when colours do not mean roles."""
_KNOWN = ("query", "key", "value", "output", "gate", "up", "down")


def of_columns(drawn: Sequence[Column], columns: Sequence[Column]) -> dict[Column, int]:
    """The colour number of each role that is drawn, given all roles (`columns`) of the model. Up to COUNT roles drawn
    together get different colours; beyond it numbers go on."""
    usual = _usual(columns)
    found: dict[Column, int] = {}
    for column in drawn:
        if (number := usual.get(column, COUNT)) < COUNT and number not in found.values():
            found[column] = number
    for column in drawn:
        found.setdefault(column, _first_free(set(found.values())))
    return found


def of_curves(curves: Sequence[Curve], columns: Sequence[Column]) -> tuple[list[int], bool]:
    """The colour number of each curve, and whether colours mean roles. A projection has the same colour in two models,
    matched by address."""
    roles = {p.address: Column(p.block, p.role) for _, _, p in curves}
    by_role = len(set(roles.values())) == len(roles)
    colour = of_columns(list(roles.values()), columns)
    numbers = {a: colour[column] if by_role else n for n, (a, column) in enumerate(roles.items())}
    return [numbers[p.address] for _, _, p in curves], by_role


def stroke_of(session: Session, pair: Pair) -> Stroke:
    """Dashed for the second of two models."""
    return Stroke.DASHED if session is pair.second else Stroke.SOLID


def _usual(columns: Sequence[Column]) -> dict[Column, int]:
    """The colour number of each role of a model, the same in all models for common roles. Two roles of a block always
    differ; roles of different blocks do unless a model has more roles than there are colours."""
    found: dict[Column, int] = {}
    for column in sorted(columns, key=lambda c: c.role not in _KNOWN):
        in_block = {number for c, number in found.items() if c.block == column.block}
        uses = Counter(found.values())
        free = sorted((n for n in range(COUNT) if n not in in_block), key=lambda n: (uses[n], n))
        wanted = _KNOWN.index(column.role) if column.role in _KNOWN else None
        if wanted is not None and wanted not in in_block and (not uses[wanted] or len(columns) > COUNT):
            found[column] = wanted
        else:
            found[column] = free[0] if free else _first_free(in_block)
    return found


def _first_free(taken: set[int]) -> int:
    return next(number for number in range(len(taken) + 1) if number not in taken)
