"""A series on the command line: its allowed options, its models one after the other, and a table of all of them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.checkpoint.revisions import models_named
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.errors import InputError, printable

from ..data.chosen_weighting import NONE
from ..data.gauged_model import RAW
from ..data.series_model import open_series
from ..data.session import Session
from ..drawing.console import say
from ..drawing.console_tables import print_tables
from .opening import say_damage
from .query import Query

OF_ONE_MODEL = frozenset({"heads", "mla", "gauge", "delta", "directions"})
"""Views that a series does not have: they need a model's matrices, which are not read of a series."""


def check_options(args: Namespace) -> None:
    """Refuse options that a series does not have.

    Raises:
        InputError: one of these is given.
    """
    given = {
        "--against": args.against,
        "--weight": args.weight not in (None, NONE),
        "--gauge": args.gauge not in (None, RAW),
        "--download": getattr(args, "download", False),
    }
    for option, is_given in given.items():
        if is_given:
            raise InputError(f"{option} is for one model: leave it out for a series")
    view = getattr(args, "view", None)
    if view in OF_ONE_MODEL:
        raise InputError(f"--view {view} is for one model, not for a series: name one")


def each_of(names: Sequence[str], run: Callable[[str], int]) -> int:
    """Run for every model that is named, and go on if one cannot be opened. Return the largest exit code.

    Raises:
        InputError: a pattern matches nothing, or the only model cannot be opened.
    """
    found = models_named(names)
    if len(found) == 1:
        return run(found[0])
    codes = [0]
    for number, name in enumerate(found, start=1):
        say(f"model {number} of {len(found)}: {printable(name)}")
        try:
            codes.append(run(name))
        except InputError as error:
            say(f"{printable(name)}: {error}")
            codes.append(2)
    return max(codes)


def session_of(names: Sequence[str], root: Path) -> Session:
    """A session with the stored spectra of a series.

    Raises:
        InputError: see open_series.
    """
    model = open_series(names, root)
    session = Session(model, root, lambda _: None, ComputeSettings())
    session.load()
    say_damage(session)
    return session


def print_series(console: Console, query: Query, _: Namespace) -> None:
    """Print models x roles, each the median over the model's layers, a table for each threshold; and a legend of the
    models."""
    print_tables(console, query.lenses, query.projections, query.grid)
    for line in query.lens.pair.first.model.part_names:
        console.print(Text(line))
