"""The user's keys: which bindings may be changed, and which keys would then do two things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from string import punctuation

from textual.binding import Binding, BindingType, InvalidBinding
from textual.keys import Keys, key_to_character

from rankscope.engine.errors import InputError

from . import keys

SECTIONS: Mapping[str, list[BindingType]] = {
    "everywhere": keys.EXPLORER,
    "at any time": keys.APP,
    "while a plan shows": keys.PLAN,
    **{f"in the {name}": table for name, table in keys.PANES.items()},
    "in the filter and command line": keys.PROMPT,
    "in a menu": keys.CHOICE,
    "in a question": keys.CONFIRM,
    "in the help": keys.HELP,
    "over directions": keys.READING,
    "in the list of models": keys.PICKER,
}
_PALETTE = Binding("ctrl+p", "command_palette", "command palette")  # Textual's
_MODIFIERS = {"ctrl", "shift", "alt", "super", "meta", "hyper"}
_SIGNS = Binding.make_bindings([(sign, "") for sign in punctuation if sign != ","])
_NAMES = {*(key.value for key in Keys), *(binding.key for binding in _SIGNS), "comma"}


def bindings(table: list[BindingType]) -> list[Binding]:
    """The bindings of a table that have an id."""
    return [b for b in table if isinstance(b, Binding) and b.id]


def unknown(keymap: Mapping[str, str]) -> Iterator[str]:
    """A sentence about each name in the keymap that no binding has."""
    names = _ids()
    for ident in keymap:
        if ident not in names:
            near = get_close_matches(ident, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else "--print-config lists all"
            yield f"there is no key for {ident!r}: {hint}"


def checked(keymap: Mapping[str, str]) -> dict[str, str]:
    """The keymap with Textual's names of keys ("?" is question_mark), without names that `unknown` reports.

    Raises:
        InputError: an unknown key, or a key that another binding has at the same time.
    """
    names = _ids()
    found = {ident: ",".join(_key_names(ident, text)) for ident, text in keymap.items() if ident in names}
    for tables in _tables_in_force():
        _refuse_clashes(tables, found)
    return found


def _ids() -> list[str]:
    return [b.id or "" for table in SECTIONS.values() for b in bindings(table)]


def _key_names(ident: str, text: str) -> list[str]:
    try:
        names = list(dict.fromkeys(b.key for b in Binding.make_bindings([(text, "")])))
    except InvalidBinding:
        raise InputError(f'{ident!r} has an empty key in {text!r}: write "x" or "x,y"; the comma is comma') from None
    for name in names:
        *modifiers, last = name.split("+")
        is_key = name in _NAMES or last in _NAMES or key_to_character(last) is not None
        if not (is_key and _MODIFIERS.issuperset(modifiers) and last.isprintable()):
            raise InputError(f"{ident!r}: there is no key {name!r}; x, X, ctrl+x, f5, space, slash ... are")
    return names


def _tables_in_force() -> Iterator[list[BindingType]]:
    """The tables that are in force at the same time."""
    for pane in keys.PANES.values():
        yield [*pane, *keys.PLAN, *keys.EXPLORER, *keys.APP, _PALETTE]
    for dialog in (keys.PROMPT, keys.CHOICE, keys.CONFIRM, keys.HELP, keys.READING):
        yield [*dialog, *keys.APP]
    yield keys.PICKER


def _refuse_clashes(table: list[BindingType], keymap: Mapping[str, str]) -> None:
    """Refuse keys that would do two things. In our defaults a pane's key may hide one of the explorer's (enter); a key
    that the user gives may hide none."""
    owners: dict[str, Binding] = {}
    for binding in (b for b in table if isinstance(b, Binding)):
        for key in keymap.get(binding.id or "", binding.key).split(","):
            other = owners.setdefault(key, binding)
            given = [b for b in (binding, other) if key not in b.key.split(",")]
            if other is not binding and given:
                kept = other if given[0] is binding else binding
                raise InputError(f"{given[0].id!r}: the key {key} is that of {kept.id or kept.description!r} already")
