"""`rankscope apply`: the checkpoint that a plan makes of a model, as factors, or dense by their products."""

from __future__ import annotations

import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from rankscope.engine.atomic import move_folder, temporary_folder
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.devices import pick, set_blas_threads, thread_count
from rankscope.engine.errors import InputError, WeightsError, printable
from rankscope.engine.formats.safetensors import SAFETENSORS
from rankscope.engine.moment import Weighting
from rankscope.engine.plan.matrices import Matrices
from rankscope.engine.plan.plan_file import Plan, read_plan
from rankscope.engine.plan.rewritten import RewrittenCheckpoint
from rankscope.engine.plan.side_files import config_type, has_config
from rankscope.engine.plan.works import Work, works_of
from rankscope.engine.plan.written import WrittenProjection, WrittenTensors, bytes_of, write
from rankscope.engine.solvers.ladder import moved
from rankscope.engine.weights import HostArray
from rankscope.store.models import stored_models
from rankscope.store.room import free

from ..data.chosen_weighting import NONE, NORM, choose, pooled
from ..data.model import Model, open_model
from ..data.phrases import byte_size
from ..data.wording import WHAT_A_PLAN_IS
from ..drawing.console import add_columns, make_console, plain_table, say
from .ending import at_end
from .outputs import output_folder

TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LINE_SECONDS = 5.0
_MADE = "made"
_ROUNDING = 0.02
"""bfloat16's eps is .0078: an error that rises by more than this is not explained by rounding factors to bfloat16."""


def apply(args: Namespace, root: Path) -> int:
    """Write the new checkpoint into a folder, and print the error of each projection."""
    output = output_folder(args.output, "-o DIR")
    plan = read_plan(Path(args.plan).expanduser())
    if plan.cost == "pifa" and not args.merge:
        raise InputError("the plan counts parameters by pifa, and two factors have more of them: add --merge")
    model = _opened(plan, args.model, root)
    works = works_of(plan, model.tree.projections, _weighting(plan, args.weight, model, root))
    if not works:
        raise InputError("the plan keeps every projection as it is: there is nothing to apply, plan a larger --cut")
    place = placing(args.device, args.threads)
    with temporary_folder(output.parent) as folder, at_end(partial(_remove_unfinished, folder, output)):
        try:
            layout = _layout(model, works, args, place, folder)
            done, numbers = _write(layout, folder / _MADE, output.parent)
        except WeightsError as error:
            raise InputError(str(error)) from None
        move_folder(folder / _MADE, output)
    _print(done, plan, args.merge)
    say(f"{numbers:,} numbers are in {printable(str(output))}{'' if args.merge else _counted(plan, works, done)}")
    say(WHAT_A_PLAN_IS)
    return 0


def _layout(
    model: Model, works: Sequence[Work], args: Namespace, place: Callable[[HostArray], Any], folder: Path
) -> RewrittenCheckpoint:
    """The files to write: from the model's own, or for a GGUF file from what transformers makes of it in a temporary
    folder."""
    checkpoint = model.checkpoint
    assert checkpoint is not None
    dtype, tell = TYPES.get(args.dtype or ""), _Progress(len(works))
    if not checkpoint.format.stands_alone:
        _say_kind(checkpoint)
        own = Matrices(checkpoint)
        return RewrittenCheckpoint(
            checkpoint, works, own, own, args.merge, dtype, config_type(checkpoint) or "F16", place, tell
        )
    from rankscope.engine.calibration.running import require

    require("applying a plan to a GGUF file")
    from rankscope.engine.plan.from_gguf import bytes_for, converted, type_for

    dtype = dtype or type_for(checkpoint)
    _check_room(folder.parent, 2 * bytes_for(checkpoint, dtype))
    say(f"loading {printable(checkpoint.name)} by transformers, to write it under its names in {dtype}")
    (folder / "converted").mkdir()
    made = converted(checkpoint, works, model.tree, folder / "converted", dtype)
    if (held := checkpoint.numbers) != (numbers := made.checkpoint.numbers):
        say(f"the file holds {held:,} numbers, and transformers loads {numbers:,}: some may be left out")
    return RewrittenCheckpoint(made.checkpoint, made.works, made.own, made.exact, args.merge, None, dtype, place, tell)


def _write(layout: RewrittenCheckpoint, folder: Path, parent: Path) -> tuple[list[WrittenProjection], int]:
    """Write the checkpoint if `parent` has room for it. Return the errors, measured on the files as read back, and how
    many numbers were written."""
    entries = layout.entries()
    _check_room(parent, bytes_of(entries, layout.checkpoint))
    folder.mkdir()
    write(layout, entries, folder)
    say("reading back what was written")
    written = WrittenTensors(folder)
    return written.check(layout), written.numbers


class _Progress:
    """Reports now and then how many matrices are factored."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._began = self._last = 0.0

    def __call__(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._done == 1:
            self._began = self._last = now
        elif now - self._last >= _LINE_SECONDS:
            self._last = now
            left = (now - self._began) / (self._done - 1) * (self._total - self._done)
            say(f"{self._done}/{self._total} factored  ETA {left:.0f}s")


def _opened(plan: Plan, named: str | None, root: Path) -> Model:
    try:
        return open_model(named or _name(plan, root), root, Access.DOWNLOAD, or_stored=False)
    except InputError as error:
        if named:
            raise
        raise InputError(f"{error}: name the planned model with --model PATH") from None


def _name(plan: Plan, root: Path) -> str:
    """The name to open: a commit on the Hub, or the path in the store where only one model of that name has spectra."""
    if plan.commit:
        return f"{plan.model}@{plan.commit}"
    found = [
        model.name for model in stored_models(root) if plan.model in (Path(model.name).name, Path(model.name).stem)
    ]
    return found[0] if len(found) == 1 else plan.model


def _weighting(plan: Plan, named: str | None, model: Model, root: Path) -> Weighting | None:
    """The weighting that the plan was made under. A file of moments must be named again: the plan holds only the digest
    of its numbers."""
    made = plan.weighting
    if made is None:
        if named not in (None, NONE):
            raise InputError("the plan was made of the weights as they are: leave --weight out")
        return None
    label = printable(made.label)
    if made.name == NORM:
        if named not in (None, NORM):
            raise InputError(f"the plan was made under {label}: leave --weight out")
        return choose(NORM, model, root, say)
    if named in (None, NONE, NORM):
        raise InputError(f"the plan was made under {label}: name its file with --weight FILE")
    found = choose(named, model, root, say)
    return pooled(found, model, model.tree.projections) if made.pooled and found is not None else found


def placing(spec: str, threads: int | None) -> Callable[[HostArray], Any]:
    """A function that moves a matrix to the first device of `spec`, or leaves it where it is if that has no room."""
    found, notes = pick(spec)
    for note in notes:
        say(note)
    set_blas_threads(found[0], thread_count(threads))

    def place(matrix: HostArray) -> Any:
        try:
            return moved(matrix, found[0].name)
        except RuntimeError:
            return matrix

    return place


def _say_kind(checkpoint: Checkpoint) -> None:
    """Warn about a model whose files differ from what transformers writes."""
    if checkpoint.format is not SAFETENSORS:
        say("it is not safetensors: written as safetensors under the same names, which is not tested to load")
    if checkpoint.quantisation:
        say(f"it is quantised ({checkpoint.quantisation}): all of it is written dequantised")
    if not has_config(checkpoint):
        say("there is no config.json beside it, which transformers needs to load what is written")


def _check_room(folder: Path, size: int) -> None:
    left = free(folder)
    if left is not None and left < size:
        raise InputError(
            f"it takes {byte_size(size)}, and {byte_size(left)} are free in {printable(str(folder))}: make room, "
            "or name another with -o"
        )


def _remove_unfinished(folder: Path, output: Path) -> str:
    """Remove the unfinished folder. Called from another thread when a signal ends the program."""
    is_whole = output.is_dir() and any(output.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    return "" if is_whole else f"nothing is written to {printable(str(output))}"


def _counted(plan: Plan, works: Sequence[Work], done: Sequence[WrittenProjection]) -> str:
    """How many numbers the factored matrices had and have now, as counted in the files and as the plan says."""
    before = sum(work.projection.rows * work.projection.cols for work in works)
    stated = sum(row.parameters for row in plan.rows if row.rank is not None)
    return f": {sum(each.parameters for each in done):,} ({stated:,} by the plan) in the place of {before:,}"


def _print(done: Sequence[WrittenProjection], plan: Plan, merge: bool) -> None:
    """Print a table with a row for each projection."""
    console = make_console()
    table = plain_table(console)
    columns = ("rank", "planned", "written", "type", "numbers")
    add_columns(table, "address", *columns, right=columns)
    for each in done:
        numbers = f"{each.promised:.6f}", f"{each.error:.6f}", each.dtype, str(each.parameters)
        table.add_row(Text(each.address), str(each.rank), *numbers)
    console.print(table)
    under = f"under {printable(plan.weighting.label)}" if plan.weighting else "of the weights as they are"
    false = [each for each in done if abs(each.error - each.promised) > _ROUNDING]
    if false:
        named = f"e.g. of {printable(false[0].address, 80)}"
        say(f"{len(false)} errors are not those of the plan, {named}: its ranks or energies were changed")
        return
    more = max(abs(each.error - each.promised) for each in done)
    types = ", ".join(sorted({each.dtype for each in done}))
    what = "products" if merge else "factors"
    say(f"planned, written: relative errors of outputs {under}, sqrt(1 - energy) and as read back from the files")
    say(f"rounding the {what} to {types} moves them by at most {more:.1e}")
