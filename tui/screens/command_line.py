"""Parses a line of the explorer's command line into a command and its argument."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable

from textual.binding import Binding

from rankscope.engine.errors import InputError, printable

from ..data.contrast import Contrast
from ..data.grid import LAYER
from ..data.measures import unit_of
from ..settings.keys import EXPLORER
from ..settings.plan_words import plan_wish
from ..settings.values import kept_ranks, reference_line, threshold, whole

ALONE = ("tour",)
"""Commands that are no actions of a key, and take no argument."""
_SHORT = {"q": "quit", "s": "scan", "x": "stop", "e": "export", "t": "threshold", "u": "unit", "rank": "k"}


def parse_command(text: str, rows: str = LAYER) -> tuple[str, str]:
    """`12` -> ("layer", "12"); `t 97` -> ("threshold", "0.97"); `k 512` -> ("k", "512"); `filter key`.

    The id of any of the explorer's actions, or the last part of it, gives that action without an argument.
    `rows`: what a number goes to, as Grid.rows_are; for the error.

    Raises:
        InputError: no such command, or an argument that does not fit.
    """
    name, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    if name.isdecimal() and not argument:
        return "layer", name
    name = full_name(name)
    if argument and name in _WITH_ARGUMENT:
        return name, _WITH_ARGUMENT[name](argument)
    ids = [(b.id, b.action) for b in EXPLORER if isinstance(b, Binding) and b.id]
    action = name if name in ALONE else next((a for i, a in ids if name in (i, i.rpartition(".")[2])), "")
    if action and argument:
        raise InputError(f":{name} takes no argument: leave {printable(argument, 40)} out")
    if action:
        return action, ""
    if name in _WITH_ARGUMENT:
        raise InputError(f":{name} needs an argument: {EXAMPLES[name]}")
    raise InputError(f"no command {printable(name)!r}: :12 goes to {rows} 12; {'; '.join(EXAMPLES.values())}; :quit")


def command_names() -> set[str]:
    """The commands that take an argument, and the last parts of the explorer's action ids that are unique."""
    ends = Counter((binding.id or "").rpartition(".")[2] for binding in EXPLORER if isinstance(binding, Binding))
    return {*_WITH_ARGUMENT, *ALONE, *(end for end, count in ends.items() if end and count == 1)}


def full_name(name: str) -> str:
    """`t` -> `threshold`."""
    return _SHORT.get(name, name)


def takes_argument(name: str) -> bool:
    """Whether a command may be followed by an argument."""
    return full_name(name) in _WITH_ARGUMENT


def _threshold(argument: str) -> str:
    try:
        return str(threshold(argument))
    except ArgumentTypeError as error:
        raise InputError(str(error)) from None


def _ranks(argument: str) -> str:
    try:
        kept_ranks(argument)
    except ArgumentTypeError as error:
        raise InputError(printable(str(error), 200)) from None
    return argument


def _offset(argument: str) -> str:
    try:
        return str(whole(argument))
    except ArgumentTypeError as error:
        raise InputError(f"{printable(str(error))}: write :offset 16") from None


def _unit(argument: str) -> str:
    """Read a unit's name: `k/k0`, `stable_rank`, `%`."""
    name = {"%": "percent", "effective": "effective_rank", "stable": "stable_rank"}.get(argument, argument)
    return unit_of(name).name


def _contrast(argument: str) -> str:
    if argument not in list(Contrast):
        raise InputError(f"no contrast {printable(argument)!r}: {' '.join(Contrast)}")
    return argument


def _line(argument: str) -> str:
    try:
        reference_line(argument)
    except ArgumentTypeError as error:
        raise InputError(str(error)) from None
    return argument


def _plan(argument: str) -> str:
    plan_wish(argument)
    return argument


_WITH_ARGUMENT: dict[str, Callable[[str], str]] = {
    "threshold": _threshold,
    "k": _ranks,
    "unit": _unit,
    "line": _line,
    "contrast": _contrast,
    "filter": str,
    "against": str,
    "export": str,
    "mark": str,
    "weight": str,
    "plan": _plan,
    "plan-save": str,
    "offset": _offset,
}
EXAMPLES = {
    "threshold": ":t 97",
    "k": ":k 512",
    "unit": ":unit k/k0",
    "line": ":line target=256",
    "contrast": ":contrast role",
    "filter": ":filter key",
    "against": ":against org/name",
    "export": ":export spectra.csv",
    "mark": ":mark layers.0.*.key",
    "weight": ":weight norm",
    "plan": ":plan 20%",
    "plan-save": ":plan-save plan.json",
    "offset": ":offset 16",
}
