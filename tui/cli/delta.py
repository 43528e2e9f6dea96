"""`rankscope delta`: what fine-tuning changed, and which LoRA rank holds it; and `show --view delta`."""

from __future__ import annotations

import queue
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.calibration.channels import is_gguf
from rankscope.engine.catalogue.tree import kinds_of
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.chosen_weighting import choose, said_of
from ..data.delta_numbers import ADVICE, DeltaNumbers, changes_of, columns_at, noise_beside
from ..data.delta_vectors import vector_changes
from ..data.deltas import Apart, Matched, WithoutDifference, matched
from ..data.model import Model, open_model
from ..data.session import CLOSE_SECONDS, Session
from ..data.wording import percent
from ..drawing.console import make_console, say
from ..drawing.console_tables import wide_tables
from .commands import compute, say_failures
from .delta_lora import Lora, outputs_of
from .ending import at_end
from .opening import lines_of, save, say_opened, verify
from .query import Query

_THRESHOLDS = (0.9,)
_MOST_LISTED = 20
"""At most this many addresses are listed."""


def delta(args: Namespace, root: Path) -> int:
    """Compute what is missing, and print how each projection changed; 1 if a difference cannot be computed."""
    outputs = outputs_of(args)
    access = Access.DOWNLOAD if args.download else Access.RANGES
    first, second = (open_model(name, root, access, or_stored=False) for name in (args.model, args.against))
    under = choose(args.weight, first, root, say)
    found = matched(first, second, under, args.filter)
    lora = Lora(args, outputs, (first, second), found.deltas, under) if any(outputs) else None
    rows = [*found.deltas, *(lora.wanted.joint if lora is not None else ())]
    session = _computed(first, second, rows, args, root)
    console = make_console()
    console.print(Text(_title(first.name, second.name, under.label if under else "")))
    for threshold in dict.fromkeys(args.threshold or _THRESHOLDS):
        changes = changes_of(session, found.deltas, threshold, args.independent)
        print_changes(console, changes, threshold, f"at {percent(threshold)} % of the energy")
    for line in (*_explanations(changes), *_unpaired(first, second, found), *lines_of(said_of(under, ()))):
        say(line)
    code = say_failures(session, rows)
    return max(code, lora.write(session, (args.threshold or _THRESHOLDS)[0])) if lora is not None else code


def print_delta(console: Console, query: Query, args: Namespace) -> None:
    """Print the differences that are stored."""
    changes: Sequence[DeltaNumbers] = ()
    for threshold, changes in shown(query, args).items():
        print_changes(console, changes, threshold, f"at {percent(threshold)} % of the energy")
    for line in _explanations(changes):
        console.print(Text(line))


def shown(query: Query, args: Namespace) -> dict[float, list[DeltaNumbers]]:
    """The numbers of `show --view delta`, by threshold. Reads files."""
    session = query.lens.pair.first
    thresholds = dict.fromkeys(args.threshold or _THRESHOLDS)
    return {t: changes_of(session, query.projections, t, args.independent) for t in thresholds}


def _computed(first: Model, second: Model, deltas: Sequence[Projection], args: Namespace, root: Path) -> Session:
    """A session of A in which these differences are stored, or have failed with a reason."""
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(first, root, events.put, ComputeSettings(args.device, args.threads))
    assert second.checkpoint is not None
    session.others = (second.checkpoint,)
    session.load()
    session.tidy()
    say_opened(first, session)
    for warning in second.warnings:
        say(f"B: {warning}")
    noise = noise_beside(deltas)
    if not args.recompute:
        verify(session, [*deltas, *noise])
    try:
        with at_end(partial(save, [session])):
            compute(session, deltas, events, args.recompute, None, noise)
    finally:
        session.close(CLOSE_SECONDS)
    return session


def print_changes(console: Console, changes: Sequence[DeltaNumbers], threshold: float, title: str) -> None:
    """Print a table with a row for each difference."""
    columns = columns_at(threshold)
    shapes = [f"{c.delta.rows}x{c.delta.cols}" for c in changes]
    texts = [["shape", *shapes], *([column.heading, *(column.text(c) for c in changes)] for column in columns)]
    for table in wide_tables(console, ["projection", *(c.delta.address for c in changes)], texts, Text(title)):
        console.print(table)
        console.print()


def title_of(query: Query, args: Namespace) -> str:
    """The title of `show --side delta`."""
    session = query.lens.pair.first
    return _title(session.raw.name, args.against, session.weighting[0])


def _title(first: str, second: str, weighting: str) -> str:
    by = f"; weighted by {weighting}" if weighting else ""
    return f"{printable(second)} - {printable(first)}{by}"


def _explanations(changes: Sequence[DeltaNumbers]) -> Iterator[str]:
    """Lines below the table: what the numbers mean, and which differences get no advice."""
    yield ADVICE
    if quantised := [c for c in changes if c.quantised]:
        kind = quantised[0].quantised
        yield f"no rank is advised for {len(quantised)} of {len(changes)}: A or B is quantised ({kind})"
    if len({is_gguf(p.tensor) for c in changes for p in c.delta.parents}) > 1:
        yield "one of the two is a GGUF file, in which rows of queries and keys may be in another order"
    same = sum(c.is_unchanged for c in changes)
    rounding = sum(c.above == 0 and not c.is_unchanged for c in changes)
    if same or rounding:
        yield f"{same} of {len(changes)} are unchanged to the bit, {rounding} differ by no more than rounding"


def _unpaired(first: Model, second: Model, found: Matched) -> Iterator[str]:
    """Lines about projections that have no row because only one model has them."""
    for why in (Apart.SHAPE, Apart.FACTORS, Apart.RENAMED, Apart.ONLY_A, Apart.ONLY_B):
        if listed := found.why(why):
            yield f"{why}: {len(listed)}: {_listed(item.text for item in listed)}"
    if listed := found.why(Apart.LEFT_OUT):
        kinds = kinds_of(_in_first(listed))
        count = "1 matrix" if len(listed) == 1 else f"{len(listed)} matrices"
        yield f"{count} ({kinds}) {'is' if len(listed) == 1 else 'are'} left out: --filter '*' adds them"
    if listed := found.why(Apart.VECTOR):
        yield from _vectors(first, second, listed)


def _vectors(first: Model, second: Model, listed: Sequence[WithoutDifference]) -> Iterator[str]:
    """Lines about norms and biases: how many differ, and by how much."""
    every = list(vector_changes(first, second, listed))
    changed = [v for v in every if v.relative]
    unlike = [v for v in every if v.relative is None]
    by = _listed(f"{v.listed.text} |d|/|W| {v.relative:.2e}" for v in sorted(changed, key=lambda v: -(v.relative or 0)))
    yield f"norms, biases and other vectors: {len(every)}, {len(changed)} of them changed{': ' if by else ''}{by}"
    if unlike:
        yield f"not compared: {len(unlike)}: {_listed(f'{v.listed.text}: {v.reason}' for v in unlike)}"


def _in_first(listed: Iterable[WithoutDifference]) -> Iterator[Projection]:
    yield from (p for item in listed if (p := item.ours) is not None)


def _listed(texts: Iterable[str]) -> str:
    every = list(texts)
    more = f" and {len(every) - _MOST_LISTED} more" if len(every) > _MOST_LISTED else ""
    return "; ".join(every[:_MOST_LISTED]) + more
