"""`rankscope show --against MODEL --by role`: two models role by role, whatever their layers are."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from rankscope.engine.spectrum import Projection

from ..data.lens import Lens
from ..data.role_summaries import Spread, records, role_summaries
from ..drawing.console_tables import wide_tables
from .query import Asked


def print_roles(console: Console, asked: Asked, args: Namespace) -> None:
    """Roles down; layers, smallest, median and largest of A and of B, and the medians' ratio: a table a lens."""
    theirs = _theirs(asked, args)
    for lens in asked.lenses:
        found = list(role_summaries(lens, asked.projections, theirs))
        columns = [
            *_columns("A", [role.first for role in found], lens),
            *_columns("B", [role.second for role in found], lens),
            ["B/A", *("" if role.ratio is None else f"{role.ratio:.3f}" for role in found)],
        ]
        measure = lens.measure
        formula = measure.explained(lens.threshold, lens.pair.weighting)
        title = Text(f"{measure.titled(lens.threshold)} by role: {formula}")
        for table in wide_tables(console, ["role", *(role.label for role in found)], columns, title):
            console.print(table)
            console.print()


def role_records(asked: Asked, args: Namespace) -> Iterator[dict[str, object]]:
    """The same as records."""
    return records(asked.lenses, asked.projections, _theirs(asked, args))


def _theirs(asked: Asked, args: Namespace) -> list[Projection]:
    second = asked.lens.pair.second
    assert second is not None
    return second.model.tree.scanned(args.filter)


def _columns(letter: str, spreads: list[Spread | None], lens: Lens) -> Iterator[list[str]]:
    yield [f"layers {letter}", *("" if spread is None else str(spread.layers) for spread in spreads)]
    for heading, name in (("min", "least"), ("median", "middle"), ("max", "most")):
        cells = ("" if spread is None else lens.measure.written(getattr(spread, name)) for spread in spreads)
        yield [f"{heading} {letter}", *cells]
