"""How the command lines are read. Imports argparse alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Wrong use is one line: argparse would print the whole usage before it. An option whose value may be left out
    takes no word that is none of its choices: `scan --derived MODEL`. Before several models a word that is nearly
    one is a choice that was mistyped."""

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
        models = getattr(found, "model", None)
        several = set(models) if isinstance(models, list) and len(models) > 1 else set()
        mistyped = [word for word in taken if word in several and _is_nearly_one(word, taken[word].choices or ())]
        if mistyped or (taken and any(not word.startswith("-") for word in rest)):
            word = mistyped[0] if mistyped else next(reversed(taken))
            option = taken[word]
            choices = ", ".join(map(repr, option.choices or ()))
            self.error(f"argument {option.option_strings[0]}: invalid choice: {word!r} (choose from {choices})")
        return found, rest

    def error(self, message: str) -> NoReturn:
        from rankscope.engine.errors import printable

        self.exit(2, f"{self.prog}: {printable(message, 500)}; see  {self.prog} --help\n")


def _is_nearly_one(word: str, choices: Iterable[str]) -> bool:
    """Whether a word is a choice but for about a letter."""
    from difflib import get_close_matches

    return bool(get_close_matches(word, choices, cutoff=0.8))


class Flat(argparse.Action):
    """Adds to the list of an option lists of values."""

    def __call__(self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        found = [*(getattr(namespace, self.dest) or []), *(value for part in values for value in part)]
        setattr(namespace, self.dest, found)
