"""The command line: text -> what to do."""

from __future__ import annotations

from argparse import ArgumentTypeError

from textual.binding import Binding

from rankscope.engine.errors import InputError, printable

from .cli import threshold
from .keys import EXPLORER

_SHORT = {"q": "quit", "s": "scan", "x": "stop"}


def parse_command(text: str) -> tuple[str, str]:
    """`12` -> ("layer", "12"); `t 97` -> ("threshold", "0.97"); `filter key` -> ("filter", "key").

    Any action of the explorer by its id, or the end of it, gives that action with no argument.

    Raises:
        InputError: no such command, or an argument that does not fit.
    """
    name, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    if name.isdecimal() and not argument:
        return "layer", name
    if name in ("t", "threshold") and argument:
        try:
            return "threshold", str(threshold(argument))
        except ArgumentTypeError as error:
            raise InputError(str(error)) from None
    if name == "filter" and argument:
        return "filter", argument
    wanted = _SHORT.get(name, name)
    for binding in EXPLORER:
        if isinstance(binding, Binding) and wanted in (binding.id, (binding.id or "").rpartition(".")[2]):
            return binding.action, ""
    raise InputError(f"no command {printable(name)!r}: :12 goes to layer 12; :t 97; :filter key; :scan; :quit")
