"""The words of `:plan`, read as a plan to make."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import replace
from typing import Any

from rankscope.engine.errors import InputError, printable

from ..data.plan_shown import PlanWish
from .values import cut, positive

_PLAN_WORDS = (
    "of=projections|total, uniform, filter=GLOB, min-rank=K, multiple=K, objective=parameters|relative|absolute, "
    "cost=factors|pifa"
)


def plan_wish(text: str, pattern: str = "") -> PlanWish:
    """The plan that the words of `:plan` describe: `20% of=total uniform filter=*.mlp.*` are the options of `rankscope
    plan` as words. `pattern` is the filter if they name none.
    Raises:
        InputError: an unknown word, or a value that does not fit.
    """
    from rankscope.engine.plan.plan_file import COSTS, OBJECTIVES, SCOPES  # not needed for the first screen

    choices = {"of": SCOPES, "objective": OBJECTIVES, "cost": COSTS}
    share, *words = text.split()
    found: dict[str, Any] = {"pattern": pattern}
    try:
        wish = PlanWish(cut(share))
        for word in words:
            name, has_value, value = word.removeprefix("--").partition("=")
            if name == "uniform" and not has_value:
                found["uniform"] = True
            elif value and name in choices and value in choices[name]:
                found[name] = value
            elif value and name in ("min-rank", "multiple"):
                found[name.replace("-", "_")] = positive(value)
            elif value and name == "filter":
                found["pattern"] = value
            else:
                raise InputError(f"a plan has no option {printable(word)!r}: {_PLAN_WORDS}")
    except ArgumentTypeError as error:
        raise InputError(printable(str(error), 200)) from None
    return replace(wish, **found)
