"""An argparse parser with one-line errors, and options whose value may be left out. Imports only argparse."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Reports wrong use in one line, where argparse would print the whole usage first. An option whose value may be
    left out takes the next word only if it is one of its choices: `scan --derived MODEL`. If several models may follow,
    a word close to a choice counts as that choice mistyped."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, left = self._with_defaults(list(sys.argv[1:] if args is None else args))
        found, rest = super().parse_known_args(given, namespace)
        models = getattr(found, "model", None)
        several = set(models) if isinstance(models, list) and len(models) > 1 else set()
        mistyped = [word for word in left if word in several and _is_nearly_one(word, left[word].choices or ())]
        if mistyped or (left and any(not word.startswith("-") for word in rest)):
            word = mistyped[0] if mistyped else next(reversed(left))
            option = left[word]
            choices = ", ".join(map(repr, option.choices or ()))
            self.error(f"argument {option.option_strings[0]}: invalid choice: {word!r} (choose from {choices})")
        if rest:  # here and not in the parser of all commands, whose help has none of the options
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._meant(rest[0])}")
        return found, rest

    def _meant(self, word: str) -> str:
        """A question about the option that a word may be, "" if it is like none."""
        from difflib import get_close_matches

        known = [name for action in self._actions for name in action.option_strings]
        near = get_close_matches(word.partition("=")[0], known, 1, 0.75)
        return f": did you mean {near[0]}?" if near else ""

    def _with_defaults(self, given: list[str]) -> tuple[list[str], dict[str, argparse.Action]]:
        """The words, with a value for each option that is followed by none of its choices; and the words that were left
        to other arguments by this, with the option before each."""
        options = {name: action for action in self._actions if action.nargs == "?" for name in action.option_strings}
        left: dict[str, argparse.Action] = {}
        for place, (word, behind) in enumerate(pairwise(given)):
            option = options.get(word)
            if option is not None and not behind.startswith("-") and behind not in (option.choices or [behind]):
                given[place] = f"{word}={option.const}"
                left[behind] = option
        return given, left

    def error(self, message: str) -> NoReturn:
        from rankscope.engine.errors import printable

        self.exit(2, f"{self.prog}: {printable(message, 500)}; see  {self.prog} --help\n")


def _is_nearly_one(word: str, choices: Iterable[str]) -> bool:
    """Whether a word is a choice with about one letter wrong."""
    from difflib import get_close_matches

    return bool(get_close_matches(word, choices, cutoff=0.8))


class Flat(argparse.Action):
    """Appends the lists of values of an option that is given several times."""

    def __call__(self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        found = [*(getattr(namespace, self.dest) or []), *(value for part in values for value in part)]
        setattr(namespace, self.dest, found)
