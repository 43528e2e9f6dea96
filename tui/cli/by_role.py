"""`rankscope show --against MODEL --by role`: two models compared by role, even if their layers do not match."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from rankscope.engine.spectrum import Projection

from ..data.lens import Lens
from ..data.role_summaries import Spread, records, role_summaries
from ..drawing.console_tables import wide_tables
from .query import Query


def print_roles(console: Console, query: Query, args: Namespace) -> None:
    """Print a table for each lens. Its rows are roles; its columns are the layers, the smallest, median and largest
    number of A and of B, and the ratio of the medians."""
    theirs = _in_second(query, args)
    for lens in query.lenses:
        found = list(role_summaries(lens, query.projections, theirs))
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


def role_records(query: Query, args: Namespace) -> Iterator[dict[str, object]]:
    """The same numbers as records."""
    return records(query.lenses, query.projections, _in_second(query, args))


def _in_second(query: Query, args: Namespace) -> list[Projection]:
    second = query.lens.pair.second
    assert second is not None
    return second.model.tree.scanned(args.filter)


def _columns(letter: str, spreads: list[Spread | None], lens: Lens) -> Iterator[list[str]]:
    yield [f"layers {letter}", *("" if spread is None else str(spread.layers) for spread in spreads)]
    for heading, name in (("min", "least"), ("median", "middle"), ("max", "most")):
        cells = ("" if spread is None else lens.measure.written(getattr(spread, name)) for spread in spreads)
        yield [f"{heading} {letter}", *cells]
