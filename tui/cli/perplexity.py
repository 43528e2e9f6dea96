"""`rankscope perplexity`: how well a model predicts a text, and how much a plan or another checkpoint changes that."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.calibration.next_token_loss import (
    Windows,
    check_predicts,
    choose_windows,
    mean_loss,
    perplexity_of,
)
from rankscope.engine.calibration.pooled import PooledWeighting
from rankscope.engine.calibration.running import length_of, load, require
from rankscope.engine.calibration.texts import Text, read_text, sequences
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.errors import InputError, printable
from rankscope.engine.moment import Weighting
from rankscope.engine.plan.plan_file import Plan, read_plan
from rankscope.engine.plan.works import Work, works_of
from rankscope.engine.plan.written import FACTORS

from ..data.chosen_weighting import NORM, choose
from ..data.model import Model, open_model
from ..drawing.console import add_columns, make_console, plain_table, say
from .eta import EtaLines
from .moments import one_device

_TOKENS = 4096
"""Default number of tokens."""
_COMPARED = 10_000
"""Characters of the text on which two tokenizers must agree."""
_LARGE = 1e5


def perplexity(args: Namespace, root: Path) -> int:
    """Measure the model, then what it is compared with, on the same tokens."""
    require()
    text = read_text(args.text)
    plan = read_plan(Path(args.plan).expanduser()) if args.plan else None
    device = one_device(args.device)
    opened, checkpoint = _opened(args.model, root)
    other = _other(args.against, root) if args.against else None
    file = _file(args.weight, checkpoint) if args.weight is not None else None
    works = _works(plan, opened, root, file) if plan is not None else None
    say(f"loading {printable(checkpoint.name)} by transformers")
    model, tokenizer = load(checkpoint, device)
    windows = _windows(model, tokenizer, text, args.tokens or _TOKENS, file)
    check_predicts(model, windows)
    _say_windows(windows, text, model)
    lines = EtaLines()
    before = mean_loss(model, windows, partial(lines.tell, "windows"))
    after = None
    if works is not None:
        from rankscope.engine.plan.in_memory import put_into  # torch

        put_into(model, checkpoint, works, device, partial(lines.tell, "projections factored"))
        after = mean_loss(model, windows, partial(lines.tell, "windows as planned"))
    elif other is not None:
        del model  # one at a time
        after = _other_loss(other, device, tokenizer, text, windows)
    _print(args, text, windows, before, after)
    return 0


def _opened(name: str, root: Path) -> tuple[Model, Checkpoint]:
    opened = open_model(name, root, Access.DOWNLOAD, or_stored=False)
    assert opened.checkpoint is not None
    return opened, opened.checkpoint


def _other(named: str, root: Path) -> Checkpoint:
    if (Path(named).expanduser() / FACTORS).is_file():
        raise InputError(f"{printable(named)} holds factors, which transformers does not load: write it with --merge")
    return _opened(named, root)[1]


def _file(named: str, checkpoint: Checkpoint) -> FileWeighting:
    file = open_weighting(named, checkpoint.name, checkpoint.config)
    for line in file.warnings:
        say(line)
    if file.tokens_read is None:
        say(f"{file.label} does not say which tokens it was made of: some of those measured may be among them")
    return file


def _works(plan: Plan, model: Model, root: Path, file: FileWeighting | None) -> list[Work]:
    """The factored matrices to put into the running model, under the weighting that the plan was made under."""
    made = plan.weighting
    weighting: Weighting | None = None
    if made is not None and made.name == NORM:
        weighting = choose(NORM, model, root, say)
    elif made is not None:
        if file is None:
            raise InputError(f"the plan was made under {printable(made.label, 100)}: name that file with --weight FILE")
        weighting = PooledWeighting(file, model.tree.projections) if made.pooled else file
    return works_of(plan, model.tree.projections, weighting)


def _windows(model: Any, tokenizer: Any, text: Text, tokens: int, file: FileWeighting | None) -> Windows:
    """The tokens to measure on; never those that the second moments were summed over."""
    read = (file.tokens_read if file is not None else None) or frozenset()
    every = sequences(text.text, tokenizer, length_of(model), math.inf)
    windows = choose_windows(every, tokens, read, tokenizer.all_special_ids)
    if windows.left_out:
        assert file is not None
        say(f"{windows.left_out} windows are left out: {file.label} was made of tokens in them")
    if (held := sum(map(len, windows.ids))) < tokens:
        say(f"the text has no more tokens: {tokens:,} were requested, and {held:,} are measured")
    return windows


def _say_windows(windows: Windows, text: Text, model: Any) -> None:
    """Print what the perplexity is measured on: without that, two of them cannot be compared."""
    several = len(windows.ids) > 1
    count = f"{len(windows.ids)} windows of {windows.length}" if several else f"one window of {windows.length}"
    where = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
    say(f"{printable(text.label)}: {windows.predicted:,} tokens predicted in {count}, {where}")


def _other_loss(other: Checkpoint, device: str, tokenizer: Any, text: Text, windows: Windows) -> float:
    """The mean loss of another checkpoint on the same tokens."""
    say(f"loading {printable(other.name)} by transformers")
    model, its_own = load(other, device)
    begin = text.text[:_COMPARED]
    if its_own(begin)["input_ids"] != tokenizer(begin)["input_ids"]:
        raise InputError(
            f"{printable(other.name)} splits the text into other tokens: their perplexities cannot be compared, "
            "name one with the same tokenizer"
        )
    check_predicts(model, windows)
    return mean_loss(model, windows, partial(EtaLines().tell, "windows of the other"))


def _print(args: Namespace, text: Text, windows: Windows, before: float, after: float | None) -> None:
    """Print a table, or one JSON object, where inf and nan are null."""
    found = {"before": perplexity_of(before)}
    if after is not None:
        found |= {"after": perplexity_of(after), "ratio": perplexity_of(after - before)}
    if args.json:
        about = {"model": args.model, "plan": args.plan, "against": args.against, "text": text.label}
        counts = {"tokens": windows.predicted, "windows": len(windows.ids), "window": windows.length}
        numbers = {name: x if math.isfinite(x) else None for name, x in found.items()}
        print(json.dumps({**about, **counts, "left_out": windows.left_out, **numbers}, allow_nan=False), flush=True)
        return
    console = make_console()
    table = plain_table(console)
    add_columns(table, "perplexity", "", right=("",))
    for name, x in found.items():
        table.add_row(name if after is not None else "", f"{x:,.3f}" if x < _LARGE else f"{x:.3g}")
    console.print(table)
