"""The cost of plans for the demo: moments, plans and perplexity of two texts, the table in docs/PLAN.md.

    nice python tests/benchmarks/plan_quality.py [--work FOLDER] [--device cpu]

Moments, spectra, plans and perplexities are kept in FOLDER, and what is there is not done
again. The texts come with Python: pieces of its help pages, other than those of the calibration, and its licence. All
are from Python 3.11.7; with another version the digests differ, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from xxhash import xxh3_128

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.calibration.next_token_loss import Windows, check_predicts, choose_windows, mean_loss
from rankscope.engine.calibration.running import load
from rankscope.engine.calibration.texts import LENGTH, sequences
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.moment import Weighting
from rankscope.engine.plan.in_memory import put_into
from rankscope.engine.plan.plan_file import read_plan
from rankscope.engine.plan.works import works_of
from rankscope.tui.cli.main import main as rankscope

TOKENS = 4608
"""Tokens of the calibration: 4,096 in the sums, and one sequence in nine held out."""
PIECE = 1300
"""Characters of a help page in the calibration, and in the text that is measured."""
CUTS = ("10%", "20%", "30%")
PLANNED, UNIFORM = "by the plan", "uniform"
KINDS = ("none", "norm", "diagonal", "full")
DENSE = "dense", "", ""
CASES = (DENSE, *((kind, cut, ranks) for ranks, kind, cut in product((PLANNED, UNIFORM), reversed(KINDS), CUTS)))
BARS = {("full", "10%"): 2.0, ("full", "20%"): 4.0}
"""Limits of the perplexity, as multiples of the dense model's, on both texts for plans that are not uniform."""
BROKEN = 100.0
"""The multiple that plans of the weights alone exceed at 20 %."""


class Given(NamedTuple):
    """A text, its digest in Python 3.11.7, and how many windows of it are measured."""

    text: str
    digest: str
    windows: int = 0


def pieces(first: int) -> str:
    """The beginnings of every fourth page, sorted by name."""
    return "\n\n".join(topics[name][:PIECE] for name in sorted(topics)[first::4])


CALIBRATION = Given(pieces(0), "d62962f9facee4c4d840660c7cb3dfdb")
TEXTS = {
    "help pages": Given(pieces(2), "a2cb7f89e1258e17a1216c24834f70cc", 4),
    "licence": Given(
        Path(os.__file__).with_name("LICENSE.txt").read_text("utf-8"), "9daa0aa5c723fb8c2a136d2682e3e204", 7
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("plan_quality"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    files = calibrated(args.work, args.device)
    checkpoint = open_checkpoint("demo")
    model, tokenizer = load(checkpoint, args.device)
    texts = dict(windows_of(tokenizer, open_weighting(files["full"], "demo", {})))
    for windows in texts.values():
        check_predicts(model, windows)
    results = args.work / "perplexity.jsonl"
    found = dict(known(results))
    exact = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for case in CASES:
        if case in found:
            continue
        model.load_state_dict(exact, strict=False)
        if case != DENSE:
            put(model, checkpoint, planned(args.work, case, files[case[0]]), files[case[0]], args.device)
        found[case] = [math.exp(mean_loss(model, windows, silent)) for windows in texts.values()]
        with results.open("a") as file:
            file.write(json.dumps([case, found[case]]) + "\n")
        print(*case, *(f"{x:.4g}" for x in found[case]), flush=True)
    print_table(found, texts)
    sys.exit(0 if holds(found) else 1)


def calibrated(work: Path, device: str) -> dict[str, str]:
    """The value of --weight for each kind of second moments."""
    full, diagonal = work / "full.safetensors", work / "diagonal.safetensors"
    if not full.exists():
        text = work / "calibration.txt"
        text.write_text(CALIBRATION.text, "utf-8")
        told = ("--tokens", str(TOKENS), "--device", device)
        assert not rankscope(["moments", "demo", "--text", str(text), *told, "-o", str(full)])
    with safe_open(full, "numpy") as held:
        names = [name for name in held.keys() if ".held." not in name and ".first." not in name]  # noqa: SIM118
        arrays = {name: held.get_tensor(name) for name in names}
        metadata = {key: text for key, text in held.metadata().items() if key != "figures"}
    squares = {name.removesuffix("xx") + "x2": a.diagonal().copy() for name, a in arrays.items() if name.endswith("xx")}
    counts = {name: array for name, array in arrays.items() if name.endswith(".count")}
    save_file(squares | counts, diagonal, metadata)
    return {"none": "none", "norm": "norm", "diagonal": str(diagonal), "full": str(full)}


def planned(work: Path, case: tuple[str, str, str], named: str) -> Path:
    """The plan that the command line makes; with --uniform or with the parameters objective."""
    weight, cut, kind = case
    file = work / f"{weight}-{cut.removesuffix('%')}-{kind.replace(' ', '_')}.json"
    if not file.exists():
        options = ["--uniform"] if kind == UNIFORM else ["--objective", "parameters"]
        store = ["--store", str(work / "store"), "--device", "cpu"]
        assert not rankscope(["plan", "demo", "--cut", cut, "--weight", named, *options, *store, "-o", str(file)])
    return file


def windows_of(tokenizer: Any, calibration: FileWeighting) -> Iterator[tuple[str, Windows]]:
    """The windows to measure: none that the moments were made of."""
    read = calibration.tokens_read
    assert read is not None
    print(f"calibration: {told(CALIBRATION)}, {TOKENS:,} tokens")
    for name, given in TEXTS.items():
        every = sequences(given.text, tokenizer, LENGTH, math.inf)
        windows = choose_windows(every, given.windows * LENGTH, read, tokenizer.all_special_ids)
        counts = f"{windows.predicted:,} tokens in {len(windows.ids)} windows of {LENGTH}, {windows.left_out} left out"
        print(f"{name}: {told(given)}, {counts}", flush=True)
        yield name, windows


def told(given: Given) -> str:
    """The digest of a text, and whether it is the one in the table."""
    found = xxh3_128(given.text.encode()).hexdigest()
    return f"xxh3:{found}{'' if found == given.digest else ', NOT the text of the table'}"


def put(model: Any, checkpoint: Checkpoint, file: Path, named: str, device: str) -> None:
    """Put the plan's factors into the model, under the plan's weighting."""
    weighting: Weighting | None = None
    if named != "none":
        weighting = NormWeighting(checkpoint) if named == "norm" else open_weighting(named, "demo", checkpoint.config)
    works = works_of(read_plan(file), build_tree(checkpoint).projections, weighting)
    put_into(model, checkpoint, works, device, silent)


def silent(_done: int, _total: int) -> None:
    return None


def known(results: Path) -> Iterator[tuple[tuple[str, str, str], list[float]]]:
    """The measurements of an earlier run."""
    for line in results.read_text().splitlines() if results.exists() else []:
        (weight, cut, kind), numbers = json.loads(line)
        yield (weight, cut, kind), numbers


def print_table(found: Mapping[tuple[str, str, str], list[float]], texts: Mapping[str, Windows]) -> None:
    """Print the table as it is in docs/PLAN.md."""
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    threads = f"{torch.get_num_threads()} threads"
    print(
        f"\n{cpu}, {threads}, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {' / '.join(texts)}\n"
    )
    print(f"| second moments | ranks | {' | '.join(CUTS)} |\n|{'---|' * (2 + len(CUTS))}")
    print(f"| dense | | {shown(found['dense', '', ''])} | | |")
    for weight, kind in product(KINDS, (PLANNED, UNIFORM)):
        print(f"| {weight} | {kind} | {' | '.join(shown(found[weight, cut, kind]) for cut in CUTS)} |")


def shown(numbers: list[float]) -> str:
    return " / ".join(f"{x:.1f}" if x < 100 else f"{float(f'{x:.2g}'):,.0f}" for x in numbers)


def holds(found: Mapping[tuple[str, str, str], list[float]]) -> bool:
    """Whether the limits are kept; print each that is not."""
    dense = found[DENSE]
    over = [
        f"{weight} at {cut}: {x / whole:.2f} times dense, at most {most:g}"
        for (weight, cut), most in BARS.items()
        for x, whole in zip(found[weight, cut, PLANNED], dense, strict=True)
        if x > most * whole
    ]
    over += [f"none at 20%: {x:.1f} is not above {BROKEN:g}" for x in found["none", "20%", PLANNED] if x <= BROKEN]
    for line in over:
        print(f"NOT KEPT: {line}")
    return not over


if __name__ == "__main__":
    main()
