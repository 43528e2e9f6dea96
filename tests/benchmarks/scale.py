"""The largest models: seconds until the tree of 91,000 tensors in 160 shards is on screen, and ms of every key press.

    python tests/benchmarks/scale.py [--runs 5] [--keys 20] [--size 160x50]

The model has DeepSeek-V3's names and shapes, headers only: its shards are sparse files of their full size, and take
no room on the disk. Budgets: 1.5 s until the tree is on screen, 100 ms a key. Measured on a pseudo-terminal, as in
explorer.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from explorer import TREE, Terminal

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
OPENED = """
import sys, time
start = time.perf_counter()
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.catalogue.tree import build_tree
begun = time.perf_counter()
opened = open_checkpoint(sys.argv[1])
listed = time.perf_counter()
tree = build_tree(opened)
print(begun - start, listed - begun, time.perf_counter() - listed, len(opened.tensors), len(tree.projections))
"""
Entry = tuple[str, str, tuple[int, ...]]


def matrices() -> Iterator[tuple[str, tuple[int, int]]]:
    """Every quantised matrix: its name without `.weight`, and its shape."""
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        yield from ((f"{start}self_attn.{name}", shape) for name, shape in ATTENTION.items())
        held = {"mlp": MLP} if layer < DENSE else {f"mlp.experts.{n}": EXPERT for n in range(EXPERTS)}
        for block, width in (held | ({} if layer < DENSE else {"mlp.shared_experts": EXPERT})).items():
            yield from ((f"{start}{block}.{role}_proj", (width, HIDDEN)) for role in ("gate", "up"))
            yield f"{start}{block}.down_proj", (HIDDEN, width)


def tensors() -> Iterator[Entry]:
    """Name, dtype and shape of every tensor: each matrix has the scales of its blocks beside it."""
    for name, (rows, cols) in matrices():
        yield f"{name}.weight", "F8_E4M3", (rows, cols)
        yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-cols // 128))
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", "BF16", (HIDDEN,)
        if layer >= DENSE:
            yield f"model.layers.{layer}.mlp.gate.weight", "BF16", (EXPERTS, HIDDEN)
    yield "model.embed_tokens.weight", "BF16", (129280, HIDDEN)
    yield "lm_head.weight", "BF16", (129280, HIDDEN)


def write(folder: Path) -> str:
    """The model's index, configuration and shards; its path."""
    folder.mkdir()
    everything = list(tensors())
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


def _line(name: str, values: list[float], unit: str, budget: float) -> None:
    median, most = statistics.median(values), max(values)
    verdict = "" if most <= budget else "over" if median > budget else "over at worst"
    print(f"  {name:34} median {median:7.2f} {unit}   max {most:7.2f} {unit}   budget {budget:6.1f}   {verdict}")


def engine(model: str, runs: int) -> None:
    """Print what the engine takes of it, each in a process of its own."""
    found = []
    for _ in range(runs):
        command = [sys.executable, "-c", OPENED, model]
        found.append([float(word) for word in subprocess.check_output(command, text=True).split()])
    columns = list(zip(*found, strict=True))
    print(f"{columns[3][0]:.0f} tensors in {SHARDS} shards, {columns[4][0]:.0f} lines of the tree")
    for name, column in zip(("imports", "headers", "tree"), columns, strict=False):
        print(f"  {name:34} median {statistics.median(column):7.2f} s    max {max(column):7.2f} s")


def first_screen(model: str, runs: int, columns: int, lines: int) -> None:
    """Print the seconds from Enter to the tree."""
    seconds = []
    for _ in range(runs):
        terminal = Terminal(model, columns, lines)
        seconds.append(terminal.until(TREE))
        terminal.close()
    _line("tree on screen", seconds, "s ", 1.5)


def keys(model: str, count: int, columns: int, lines: int) -> None:
    """Print the milliseconds of each kind of key press."""
    terminal = Terminal(model, columns, lines)
    terminal.until(TREE)
    terminal.burst(2.0)
    steps = (
        ("tree: down a line", "0g", ["j"] * count),
        ("tree: open and close a layer", "0gj", ["\r", "\r"] * (count // 2)),
        ("tree: next layer", "0g", ["J"] * count),
        ("tree: to its end and back", "0", ["G", "g"] * (count // 2)),
        ("heatmap: down a layer", "3g", ["j"] * count),
        ("heatmap: along the roles", "g", ["l"] * count),
        ("heatmap: overview and back", "g", ["z", "z"] * (count // 4)),
        ("table: down a row", "5g", ["j"] * count),
        ("table: to its end and back", "", ["G", "g"] * (count // 2)),
        ("filter: a letter", "0/", list("experts.17")),
        ("filter: next match", "\r", ["n"] * count),
        ("next threshold", "\x1b3", ["t"] * (count // 2)),
    )
    for name, before, pressed in steps:
        for key in before:
            terminal.press(key)
            terminal.burst(0.5)
        _line(name, [terminal.key(key)[0] for key in pressed], "ms", 100)
    terminal.close()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--size", default="160x50")
    args = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    columns, lines = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RANKSCOPE_STORE"] = str(Path(folder) / "store")
        start = time.perf_counter()
        model = write(Path(folder) / "DeepSeek-V3-shaped")
        print(f"written in {time.perf_counter() - start:.1f} s")
        engine(model, args.runs)
        first_screen(model, args.runs, columns, lines)
        keys(model, args.keys, columns, lines)


if __name__ == "__main__":
    main()
