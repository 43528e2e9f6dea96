"""Seconds from Enter to the first painted screen of a computed model, and to its filled heatmap.

    python tests/benchmarks/first_paint.py [MODEL] [--runs 7] [--size 160x50]

Starts the real `rankscope-tui` on a pseudo-terminal, MODEL already scanned (this script scans it first), and
reads what it writes: the first screen is there when the tree's title is, the heatmap when the count of stored
projections is. Prints the minimum and the median.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

BIN = Path(sys.executable).parent
TREE = re.compile(rb"0 tree")
FILLED = re.compile(rb"(\d+)/\1 stored")


def run_once(model: str, columns: int, lines: int) -> tuple[float, float]:
    """Seconds until the tree and until the heatmap are on the terminal."""
    start = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(BIN / "rankscope-tui", ["rankscope-tui", model])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    written = b""
    tree = filled = 0.0
    while not filled:
        written += os.read(terminal, 1 << 16)
        now = time.perf_counter() - start
        tree = tree or (now if TREE.search(written) else 0.0)
        filled = now if FILLED.search(written) else 0.0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)
    return tree, filled


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", default="160x50")
    args = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    subprocess.run([BIN / "rankscope", "scan", args.model], check=True, stdout=subprocess.DEVNULL)
    columns, lines = map(int, args.size.split("x"))
    times = [run_once(args.model, columns, lines) for _ in range(args.runs + 1)][1:]
    for name, column in (("first screen", 0), ("heatmap filled", 1)):
        seconds = [t[column] for t in times]
        print(f"{name:15} min {min(seconds):.2f} s   median {statistics.median(seconds):.2f} s   of {args.runs} runs")


if __name__ == "__main__":
    main()
