"""Completes commands of the explorer: their names, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from os.path import commonprefix
from pathlib import Path

from rankscope.engine.errors import printable

from ..data.chosen_weighting import NONE, NORM
from ..data.measures import units
from ..data.state import ExplorerState
from ..data.wording import percent
from .command_line import command_names, full_name, takes_argument

_MOST_FILES = 1000
"""At most this many names of a folder are read."""


class Completer:
    """Completes commands of an explorer in the given state."""

    def __init__(self, state: ExplorerState) -> None:
        self._state = state
        self._arguments: Mapping[str, Callable[[str], Iterable[str]]] = {
            "unit": self._units,
            "threshold": self._thresholds,
            "filter": self._addresses,
            "mark": self._addresses,
            "weight": lambda text: [*(name for name in (NONE, NORM) if name.startswith(text)), *_paths(text)],
            "against": _paths,
            "export": _paths,
            "plan-save": _paths,
        }

    def complete(self, text: str) -> tuple[str, str]:
        """The text completed as far as there is only one way, and the choices from there if there are several. A text
        that cannot be completed is returned unchanged."""
        name, gap, argument = text.lstrip().partition(" ")
        if gap:
            ways = self._arguments.get(full_name(name))
            found = sorted({way for way in (ways(argument) if ways else ()) if way.startswith(argument)})
        else:
            found = sorted(way for way in command_names() if way.startswith(name))
        if not found:
            return text, ""
        common = commonprefix(found)  # noqa: RUF071 - by characters, as it is typed
        if len(found) > 1:
            return f"{name} {common}" if gap else common, printable("  ".join(found), 500)
        if not gap and takes_argument(common):
            common += " "
        return f"{name} {common}" if gap else common, ""

    def _units(self, _: str) -> list[str]:
        return [measure.name for measure in units(self._state.pair.shown_as)]

    def _thresholds(self, _: str) -> list[str]:
        return [percent(threshold) for threshold in self._state.thresholds]

    def _addresses(self, text: str) -> Iterable[str]:
        """Roles and blocks; and addresses, up to the next dot."""
        for column in self._state.grid.columns:
            yield from (column.role, column.block, f"{column.block}.{column.role}")
        for p in self._state.session.model.every:
            if p.address.startswith(text):
                dot = p.address.find(".", len(text))
                yield p.address if dot < 0 else p.address[: dot + 1]


def _paths(text: str) -> list[str]:
    """The files and folders whose paths begin like this; none if they cannot be listed."""
    folder, slash, name = text.rpartition("/")
    found = []
    with suppress(OSError, RuntimeError, ValueError):  # ~nobody, or a null character
        for path, _ in zip(Path(f"{folder}{slash}" or ".").expanduser().iterdir(), range(_MOST_FILES), strict=False):
            if path.name.startswith(name) and path.name.isprintable() and (name or not path.name.startswith(".")):
                found.append(f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}")
    return found
