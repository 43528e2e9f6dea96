"""The cost of opening, of every key and of every command on a computed model with 45,154 spectra.

    python tests/benchmarks/scale.py [--against BIN] [--rounds 3] [--keys 6] [--size 160x50] [--expert 2048]

The model has DeepSeek-V3's names and shapes. Its shards are sparse files of their full size; its spectra are made up
by numpy, one for each of its matrices, and written by the store's writer: 45,000 of them have as many values as an
expert has hidden columns (`--expert`; 2048 as in the model, 750 MB in all), so a smaller number makes a smaller store.
Budgets are for a warm process: everything that is stored has been verified, and each key was pressed
once. Measured on a pseudo-terminal, as in explorer.py.

`--against` is the `bin` folder of another environment, a work tree's `.venv/bin`: both are measured in turn, round by
round, on one store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from explorer import BIN, FILLED, RUN, TREE, Terminal

from rankscope.engine.null import noise_values
from rankscope.engine.spectrum import Projection, Provenance, Spectrum, Values
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import Model, open_model

LAYERS, DENSE, EXPERTS, SHARDS = 61, 3, 256, 160
HIDDEN, EXPERT, MLP = 7168, 2048, 18432
ATTENTION = {
    "q_a_proj": (1536, HIDDEN), "q_b_proj": (24576, 1536), "kv_a_proj_with_mqa": (576, HIDDEN),
    "kv_b_proj": (32768, 512), "o_proj": (HIDDEN, 16384),
}  # fmt: skip
CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 128,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": EXPERTS, "num_experts_per_tok": 8,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}  # fmt: skip
WAITING = 1024
"""The most spectra that wait for the writer: at 2048 values each they take 16 MB."""
SLOWEST, QUIET, SILENCE, IDLE = 30.0, 0.05, 1.0, 0.05
"""Seconds until the first byte that a key brings; between two bytes of one paint; and without a byte until nothing
more is coming, while less than the share IDLE of a processor is used."""
Entry = tuple[str, str, tuple[int, ...]]
Programs = dict[str, Path]


# The model


def matrices(expert: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every quantised matrix, as its name without `.weight` and its shape; `expert` is the width of an expert."""
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        yield from ((f"{start}self_attn.{name}", shape) for name, shape in ATTENTION.items())
        held = {"mlp": MLP} if layer < DENSE else {f"mlp.experts.{n}": expert for n in range(EXPERTS)}
        for block, width in (held | ({} if layer < DENSE else {"mlp.shared_experts": expert})).items():
            yield from ((f"{start}{block}.{role}_proj", (width, HIDDEN)) for role in ("gate", "up"))
            yield f"{start}{block}.down_proj", (HIDDEN, width)


def tensors(expert: int) -> Iterator[Entry]:
    """The name, dtype and shape of every tensor; each matrix has the scales of its blocks beside it."""
    for name, (rows, cols) in matrices(expert):
        yield f"{name}.weight", "F8_E4M3", (rows, cols)
        yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-cols // 128))
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", "BF16", (HIDDEN,)
        if layer >= DENSE:
            yield f"model.layers.{layer}.mlp.gate.weight", "BF16", (EXPERTS, HIDDEN)
    yield "model.embed_tokens.weight", "BF16", (129280, HIDDEN)
    yield "lm_head.weight", "BF16", (129280, HIDDEN)


def write(folder: Path, expert: int) -> str:
    """Write the model's index, configuration and shards; return its path."""
    folder.mkdir()
    everything = list(tensors(expert))
    each = -(-len(everything) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        file = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = everything[number * each : (number + 1) * each]
        _shard(file, part)
        weight_map |= dict.fromkeys((name for name, *_ in part), file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}, indent=2))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def _shard(file: Path, part: list[Entry]) -> None:
    header, offset = {}, 0
    for name, dtype, shape in part:
        size = {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(file, "wb") as shard:
        shard.write(struct.pack("<Q", len(text)) + text)
        shard.truncate(8 + len(text) + offset)


# What is stored of it


def compute(model: Model, root: Path) -> int:
    """Store spectra of everything that a scan would compute, written as a scan writes them; return their number."""
    rng = np.random.default_rng(0)
    wanted = [p for p in model.tree.scanned() if not p.problem]
    with SpectraStore(root, model.folder) as store:
        for start in range(0, len(wanted), WAITING):
            saved = [store.put(_spectrum(p, rng)) for p in wanted[start : start + WAITING]]
            for future in saved:
                future.result()
    return len(wanted)


def _spectrum(p: Projection, rng: np.random.Generator) -> Spectrum:
    """Noise of the projection's shape, raised to a random power so that fewer values carry the energy."""
    noise = noise_values(p.rows, p.cols, 0.02)
    values: Values = noise * np.maximum(noise / noise[0], 1e-3) ** rng.uniform(0.2, 1.5)
    norm = float(np.linalg.norm(values))
    provenance = Provenance(norm, "-", 1, "float64", 1e-12 * values[0], 1e-12 * values[0], "cpu", 0.01)
    return Spectrum(p, values, provenance, "2026-01-01T00:00:00Z", ("",), RUN)


# The figures


@dataclass(frozen=True)
class Press:
    """The effect of keys: milliseconds until their paint was over, and until nothing more came; bytes in all."""

    paint: float
    settled: float
    size: int


class Figures:
    """All measurements, by action and program."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[str, list[float]]] = {}
        self._presses: dict[str, dict[str, list[Press]]] = {}

    def took(self, what: str, program: str, seconds: float) -> None:
        """Add one run of a program."""
        self._seconds.setdefault(what, {}).setdefault(program, []).append(seconds)

    def brought(self, what: str, program: str, press: Press) -> None:
        """Add one key press."""
        self._presses.setdefault(what, {}).setdefault(program, []).append(press)

    def print(self) -> None:
        """Print a table in Markdown: a line for each action and program."""
        print("| | program | seconds, median | at worst |\n|---|---|---|---|")
        for what, by_program in self._seconds.items():
            for program, seconds in by_program.items():
                print(f"| {what} | {program} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
        print("\n| keys | program | ms to the paint, median | at worst | ms to the last byte, median | bytes, mean |")
        print("|---|---|---|---|---|---|")
        for what, presses_of in self._presses.items():
            for program, presses in presses_of.items():
                paints = [press.paint for press in presses]
                paint, worst = statistics.median(paints), max(paints)
                settled = statistics.median(press.settled for press in presses)
                size = statistics.fmean(press.size for press in presses)
                print(f"| {what} | {program} | {paint:.0f} | {worst:.0f} | {settled:.0f} | {size:.0f} |")


def press(terminal: Terminal, keys: str) -> Press:
    """Press keys and wait for all their effects: until nothing is written or computed for a while."""
    terminal.press(keys)
    start = time.perf_counter()
    paint, size = terminal.burst(QUIET, first=SLOWEST)
    settled, busy = paint, 1.0
    while busy > IDLE:
        begun, before = time.perf_counter() - start, terminal.cpu_seconds()
        last, more = terminal.burst(SILENCE)
        busy = (terminal.cpu_seconds() - before) / (time.perf_counter() - start - begun)
        settled, size, busy = (begun + last, size + more, 1.0) if more else (settled, size, busy)
    return Press(1000 * paint, 1000 * settled, size)


def opening(figures: Figures, programs: Programs, model: str, columns: int, lines: int) -> None:
    """Measure the seconds from Enter to the tree and to the filled heatmap, and of two commands."""
    for name, folder in programs.items():
        terminal = Terminal(model, columns, lines, [str(folder / "rankscope-tui")])
        figures.took("tree on screen", name, terminal.until(TREE))
        figures.took("all stored, heatmap filled", name, terminal.until(FILLED))
        terminal.close()
        for command in (["ls"], ["show", model, "-t", "90"]):
            start = time.perf_counter()
            subprocess.run([folder / "rankscope", *command], check=True, stdout=subprocess.DEVNULL)
            figures.took(f"rankscope {command[0]}", name, time.perf_counter() - start)


STEPS = (
    ("t: next threshold, heatmap", "3g", ["t"]),
    ("u: unit, heatmap", "", [":unit k/k0\r", ":unit stable_rank\r", ":unit k\r"]),
    ("heatmap: down a layer", "g", ["j"]),
    ("heatmap: along the roles", "g", ["l", "h"]),
    ("heatmap: overview and back", "", ["z", "z"]),
    ("tree: down a line", "0g", ["j"]),
    ("tree: next layer", "", ["J"]),
    ("tree: t", "", ["t"]),
    ("5: table", "3", ["5", "3"]),
    ("table: down a row", "5", ["j"]),
    ("table: to its end and back", "", ["G", "g"]),
    ("table: t", "", ["t"]),
    ("table: sort by k90", "llll", ["o"]),
    ("4: layers, t", "34", ["t"]),
)
"""Each action, the keys that lead there, and the keys that are measured in turn."""


def keys(figures: Figures, name: str, folder: Path, model: str, count: int, columns: int, lines: int) -> None:
    """Measure the effect of each kind of key, and of idling, in one explorer."""
    terminal = Terminal(model, columns, lines, [str(folder / "rankscope-tui")])
    terminal.until(FILLED)
    press(terminal, "j")
    figures.brought("5: table, the first time", name, press(terminal, "5"))
    for what, before, pressed in STEPS:
        for key in before:
            press(terminal, key)
        press(terminal, pressed[0])  # warm
        for number in range(1, count + 1):
            *typed, last = pressed[number % len(pressed)]
            if typed:
                press(terminal, "".join(typed))
            figures.brought(what, name, press(terminal, last))
    press(terminal, "3")
    figures.brought("idle for 10 s", name, Press(0, 0, terminal.burst(10.0)[1]))
    terminal.close()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="bin folder of another environment, measured in turn")
    parser.add_argument("--rounds", type=int, default=3, help="explorers of each program")
    parser.add_argument("--keys", type=int, default=6, help="presses of each kind in each of them")
    parser.add_argument("--size", default="160x50")
    parser.add_argument("--expert", type=int, default=EXPERT, help="hidden columns of an expert")
    parser.add_argument("--folder", type=Path, help="where model and store are kept for the next time")
    args = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    columns, lines = map(int, args.size.split("x"))
    programs = ({"before": args.against} if args.against else {}) | {"now": BIN}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        root = folder / "store"
        os.environ["RANKSCOPE_STORE"] = str(root)
        model = folder / "DeepSeek-V3-shaped"
        if not root.exists():
            start = time.perf_counter()
            count = compute(open_model(write(model, args.expert), root), root)
            size = sum(file.stat().st_size for file in root.rglob("*"))
            print(f"{count} spectra, {size / 1e6:.0f} MB, written in {time.perf_counter() - start:.0f} s")
        figures = Figures()
        for _ in range(args.rounds):
            opening(figures, programs, str(model), columns, lines)
            for name, bin_folder in programs.items():
                keys(figures, name, bin_folder, str(model), args.keys, columns, lines)
        figures.print()


if __name__ == "__main__":
    main()
