"""The commands of `rankscope`: each takes the parsed arguments and the store's root, and returns the exit code."""

from __future__ import annotations

import json
import queue
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from rankscope.engine.atomic import is_writable
from rankscope.engine.catalogue.experts import sample
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event, Notice
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.weighting import is_weighted, noise_of
from rankscope.engine.errors import InputError, cannot_write, printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection
from rankscope.store.export import check_name, row
from rankscope.store.export import export as write_export

from ..data.chosen_weighting import NONE, choose
from ..data.gauged_model import RAW
from ..data.grid import make_grid
from ..data.latent_layers import derived_of
from ..data.lens import Lens
from ..data.model import Model, open_model
from ..data.pair import Pair
from ..data.phrases import byte_size
from ..data.session import CLOSE_SECONDS, Session, State
from ..data.wording import left_out, products_among, solved_again
from ..drawing.console import add_columns, make_console, plain_table, say
from ..drawing.console_tables import print_tables
from .ending import at_end
from .heads import heads_to_compute
from .opening import (
    lines_of,
    open_spectra,
    own_of,
    save,
    say_damage,
    say_opened,
    shown_of,
    stored_of,
    under,
    verify,
)
from .outputs import output_file
from .progress import LINE_SECONDS, progress_display
from .series import each_of

_FAILED_LINES = 8
"""At most this many projections that failed for the same reason get a line each."""


def scan(args: Namespace, root: Path) -> int:
    """Compute what is missing of each model; 0 if all is done, 1 if some failed, 2 if a model could not be opened."""
    return each_of(args.model, lambda name: _scan(Namespace(**{**vars(args), "model": name}), root))


def _scan(args: Namespace, root: Path) -> int:
    model = open_model(args.model, root, Access.DOWNLOAD if args.download else Access.RANGES, or_stored=False)
    weights = list(dict.fromkeys(args.weight or [NONE]))
    gauges = list(dict.fromkeys(args.gauge or [RAW]))
    if args.null and (NONE not in weights or RAW not in gauges):
        lacking = "--weight none" if NONE not in weights else "--gauge raw"
        raise InputError(f"--null flip is for the weights as they are: add {lacking}")
    states, latent = [(weight, gauge) for weight in weights for gauge in gauges], args.derived in ("all", "mla")
    models = [under(model, root, weight, args.filter, gauge, with_derived=latent) for weight, gauge in states]
    shown = [own_of(each, args.filter) for each in models]
    work = _work_of(shown, args, _derived(model, root, args, weights, gauges))
    thresholds = tuple(dict.fromkeys((*DEFAULT_THRESHOLDS, *(args.threshold or ()))))
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(model, root, events.put, ComputeSettings(args.device, args.threads, scheduler=args.scheduler))
    session.load()
    session.warm(work.every)  # while what follows reads
    session.tidy()
    say_opened(model, session)
    if not args.recompute:
        verify(session, work.every)
    try:
        with at_end(partial(save, [session])):
            rows = thresholds if args.json else None
            compute(session, work.with_rows, events, args.recompute, rows, work.noise)
    finally:
        session.close(CLOSE_SECONDS)
    if not args.json:
        _print_scanned(session, models, shown, args.threshold or DEFAULT_THRESHOLDS)
        _say_stored(session, work, args)
    _say_notes(session, models, work, args)
    return say_failures(session, work.every)


def _say_notes(session: Session, models: Iterable[Model], work: _Work, args: Namespace) -> None:
    """Print what to know about the numbers of a scan, and what it has left out."""
    for line in dict.fromkeys(line for each in models for line in lines_of(each.said)):
        say(line)
    if line := products_among(work.wanted):
        say(line)
    if session.progress is not None and (again := session.progress.again).found:
        say(solved_again(again))
    if not args.filter and (rest := left_out(session.raw.tree)):
        say(f"{rest}: --filter '*' adds them")


@dataclass(frozen=True, slots=True)
class _Work:
    """What a scan computes: the projections that are `wanted`, their twins with random signs, matrices derived from
    them, and noise under the weightings."""

    wanted: list[Projection]
    twins: list[Projection]
    derived: list[Projection]
    noise: list[Projection]

    @property
    def with_rows(self) -> list[Projection]:
        """Those that get a line of JSON each."""
        return [*self.wanted, *self.twins, *self.derived]

    @property
    def every(self) -> list[Projection]:
        return [*self.with_rows, *self.noise]


def _work_of(shown: Sequence[list[Projection]], args: Namespace, derived: Sequence[Projection]) -> _Work:
    """The work for projections in several states, and for `derived` ones."""
    wanted = [p for found in shown for p in sample(found, args.experts)]
    sound = [p for p in wanted if p.problem is None]
    twins = [flipped(p) for p in sound if not is_state(p) and not p.is_product] if args.null else []
    noise = [noise_of(p) for p in sound if is_weighted(p)]
    named = {p.label for p in wanted}  # the products that the fixed gauge shows are heads too
    return _Work(wanted, twins, [p for p in derived if p.label not in named], noise)


def _say_stored(session: Session, work: _Work, args: Namespace) -> None:
    """Print how many twins and derived matrices are stored, and which command shows them."""
    if stored := sum(session.has(p) for p in work.twins):
        say(f"{stored} spectra with random signs are stored; see rankscope show {args.model} --unit k/kf")
    if stored := sum(session.has(p) for p in work.derived):
        where = "show --view heads" if args.derived == "heads" else "mla"
        say(f"{stored} derived spectra are stored; see rankscope {where} {args.model}")


def _print_scanned(
    session: Session, models: Sequence[Model], shown: Sequence[list[Projection]], thresholds: Iterable[float]
) -> None:
    """Print the tables of each scanned state of the model."""
    for each, found in zip(models, shown, strict=True):
        session.show(each)
        lenses = [Lens(Pair(session), t) for t in dict.fromkeys(thresholds)]
        print_tables(make_console(), lenses, found, make_grid(found))


def _derived(
    model: Model, root: Path, args: Namespace, weights: Sequence[str], gauges: Sequence[str]
) -> list[Projection]:
    """The projections that --derived adds, under each weighting and in each gauge: matrices made of several others, and
    single heads. Print a line if there are none."""
    if args.offset and args.derived not in ("all", "heads"):
        raise InputError("--offset is for the products of heads: add --derived heads")
    found: list[Projection] = []
    for weight in weights if args.derived else ():
        try:
            under = choose(weight, model, root, lambda _: None)
            if args.derived in ("all", "mla"):
                found += derived_of(model, under, args.filter)
        except InputError as error:
            say(f"nothing is derived: {error}")
        if args.derived in ("all", "heads"):
            found += heads_to_compute(model, root, weight, gauges, args)
    return found


def say_failures(session: Session, computed: Sequence[Projection]) -> int:
    """Print which of these failed, and why. Return the exit code."""
    failed: dict[str, list[Projection]] = {}
    for p in computed:
        if session.state(p) is State.FAILED:
            failed.setdefault(session.failures[p.key], []).append(p)
    for reason, found in failed.items():
        _say_failed(reason, found)
    return 1 if failed else 0


def _say_failed(reason: str, failed: Sequence[Projection]) -> None:
    """Print a line for each, or one for all if they are many."""
    if len(failed) > _FAILED_LINES:
        say(f"failed: {len(failed)} projections, from {failed[0].label} to {failed[-1].label}: {reason}")
        return
    for p in failed:
        say(f"failed: {p.label}: {reason}")


def tree(args: Namespace, root: Path) -> int:
    """Print every projection and tensor, from headers and the store's index."""
    model = open_model(args.model, root, or_stored=False)
    session = Session(model, root, lambda _: None, ComputeSettings())
    session.load()
    for warning in model.warnings:
        say(warning)
    say_damage(session)
    if args.json:
        for projection in model.tree.projections:
            _print_row(session, projection, DEFAULT_THRESHOLDS)
        return 0
    console = make_console()
    table = plain_table(console)
    add_columns(table, "address", "shape", "dtype", "state")
    for p in model.tree.projections:
        shape = f"{p.rows} x {p.cols}" if p.rows else ""
        state = p.problem or p.note or session.state(p)
        table.add_row(Text(p.address), Text(shape), Text(p.stored_as), Text(printable(state)))
    console.print(table)
    return 0


def export(args: Namespace, root: Path) -> int:
    """Write what is stored into one file; 1 if that is only a part of the model, 2 if nothing is stored."""
    try:
        check_name(Path(args.output), args.layout)
    except ValueError as error:
        raise InputError(str(error)) from None
    output = output_file(args.output, "-o FILE")
    session = open_spectra(args.model, root, args.weight, args.filter, args.gauge, with_derived=bool(args.filter))
    wanted = shown_of(session, args.filter)
    values = session.read([p.key for p in wanted if session.has(p)])
    say_damage(session)
    stored = stored_of(session, args.model, wanted, args.weight, args.gauge)
    # Tied tensors share one entry, which names only the projection that was computed.
    entries = [replace(entry, projection=p) for p in stored if (entry := session.entry(p)) is not None]
    try:
        write_export(entries, values, output, args.layout)
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise cannot_write(args.output, error) from None
    missing = len(wanted) - len(stored)
    for line in lines_of(session.said):
        say(line)
    say(f"{len(stored)} spectra in {args.output}" + (f"; {missing} are not computed yet" if missing else ""))
    return 1 if missing else 0


def doctor(args: Namespace, root: Path) -> int:
    """Print what this machine has; with --verify, 1 if a stored value is damaged."""
    from .doctor import findings, verify_store

    lost = args.verify and verify_store(root, say)
    console = make_console()
    table = plain_table(console)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in findings(root):
        table.add_row(Text(name), Text(printable(text, 1000)))
    console.print(table)
    return 1 if lost else 0


def compute(
    session: Session,
    wanted: Sequence[Projection],
    events: queue.SimpleQueue[tuple[Event, ...]],
    recompute: bool,
    json_thresholds: Sequence[float] | None,
    beside: Sequence[Projection],
) -> None:
    """Run the engine to the end; print rows as they are saved, and progress on stderr. Projections in `beside` are
    computed too, but get no rows."""
    thresholds = json_thresholds or ()
    stored = [] if recompute else [p for p in wanted if session.has(p)]
    for threshold in thresholds:
        session.load_ranks(stored, threshold)
    for projection in stored if thresholds else ():
        _print_row(session, projection, thresholds)
    by_key: dict[str, list[Projection]] = {}
    for p in wanted:
        by_key.setdefault(p.key, []).append(p)  # several if tensors are tied
    missing = [p for p in (*wanted, *beside) if recompute or not session.has(p)]
    if not missing:
        return
    if not is_writable(session.store.folder):
        raise InputError(f"cannot write to the store {session.store.folder}: name another with --store DIR")
    if to_fetch := session.to_fetch(missing):
        say(f"fetches {byte_size(to_fetch)} of {byte_size(session.size)}")
    session.compute(missing, recompute=recompute)
    _follow(session, events, by_key, thresholds)


def _follow(
    session: Session,
    events: queue.SimpleQueue[tuple[Event, ...]],
    by_key: Mapping[str, Sequence[Projection]],
    thresholds: Sequence[float],
) -> None:
    """Show progress until the engine is done. With `thresholds`, print a row for each projection that is saved or has
    failed."""
    waiting = ""
    with progress_display() as display:
        while session.progress is None or session.progress.busy:
            batch = _next_batch(events)
            changed = session.apply(batch)
            _say_notices(batch)
            if session.progress:
                if session.progress.waiting and not waiting:
                    say(f"{session.progress.waiting}; what is computed is kept until there is room, ctrl+c discards it")
                waiting = session.progress.waiting
                display.update(session.progress)
            for p in (p for key in changed for p in by_key.get(key, ())) if thresholds else ():
                if session.state(p) in (State.STORED, State.DONE, State.FAILED):
                    _print_row(session, p, thresholds)


def _say_notices(events: Iterable[Event]) -> None:
    """Print what the engine says.

    Raises:
        InputError: it cannot go on.
    """
    for notice in (event for event in events if isinstance(event, Notice)):
        if notice.fatal:
            raise InputError(notice.text)
        say(notice.text)


def _next_batch(events: queue.SimpleQueue[tuple[Event, ...]]) -> tuple[Event, ...]:
    """The next events, or none after some seconds: a large matrix takes minutes, and a progress line is due before."""
    try:
        return events.get(timeout=LINE_SECONDS)
    except queue.Empty:
        return ()


def _print_row(session: Session, projection: Projection, thresholds: Iterable[float]) -> None:
    """Print one JSON line, flushed, so that a reader behind a pipe sees it as soon as the values are saved."""
    state = session.state(projection)
    entry = session.entry(projection) if state in (State.STORED, State.DONE) else None
    ranks = None
    if entry is not None:
        for threshold in thresholds:
            session.load_ranks([projection], threshold)
        ranks = {t: k for t in thresholds if (k := session.rank(projection, t)) is not None}
    error = session.failures.get(projection.key) or projection.problem or (projection.note if entry is None else "")
    made: dict[str, Any] = row(projection, entry, str(state), error or None, ranks)
    print(json.dumps(made, allow_nan=False), flush=True)
