"""Reads what a person types: a threshold, a reference line, a number."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError

from ..data.kept_ranks import KeptRanks
from ..data.reference_lines import ReferenceLine


def threshold(text: str) -> float:
    """Read an energy threshold: 0.9, 90 or 90%. Above 1 the number is a percentage."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a threshold: write 0.9, 90 or 90%, and the model before it") from None
    value = round(value / 100 if value > 1 or text.endswith("%") else value, 12)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a threshold: it must be above 0 and at most 100 %")
    return value


def thresholds(text: str) -> list[float]:
    """Read one energy threshold, or several separated by commas: 60,80."""
    return [threshold(part) for part in text.strip(",").split(",")]


def cut(text: str) -> float:
    """Read the share of parameters to remove: 20% or 0.2, rounded to 12 digits. Above 1 the number is a percentage."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a share of the parameters: write 20% or 0.2") from None
    value = round(value / 100 if value > 1 or text.endswith("%") else value, 12)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text!r} is not a share of the parameters: it must be above 0 and below 100 %")
    return value


def kept_ranks(text: str) -> KeptRanks:
    """Read ranks to keep: 512 for all, or query=1536,key_value=512 by role, separated by commas or blanks. With both,
    the plain number is for all other roles."""
    example = "write 512, or by role query=1536,key_value=512 (short: q k v o kv)"
    common: list[int] = []
    roles: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        role, has_role, number = part.rpartition("=")
        if not number.isdecimal() or len(number) > 9 or int(number) < 1 or (has_role and not role):
            raise ArgumentTypeError(f"{part!r} is not a rank: {example}")
        if role in roles or (not role and common):
            raise ArgumentTypeError(f"{text!r} names {role or 'a rank for all'} twice: {example}")
        if role:
            roles[role] = int(number)
        else:
            common.append(int(number))
    if not (common or roles):
        raise ArgumentTypeError(f"{text!r} is not a rank: {example}")
    return KeptRanks(common[0] if common else None, tuple(roles.items()))


def reference_line(text: str) -> ReferenceLine:
    """Read a rank to draw across the layers: NAME=K, or NAME=K@ROLE for one role."""
    name, _, value = text.partition("=")
    number, at, role = value.partition("@")
    name, role = name.strip(), role.strip()
    try:
        rank = float(number)
    except ValueError:
        rank = math.nan
    if not (name.isprintable() and name and 0 < rank <= 1e9) or bool(at) != bool(role):
        raise ArgumentTypeError(f"{text!r} is not a line: write NAME=K or NAME=K@ROLE, K above 0")
    return ReferenceLine(name, rank, role)


def whole(text: str) -> int:
    """Read a whole number, 0 or above, of at most nine digits."""
    if not text.isdecimal() or len(text) > 9:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)
