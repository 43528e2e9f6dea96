"""The cost of the explorer over an SSH line: seconds to the first paint, ms and bytes a key.

    python tests/benchmarks/explorer.py [--runs 7] [--keys 40] [--size 160x50]

Starts the real `rankscope-tui` on a pseudo-terminal, on the demo (scanned first) and on a synthetic model of 126
layers whose 882 spectra are stored (made up by numpy: no weights are computed), presses keys, and reads what it
writes. A key's paint is over when nothing has come for QUIET seconds; a chart that is drawn once the cursor has
rested comes later and is counted apart.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rankscope.engine.spectrum import Provenance, Run, Spectrum
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import open_model

BIN = Path(sys.executable).parent
PROGRAM = (str(BIN / "rankscope-tui"), "--fresh")
TREE = re.compile(rb"0 tree")
FILLED = re.compile(rb"(\d+)/\1 stored")
QUIET = 0.05
SLOWEST = 0.5
"""Seconds after which a key counts as one that changes nothing."""
DEADLINE = 60
"""Seconds without a byte after which waiting is given up."""
RUN = Run("r", "benchmark", "-", "-", "-", "-", "-", "2026-01-01T00:00:00Z")
LAYERS = 126
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (16, 64), "self_attn.v_proj": (16, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (160, 64), "mlp.up_proj": (160, 64), "mlp.down_proj": (64, 160),
}  # fmt: skip


class Terminal:
    """The explorer on a pseudo-terminal; `program` is the command to run, followed by the model's name."""

    def __init__(self, model: str, columns: int, lines: int, program: Sequence[str] = PROGRAM) -> None:
        self.started = time.perf_counter()
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.execvp(program[0], [*program, model])
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: re.Pattern[bytes]) -> float:
        """Seconds from the start until this has been written."""
        written = b""
        while not pattern.search(written):
            if not select.select([self._terminal], [], [], DEADLINE)[0]:
                raise SystemExit(f"nothing came for {DEADLINE} s, and never {pattern.pattern!r}")
            written += os.read(self._terminal, 1 << 16)
        return time.perf_counter() - self.started

    def answer(self, key: str, pattern: re.Pattern[bytes]) -> float:
        """Milliseconds from a key until this is written, whatever else is written."""
        pressed = time.perf_counter() - self.started
        self.press(key)
        return 1000 * (self.until(pattern) - pressed)

    def burst(self, quiet: float = QUIET, first: float | None = None) -> tuple[float, int]:
        """Seconds until the last byte of the present output, and its number of bytes.

        The first byte is waited for `first` seconds, every other `quiet`.
        """
        start = last = time.perf_counter()
        count, wait = 0, quiet if first is None else first
        while select.select([self._terminal], [], [], wait)[0]:
            count += len(os.read(self._terminal, 1 << 16))
            last, wait = time.perf_counter(), quiet
        return last - start, count

    def cpu_seconds(self) -> float:
        """The processor time that the explorer has used."""
        fields = Path(f"/proc/{self._child}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def press(self, keys: str) -> None:
        """Send keys as if typed."""
        os.write(self._terminal, keys.encode())

    def key(self, key: str) -> tuple[float, int]:
        """Milliseconds and bytes of a key."""
        self.press(key)
        seconds, count = self.burst(first=SLOWEST)
        return 1000 * seconds, count

    def close(self) -> None:
        """Kill the explorer at once."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


def synthetic(folder: Path) -> str:
    """A Llama of 126 layers: the headers of its weights, and stored spectra of every projection."""
    folder.mkdir()
    header, offset = {}, 0
    for layer in range(LAYERS):
        for name, shape in SHAPES.items():
            size = 2 * shape[0] * shape[1]
            header[f"model.layers.{layer}.{name}.weight"] = {
                "dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size],
            }  # fmt: skip
            offset += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    root = Path(os.environ["RANKSCOPE_STORE"])
    model = open_model(str(folder), root)
    rng = np.random.default_rng(0)
    with SpectraStore(root, model.folder) as store:
        for p in model.tree.scanned():
            values = np.sort(np.abs(rng.standard_normal(p.count)) * np.exp(-np.linspace(0, 3, p.count)))[::-1].copy()
            norm = float(np.linalg.norm(values))
            provenance = Provenance(norm, "-", 1, "float64", 1e-12, 1e-12, "cpu", 0.01)
            store.put(Spectrum(p, values, provenance, "2026", ("",), RUN))
    return str(folder)


def first_paint(model: str, runs: int, columns: int, lines: int) -> None:
    """Print the seconds from Enter to the tree, and to the filled heatmap."""
    times = []
    for _ in range(runs + 1):  # the first warms the page cache
        terminal = Terminal(model, columns, lines)
        times.append((terminal.until(TREE), terminal.until(FILLED)))
        terminal.close()
    for name, column in (("first screen", 0), ("heatmap filled", 1)):
        seconds = [t[column] for t in times[1:]]
        print(f"  {name:32} min {min(seconds):.2f} s   median {statistics.median(seconds):.2f} s   of {runs} runs")


def moves(model: str, count: int, columns: int, lines: int) -> None:
    """Print ms and bytes of each kind of move, and the bytes of idling."""
    terminal = Terminal(model, columns, lines)
    terminal.until(FILLED)
    terminal.burst(1.0)
    steps = (
        ("heatmap, down a layer", "3", ["j"] * count),
        ("heatmap, along the roles", "g", (["l"] * 6 + ["h"] * 6) * (count // 12 + 1)),
        ("tree, down a line", "0", ["j"] * count),
        ("chart, rank cursor", "0gjj1", ["l"] * count),
        ("chart, next layer (with chart)", "", ["J"] * (count // 4)),
        ("table, down a row", "5g", ["j"] * count),
    )
    for name, before, keys in steps:
        terminal.press(before)
        terminal.burst(1.0)
        rest = 0.6 if "with chart" in name else QUIET
        found = []
        for key in keys:
            found.append(terminal.key(key))
            if rest > QUIET:
                found[-1] = found[-1][0], found[-1][1] + terminal.burst(rest)[1]
        ms, size = zip(*found, strict=True)
        print(f"  {name:32} median {statistics.median(ms):5.1f} ms   mean {statistics.fmean(size):7.0f} bytes a key")
        terminal.burst(1.0)
    print(f"  {'held: 40 layers down in 1.3 s':32} {held(terminal)} bytes in all, chart at the end")
    _, idle = terminal.burst(5.0)
    print(f"  {'idle for 5 s':32} {idle} bytes")
    terminal.close()


def held(terminal: Terminal) -> int:
    """Print the bytes of a key held down in the heatmap, and of the chart that follows."""
    terminal.press("3g")
    terminal.burst(1.0)
    size = 0
    for _ in range(40):
        terminal.press("j")
        size += terminal.burst(0.033)[1]
    return size + terminal.burst(1.0)[1]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--size", default="160x50")
    args = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    columns, lines = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RANKSCOPE_STORE"] = str(Path(folder) / "store")
        subprocess.run([BIN / "rankscope", "scan", "demo"], check=True, stdout=subprocess.DEVNULL)
        for name, model in (("demo", "demo"), (f"{LAYERS} layers", synthetic(Path(folder) / "model"))):
            print(f"{name}, {args.size}")
            first_paint(model, args.runs, columns, lines)
            moves(model, args.keys, columns, lines)


if __name__ == "__main__":
    main()
