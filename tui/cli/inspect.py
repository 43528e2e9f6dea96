"""`rankscope inspect`: what the first direction of one projection is; and the view of all that are computed."""

from __future__ import annotations

import json
import queue
from argparse import Namespace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import Settings
from rankscope.engine.compute.events import Event
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ..data.directions import Facts, facts, frame_of, lines, record, sentence, wanted_for
from ..data.model import Model, open_model
from ..data.session import CLOSE_SECONDS, Session
from ..drawing.console import add_columns, make_console, plain_table
from .commands import compute, say_failures
from .ending import at_end
from .opening import save, say_opened, under
from .query import Asked


def inspect(args: Namespace, root: Path) -> int:
    """Compute the leading directions of a projection and of its neighbours, and say what they are; 1 where they cannot
    be computed."""
    model = open_model(args.model, root, Access.DOWNLOAD if args.download else Access.RANGES)
    chosen = _named(model, args.address)
    shown = _named(under(model, root, args.weight, args.address), args.address)
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(model, root, events.put, Settings(args.device, args.threads, is_small=True))
    session.load()
    say_opened(model, session)
    frame = frame_of(model)
    wanted = wanted_for(session, chosen, frame)
    try:
        if not session.has(wanted[0]) or model.checkpoint is not None:
            with at_end(partial(save, [session])):
                compute(session, wanted, events, recompute=False, json_thresholds=None, beside=())
    finally:
        session.close(CLOSE_SECONDS)
    found = facts(session, shown, frame)
    if found is None:
        say_failures(session, wanted[:1])
        return 1
    if args.json:
        print(json.dumps(record(found), allow_nan=False))
    else:
        console = make_console()
        for line in lines(found):
            console.print(Text(line))
    return say_failures(session, wanted)


def _named(model: Model, address: str) -> Projection:
    """The projection at an address.

    Raises:
        InputError: there is none, or it has no directions.
    """
    found = next((p for p in model.tree.projections if p.address == address), None)
    name = printable(address)
    if found is None:
        raise InputError(f"there is no projection {name!r}: see  rankscope tree MODEL")
    if found.problem is not None and found.derived is None:
        raise InputError(f"{name}: {found.problem}")
    if not found.count:
        raise InputError(f"{name} is no matrix: it has no directions")
    return found


def _known(asked: Asked) -> list[Facts]:
    """Of what the filter leaves, in model order, where directions are stored."""
    session = asked.lens.pair.first
    frame = frame_of(session.raw)
    found = [facts(session, p, frame) for p in asked.projections]
    known = [each for each in found if each is not None]
    if not known:
        raise InputError("no directions are computed of these: run  rankscope inspect MODEL ADDRESS")
    return known


def print_directions(console: Console, asked: Asked, _: Namespace) -> None:
    """A line for each projection whose directions are stored."""
    table = plain_table(console)
    add_columns(table, "address", "s1/s2", "outputs", "inputs", "what it is")
    for each in _known(asked):
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        sides = [f"{side.participation:.1f}" for side in (each.outputs, each.inputs)]
        table.add_row(*(Text(cell) for cell in (each.projection.address, ratio, *sides, sentence(each))))
    console.print(table)
