"""`rankscope mla`: which kv_lora_rank and q_lora_rank latent attention would need; and `show --view mla`."""

from __future__ import annotations

import json
import queue
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.atomic import write_atomically
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event
from rankscope.engine.derive.latent import Way, way
from rankscope.engine.errors import InputError, cannot_write, printable

from ..data.chosen_weighting import choose, said_of
from ..data.latent_layers import LatentLayer, layers_of, stored_layers
from ..data.latent_ranks import Ranks, beside, columns_of, over, ranks_of, remarks, report, totals
from ..data.model import open_model
from ..data.session import CLOSE_SECONDS, Session
from ..data.wording import percent
from ..drawing.console import make_console, plain_table, say
from .commands import compute, say_failures
from .ending import at_end
from .opening import lines_of, save, say_opened, verify
from .outputs import output_file
from .query import Query

_THRESHOLDS = (0.9,)


def mla(args: Namespace, root: Path) -> int:
    """Compute what is missing, and print the ranks by layer; 1 if those of a layer cannot be computed."""
    chosen = way(args.rope, args.real, args.balance, args.bias == "append")
    output = output_file(args.output, "-o FILE.json") if args.output else None
    model = open_model(args.model, root, Access.DOWNLOAD if args.download else Access.RANGES, or_stored=False)
    under = choose(args.weight, model, root, say)
    layers = layers_of(model, chosen, under, args.filter)
    wanted = [p for layer in layers for p in layer.wanted]
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(model, root, events.put, ComputeSettings(args.device, args.threads))
    session.load()
    session.tidy()
    say_opened(model, session)
    if not args.recompute:
        verify(session, wanted)
    try:
        with at_end(partial(save, [session])):
            compute(session, wanted, events, args.recompute, None, beside=())
    finally:
        session.close(CLOSE_SECONDS)
    found = {t: ranks_of(session, layers, chosen, t) for t in dict.fromkeys(args.threshold or _THRESHOLDS)}
    weighting = (under.name, under.label) if under is not None else ("", "")
    _print(make_console(), found, chosen, weighting[1])
    if output is not None:
        text = json.dumps(report(model.name, weighting, chosen, found), indent=1, allow_nan=False)
        _write(output, text)
    for line in lines_of(said_of(under, ())):
        say(line)
    return say_failures(session, wanted)


def print_mla(console: Console, query: Query, args: Namespace) -> None:
    """Print the ranks by layer, from stored spectra."""
    chosen, found = shown(query, args)
    session = query.lens.pair.first
    _print(console, found, chosen, session.weighting[1])


def shown(query: Query, args: Namespace) -> tuple[Way, dict[float, list[Ranks]]]:
    """The content of `show --view mla`: how keys and values are made latent, and the ranks by threshold.

    Raises:
        InputError: no spectrum that it needs is stored.
    """
    chosen = way(args.rope or "recompute", args.real, args.balance or "whole", args.bias == "append")
    session = query.lens.pair.first
    layers = _layers(session, chosen, args)
    if not any(session.has(layer.joint) for layer in layers):
        option = f" --weight {printable(args.weight)}" if args.weight != "none" else ""
        command = f"rankscope mla {printable(args.model)} --rope {chosen.text}{option}"
        raise InputError(f"none of this is computed yet: run  {command}")
    thresholds = args.threshold or _THRESHOLDS
    return chosen, {t: ranks_of(session, layers, chosen, t) for t in dict.fromkeys(thresholds)}


def _layers(session: Session, chosen: Way, args: Namespace) -> Sequence[LatentLayer]:
    model = session.raw
    if model.checkpoint is None:
        return stored_layers(session, chosen, args.filter)
    whole = replace(model, tree=build_tree(model.checkpoint))  # without weighting and filter
    return layers_of(whole, chosen, choose(args.weight, whole, session.root, lambda _: None), args.filter)


def _print(console: Console, found: Mapping[float, Sequence[Ranks]], chosen: Way, weighting: str) -> None:
    """Print a table for each threshold, and below them the notes that hold for all."""
    ranks: Sequence[Ranks] = ()
    for threshold, ranks in found.items():
        console.print(Text(_title(ranks, threshold, chosen, weighting)))
        _print_table(console, ranks)
        for line in totals(ranks):
            console.print(Text(line))
        console.print()
    for line in remarks([r.layer for r in ranks]):
        console.print(Text(line))


def _title(found: Sequence[Ranks], threshold: float, chosen: Way, weighting: str) -> str:
    by = f"; weighted by {weighting}" if weighting else ""
    lost = percent(1 - threshold)
    if any(r.layer.is_latent for r in found):
        return f"rank of the factors of latent attention and of their products that loses {lost} % of the energy{by}"
    balances = {
        "whole": "each over its norm",
        "own": "what has left RoPE and values each over its norm",
        "none": "as they are",
    }
    return f"RoPE {chosen.text}: rank of [K; V], {balances[chosen.balance]}, that loses {lost} % of the energy{by}"


def _print_table(console: Console, found: Sequence[Ranks]) -> None:
    columns = columns_of(found)
    table = plain_table(console)
    table.add_column(Text("layer"))
    for column in columns:
        table.add_column(Text(column.heading), justify="right")
    for r in found:
        numbers = [(column, column.number(r)) for column in columns]
        table.add_row(
            Text(r.layer.address.removeprefix("layers.").removesuffix(".attention")),
            *(r.mark if x is None else column.written(x) for column, x in numbers),
        )
    table.add_section()
    spans = [(column, over(found, column.number)) for column in columns]
    for name in ("min", "median", "max"):
        table.add_row(name, *("" if span is None else column.written(span[name]) for column, span in spans))
    table.add_section()
    reference = beside(found)
    label = "of" if any(r.layer.is_latent for r in found) else "DeepSeek-V2"
    table.add_row(label, *(reference.get(column.heading, "") for column in columns))
    console.print(table)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, f"{text}\n".encode())
    except OSError as error:
        raise cannot_write(path, error) from None
    say(f"written: {printable(str(path))}")
