"""`rankscope moments`: run a model on text, and write second moments of its projections' inputs into a file."""

from __future__ import annotations

import queue
import shutil
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.text import Text

from rankscope.engine.calibration.collect import HELD_OUT, CollectionPlan, Collector, make_plan, room
from rankscope.engine.calibration.moments_file import write_moments
from rankscope.engine.calibration.running import fed_of, length_of, load, require
from rankscope.engine.calibration.said import Figures, scarce_line, sink_lines
from rankscope.engine.calibration.texts import read_text, sequences
from rankscope.engine.calibration.tokens_read import digests_of, written
from rankscope.engine.catalogue.names import inner_config
from rankscope.engine.catalogue.tree import kinds_of
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.devices import pick
from rankscope.engine.errors import InputError, printable
from rankscope.engine.formats.safetensors import Safetensors
from rankscope.engine.spectrum import Projection

from ..data.model import open_model
from ..data.phrases import byte_size
from ..drawing.console import add_columns, make_console, plain_table, say
from .ending import at_end
from .eta import EtaLines
from .outputs import output_file

_PER_FEATURE = 16
"""Default number of tokens for each input feature of the widest matrix of x x^T."""


def moments(args: Namespace, root: Path) -> int:
    """Run the model, write the file, and print how good it is."""
    require()
    output = _checked(args.output)
    text = read_text(args.text)
    device = one_device(args.device)
    opened = open_model(args.model, root, Access.DOWNLOAD, or_stored=False)
    checkpoint = opened.checkpoint
    assert checkpoint is not None
    say(f"loading {printable(opened.name)} by transformers")
    model, tokenizer = load(checkpoint, device)
    fed, lost = fed_of(model, opened.tree.scanned(), checkpoint)
    if not fed:
        raise InputError("none of its projections is the weight of a module that transformers runs: name another model")
    length = length_of(model)
    plan = make_plan(model, fed, next(sequences(text.text, tokenizer, length, length)), room(device))
    lost += [p for one in plan.unreached for p in one.projections]
    wanted = args.tokens or _PER_FEATURE * max((one.cols for one in plan.fed if plan.full(one)), default=length)
    run = list(sequences(text.text, tokenizer, length, wanted))
    if (free := shutil.disk_usage(output.parent).free) < plan.bytes:
        at = printable(str(output.parent))
        raise InputError(
            f"the file may take {byte_size(plan.bytes)}, and {byte_size(free)} are free in {at}: make room, or "
            "name another -o"
        )
    _say_plan(plan, run, wanted, lost, text.label, device)
    read = written(digests_of(run, tokenizer.all_special_ids))
    calibration = _Calibration(checkpoint, Collector(model, plan), output, text.label, read, device)
    with at_end(calibration.save):
        _run_in_thread(partial(calibration.run, run))
        saved = calibration.save()
    say(saved)
    _print(calibration)
    return 0


class _Calibration:
    """The sums of a run, the figures worked out from them, and the file that they are saved in."""

    def __init__(
        self, checkpoint: Checkpoint, collector: Collector, output: Path, label: str, read: str, device: str
    ) -> None:
        self.collector = collector
        self.figures: dict[str, Figures] = {}
        self._checkpoint, self._output, self._device = checkpoint, output, device
        self._said = {
            "datasets": label,
            "read": read,
            "model": checkpoint.name,
            "architecture": str(inner_config(checkpoint.config, "").get("model_type") or ""),
        }

    def run(self, ids: Sequence[Sequence[int]], tell: Callable[[str, int, int], None]) -> None:
        """Run the sequences, then compare with those held out. `tell` is called with a task, its done and its total
        steps."""
        from rankscope.engine.calibration.figures import figures  # torch

        self.collector.run(ids, partial(tell, "sequences"))
        seen = self.collector.seen
        total = sum(len(fed.projections) for fed, sums in seen.items() if sums.tokens)
        for done, (p, found) in enumerate(figures(self._checkpoint, seen, self._device), 1):
            with self.collector.lock:
                self.figures[p.address] = found
            tell("projections held against position 0 and what was held out", done, total)

    def save(self) -> str:
        """Write the sums so far. Called from another thread when a signal ends the program."""
        with self.collector.lock:
            tokens = max((sums.tokens + sums.held for sums in self.collector.seen.values()), default=0)
            if not tokens:
                return "no token was read, so nothing is written"
            write_moments(self._output, self.collector.seen, self._said, self.figures)
        return f"{tokens:,} tokens are in {printable(str(self._output))}"


def _checked(text: str) -> Path:
    (suffix,) = Safetensors.suffixes
    if not text.endswith(suffix):
        raise InputError(f"{printable(text)} does not end in {suffix}: name the file FILE{suffix}")
    return output_file(text, f"-o FILE{suffix}")


def one_device(spec: str) -> str:
    """The first device of `spec`, as a model runs on only one."""
    found, notes = pick(spec)
    for note in notes:
        say(note)
    if len(found) > 1:
        say(f"the model runs on one device: {found[0].name}")
    return found[0].name


def _say_plan(
    plan: CollectionPlan, run: Sequence[Sequence[int]], wanted: int, lost: Sequence[Projection], label: str, device: str
) -> None:
    """Print what will be run and written, and what will be missing from it."""
    tokens = sum(map(len, run))
    passes = "" if len(plan.passes) == 1 else f" in {len(plan.passes)} passes"
    say(f"{printable(label)}: {tokens:,} tokens in {len(run)} sequences{passes}, one in eight held out")
    held = f"{byte_size(plan.device_bytes)} on {device} beside the model"
    say(f"writes at most {byte_size(plan.bytes)}, position 0 and held out included; {held}")
    if tokens < wanted:
        say(f"the text has no more tokens: {wanted:,} were requested")
    if len(run) < HELD_OUT:
        say(f"nothing is held out of fewer than {HELD_OUT} sequences: give more --tokens or text")
    if lost:
        say(f"{len(lost)} projections are not in it, as text reaches no module that holds them: {kinds_of(lost)}")


def _run_in_thread(work: Callable[[Callable[[str, int, int], None]], None]) -> None:
    """Run `work` in another thread, which a signal to this one cannot stop between a sum and its count."""
    told: queue.SimpleQueue[tuple[str, int, int] | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(lambda what, done, total: told.put((what, done, total)))
            told.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            told.put(error)

    threading.Thread(target=run, name="rankscope-moments", daemon=True).start()
    lines = EtaLines()
    while (event := told.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        lines.tell(*event)


def _print(calibration: _Calibration) -> None:
    """Print a row for each projection, and below the table what to know before believing a rank."""
    figures = calibration.figures
    console = make_console()
    table = plain_table(console)
    columns = ("tokens / n", "k90", "held out", "sink")
    add_columns(table, "address", *columns, right=columns)
    for address, found in figures.items():
        held, sink = ("" if share is None else f"{100 * share:.1f} %" for share in (found.held, found.sink))
        table.add_row(Text(address), f"{found.per_feature:.1f}", str(found.k90), held, sink)
    console.print(table)
    for line in sink_lines(figures):
        say(line)
    if scarce := scarce_line(figures.values()):
        say(scarce)
    experts = [s for fed, s in calibration.collector.seen.items() if any(p.expert is not None for p in fed.projections)]
    if unseen := sum(not sums.tokens for sums in experts):
        say(f"{unseen} of {len(experts)} inputs of experts got no token: they are unseen, and are not weighted")
