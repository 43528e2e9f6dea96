"""`rankscope plan`: ranks for a budget, written to a file; missing spectra are computed first."""

from __future__ import annotations

import queue
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from rich.text import Text

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event
from rankscope.engine.derive.derived import AS_FACTORS
from rankscope.engine.errors import InputError, printable
from rankscope.engine.plan.hull import RankGrid
from rankscope.engine.plan.plan_file import PlanRow, looks_like_plan, write_plan
from rankscope.engine.spectrum import Projection

from ..data.chosen_weighting import NONE, NORM, choose, pooled, said_of
from ..data.model import open_model
from ..data.planner import Planned, Planner, PlanSizes, planned_of, states_of
from ..data.session import CLOSE_SECONDS, Session
from ..data.wording import WEIGHTS_ONLY, WHAT_A_PLAN_IS, left_out
from ..drawing.console import add_columns, make_console, plain_table, say
from .commands import compute, say_failures
from .ending import at_end
from .opening import lines_of, save, say_opened, verify, wanted_of
from .outputs import output_file

_LOSSES = {
    "parameters": "mean of 1 - energy, by parameters",
    "relative": "mean of 1 - energy",
    "absolute": "of all energy together",
}


def plan(args: Namespace, root: Path) -> int:
    """Compute what is missing, write the plan, print what it comes to; 1 if a spectrum could not be computed."""
    output = _checked(args.output)
    model = open_model(args.model, root, Access.DOWNLOAD if args.download else Access.RANGES)
    wanted = wanted_of(model.tree, args.filter)
    projections = planned_of(wanted)
    keys = {p.key for p in projections}
    if unread := [p for p in wanted if p.key not in keys]:
        say(f"{len(unread)} are not planned: {unread[0].address}: {unread[0].problem or AS_FACTORS}")
    if not projections:
        raise InputError("none of these is a matrix of weights: see  rankscope tree MODEL")
    chosen = choose(args.weight, model, root, say)
    try:
        weighting = None if chosen is None else pooled(chosen, model, projections)
        states = states_of(model, weighting, projections)
    except InputError as error:
        raise InputError(f"--weight {printable(args.weight)}: {error}") from None
    grid = RankGrid(args.min_rank, args.multiple, args.cost)
    refused = {p.address for p in states if p.problem is not None}
    PlanSizes.of(model, states, grid, refused).budget(args.cut, args.of)  # refuse an impossible cut before the scan
    for line in lines_of(said_of(chosen, states)):
        say(line)
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    session = Session(model, root, events.put, ComputeSettings(args.device, args.threads))
    code = _computed(session, states, events)
    planner = Planner(session, states, weighting, args.objective, grid, session.failures)
    planned = planner.plan(args.cut, args.of, args.uniform)
    write_plan(output, planned.plan)
    _say_refused(planned)
    if not args.filter and (rest := left_out(model.tree)):
        say(f"{rest}: --filter '*' adds them")
    if args.weight in (NONE, NORM):
        say(f"{WEIGHTS_ONLY} with --weight FILE")
    _print(planned, states, output)
    return code


def _checked(text: str) -> Path:
    """The path to write the plan to: a new one, or that of another plan."""
    if not text.endswith(".json"):
        raise InputError(f"{printable(text)} does not end in .json: name the plan FILE.json")
    output = output_file(text, "-o FILE.json")
    if output.exists() and not looks_like_plan(output):
        raise InputError(f"{printable(str(output))} exists and is not a plan: name another with -o FILE.json")
    return output


def _computed(session: Session, states: Sequence[Projection], events: queue.SimpleQueue[tuple[Event, ...]]) -> int:
    """Compute those that are not stored; 1 if some failed."""
    session.load()
    session.tidy()
    say_opened(session.raw, session)
    sound = [p for p in states if p.problem is None]
    verify(session, sound)
    try:
        with at_end(partial(save, [session])):
            compute(session, sound, events, recompute=False, json_thresholds=None, beside=())
    finally:
        session.close(CLOSE_SECONDS)
    return say_failures(session, sound)


def _say_refused(planned: Planned) -> None:
    """Print which projections stay as they are because they have no spectrum."""
    for address, reason in list(planned.refused.items())[:1]:
        say(f"{len(planned.refused)} of them are kept as they are: {address}: {reason}")


def _print(planned: Planned, states: Sequence[Projection], output: Path) -> None:
    """Print a row for each role, and below the table what the plan comes to."""
    console = make_console()
    table = plain_table(console)
    numbers = ("planned", "kept", "rank", "to", "median", "parameters", "energy")
    add_columns(table, "role", *numbers, right=numbers)
    rows: dict[str, list[PlanRow]] = defaultdict(list)
    for p, row in zip(states, planned.plan.rows, strict=True):
        rows[f"{p.block} {p.role}" if p.block != "other" else "other"].append(row)
    for role, held in rows.items():
        table.add_row(*(Text(cell) for cell in _role(role, held)))
    console.print(table)
    sums = plain_table(console)
    sums.show_header = False
    sums.add_column(no_wrap=True)
    sums.add_column(overflow="fold")
    for name, text in _sums(planned, output):
        sums.add_row(Text(name), Text(text))
    console.print(sums)
    console.print(Text(WHAT_A_PLAN_IS))


def _role(role: str, rows: Sequence[PlanRow]) -> Iterator[str]:
    ranks = [row.rank for row in rows if row.rank is not None]
    yield from (printable(role), str(len(rows)), str(len(rows) - len(ranks)))
    yield from (f"{number:g}" for number in (min(ranks), max(ranks), median(ranks))) if ranks else ("-", "-", "-")
    before, after = sum(row.shape[0] * row.shape[1] for row in rows), sum(row.parameters for row in rows)
    yield f"{100 * after / before:.1f} %"
    yield f"{100 * sum(row.energy for row in rows) / len(rows):.2f} %"


def _sums(planned: Planned, output: Path) -> Iterator[tuple[str, str]]:
    plan = planned.plan
    yield "weighting", plan.weighting.label if plan.weighting else "none: the weights as they are"
    yield "loss", f"{100 * plan.loss:.3f} %  {_LOSSES[plan.objective]}"
    gap = 100 * (plan.loss - plan.bound)
    yield "bound", f"{100 * plan.bound:.3f} %  no plan of this budget loses less; gap {gap:.3f} %"
    uniform = "" if plan.uniform else f"; the uniform plan {100 * planned.uniform_energy:.2f} %"
    yield "energy", f"{100 * planned.energy:.2f} %  kept on average{uniform}"
    yield "budget", f"{plan.budget:,} parameters, {plan.parameters:,} used"
    cut = planned.sizes.parameters - plan.parameters
    for name, whole in (("projections", planned.sizes.parameters), ("total", planned.sizes.stored)):
        if whole:
            yield f"of {name}", f"{whole:,} -> {whole - cut:,} parameters: {100 * cut / whole:.2f} % cut"
    yield "plan", printable(str(output))
