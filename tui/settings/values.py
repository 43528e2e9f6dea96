"""What a person types -> a value: a threshold, a reference line, a number."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from dataclasses import replace
from typing import Any

from rankscope.engine.errors import InputError, printable
from rankscope.engine.plan.plan_file import COSTS, OBJECTIVES, SCOPES

from ..data.plan_shown import PlanWish
from ..data.reference_lines import ReferenceLine

_PLAN_CHOICES = {"of": SCOPES, "objective": OBJECTIVES, "cost": COSTS}
_PLAN_WORDS = (
    "of=projections|total, uniform, filter=GLOB, min-rank=K, multiple=K, objective=parameters|relative|absolute, "
    "cost=factors|pifa"
)


def threshold(text: str) -> float:
    """An energy threshold: 0.9, 90 or 90%. Above 1 the number is a percentage."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no threshold: write 0.9, 90 or 90%, and the model before it") from None
    value = round(value / 100 if value > 1 or text.endswith("%") else value, 12)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} is no threshold: it lies above 0 and up to 100 %")
    return value


def thresholds(text: str) -> list[float]:
    """One energy threshold, or several with commas: 60,80."""
    return [threshold(part) for part in text.strip(",").split(",")]


def cut(text: str) -> float:
    """A share of parameters that is to go: 20% or 0.2, rounded to 12 digits. Above 1 the number is a percentage."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no share of the parameters: write 20% or 0.2") from None
    value = round(value / 100 if value > 1 or text.endswith("%") else value, 12)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text!r} is no share of the parameters: it lies above 0 and below 100 %")
    return value


def reference_line(text: str) -> ReferenceLine:
    """A rank to draw across the layers: NAME=K, or NAME=K@ROLE for one of one role."""
    name, _, value = text.partition("=")
    number, at, role = value.partition("@")
    name, role = name.strip(), role.strip()
    try:
        rank = float(number)
    except ValueError:
        rank = math.nan
    if not (name.isprintable() and name and 0 < rank <= 1e9) or bool(at) != bool(role):
        raise ArgumentTypeError(f"{text!r} is no line: write NAME=K or NAME=K@ROLE, K above 0")
    return ReferenceLine(name, rank, role)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def plan_wish(text: str, pattern: str = "") -> PlanWish:
    """What `:plan` is asked for: `20% of=total uniform filter=*.mlp.*`, the options of `rankscope plan` as words;
    `pattern` where no filter is among them.

    Raises:
        InputError: a word that is none of these, or a value that does not fit.
    """
    share, *words = text.split()
    found: dict[str, Any] = {"pattern": pattern}
    try:
        wish = PlanWish(cut(share))
        for word in words:
            name, has_value, value = word.removeprefix("--").partition("=")
            if name == "uniform" and not has_value:
                found["uniform"] = True
            elif value and name in _PLAN_CHOICES and value in _PLAN_CHOICES[name]:
                found[name] = value
            elif value and name in ("min-rank", "multiple"):
                found[name.replace("-", "_")] = positive(value)
            elif value and name == "filter":
                found["pattern"] = value
            else:
                raise InputError(f"a plan knows no {printable(word)!r}: {_PLAN_WORDS}")
    except ArgumentTypeError as error:
        raise InputError(printable(str(error), 200)) from None
    return replace(wish, **found)
