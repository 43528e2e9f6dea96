"""`rankscope inspect`: what the first direction of a projection is; and `show --view directions`."""

from __future__ import annotations

import json
import queue
from argparse import Namespace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event
from rankscope.engine.derive.derived import AS_FACTORS
from rankscope.engine.derive.tokens import TokenEnds
from rankscope.engine.errors import InputError, WeightsError, printable
from rankscope.engine.spectrum import Projection

from ..data.direction_facts import DirectionContext, Facts, context_of, facts, known_of, tokens_of, wanted_for
from ..data.direction_records import record, token_record
from ..data.direction_words import lines, sentence, token_lines
from ..data.model import Model, open_model
from ..data.session import CLOSE_SECONDS, Session
from ..data.wording import told
from ..drawing.console import add_columns, make_console, plain_table
from .commands import compute, say_failures
from .ending import at_end
from .opening import save, say_opened, under
from .query import Query


def inspect(args: Namespace, root: Path) -> int:
    """Compute the leading directions of a projection and of its neighbours, and print what they are; 1 if they cannot
    be computed."""
    model = open_model(args.model, root, Access.DOWNLOAD if args.download else Access.RANGES)
    chosen = _named(model, args.address)
    shown = _named(under(model, root, args.weight, args.address), args.address)
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(model, root, events.put, ComputeSettings(args.device, args.threads, is_small=True))
    session.load()
    say_opened(model, session)
    context = context_of(model)
    wanted = wanted_for(session, chosen, context)
    try:
        if not session.has(wanted[0]) or model.checkpoint is not None:
            with at_end(partial(save, [session])):
                compute(session, wanted, events, recompute=False, json_thresholds=None, beside=())
    finally:
        session.close(CLOSE_SECONDS)
    found = facts(session, shown, context)
    if found is None:
        say_failures(session, wanted[:1])
        return 1
    _print(found, _tokens(session, chosen, context) if args.tokens else None, is_json=args.json)
    return say_failures(session, wanted)


def _tokens(session: Session, projection: Projection, context: DirectionContext | None) -> TokenEnds | str:
    """The tokens at both ends of the direction, or a line that says why there are none."""
    try:
        return tokens_of(session, projection, context)
    except WeightsError as error:
        return str(error)


def _print(found: Facts, tokens: TokenEnds | str | None, *, is_json: bool) -> None:
    """Print the facts, and the tokens if --tokens was given."""
    if is_json:
        said = {"problem": tokens} if isinstance(tokens, str) else None if tokens is None else token_record(tokens)
        print(json.dumps(record(found) | ({} if said is None else {"tokens": said}), allow_nan=False))
        return
    console = make_console()
    added = [f"no tokens: {tokens}"] if isinstance(tokens, str) else () if tokens is None else token_lines(tokens)
    for line in (*lines(found), *(("", *added) if tokens is not None else ())):
        console.print(Text(line))


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
        raise InputError(told(found))
    if found.is_product:
        raise InputError(f"{name}: {AS_FACTORS}")
    if not found.count:
        raise InputError(f"{name} is not a matrix: it has no directions")
    return found


def print_directions(console: Console, query: Query, _: Namespace) -> None:
    """Print a line for each projection whose directions are stored."""
    table = plain_table(console)
    add_columns(table, "address", "s1/s2", "fixed", "cosine", "outputs", "inputs", "what it is")
    for each in known_of(query.lens.pair.first, query.projections):
        cosine = None if each.fixed is None else each.fixed.cosine
        numbers = ["" if n is None else f"{n:.2f}" for n in (each.ratio, each.ratio_fixed, cosine)]
        sides = [f"{side.participation:.1f}" for side in (each.outputs, each.inputs)]
        table.add_row(*(Text(cell) for cell in (each.projection.address, *numbers, *sides, sentence(each))))
    console.print(table)
    console.print(Text("fixed: s1/s2 in the fixed gauge; cosine: of the first direction there and as it is"))
