"""How the command lines are read. Imports argparse alone."""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Wrong use is one line: argparse would print the whole usage before it. An option whose value may be left out
    takes no word that is none of its choices: `scan --derived MODEL`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        options = {name: action for action in self._actions if action.nargs == "?" for name in action.option_strings}
        taken: dict[str, argparse.Action] = {}
        for place, (word, behind) in enumerate(pairwise(given)):
            option = options.get(word)
            if option is not None and not behind.startswith("-") and behind not in (option.choices or [behind]):
                given[place] = f"{word}={option.const}"
                taken[behind] = option
        found, rest = super().parse_known_args(given, namespace)
        if taken and any(not word.startswith("-") for word in rest):
            word, option = taken.popitem()
            choices = ", ".join(map(repr, option.choices or ()))
            self.error(f"argument {option.option_strings[0]}: invalid choice: {word!r} (choose from {choices})")
        return found, rest

    def error(self, message: str) -> NoReturn:
        from rankscope.engine.errors import printable

        self.exit(2, f"{self.prog}: {printable(message, 500)}; see  {self.prog} --help\n")


class Flat(argparse.Action):
    """Adds to the list of an option lists of values."""

    def __call__(self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        found = [*(getattr(namespace, self.dest) or []), *(value for part in values for value in part)]
        setattr(namespace, self.dest, found)
