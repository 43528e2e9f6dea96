"""What a user waits for beside the computation: in a whole `rankscope scan`, and after keys while a scan begins.

    PYTHONPATH=.src python tests/benchmarks/startup.py                        # one GPU, 32 layers, 14 GB of disk
    PYTHONPATH=.src python tests/benchmarks/startup.py --first-run            # the same with empty caches of kernels
    PYTHONPATH=.src python tests/benchmarks/startup.py --device cpu --hidden 512 --layers 8

Needs what gpu_scan.py needs, and rich and textual; the explorer has a process for its GPU where distributed and
cryptography are there. Writes the model to --folder (and finds it there again) or to a folder that is removed. Every
number comes from separate processes, with the files in the page cache; the median of --repeats, and all of them.

The target of a whole process is the sum of its parts and BEYOND: the import of torch, a CUDA context, and the scan in a
process that has scanned before. On a CPU nothing imports torch. One more whole process prints when each step was done.

Keys are `j` and `k` in the heatmap during the first 10 s of a scan on a pseudo-terminal: from the press until the row
of the cursor has been written. `enter` is timed until the spectrum of a query projection is drawn: at once after the
first screen, for the next layer after that, and in an explorer that was left alone for --alone seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from explorer import TREE, Terminal
from whole_scan import installed, write_model

from rankscope.engine.compute.devices import available_cores

HERE = Path(__file__).parent
BEYOND, FIRST_RUN = 1.5, 10.0
"""The most seconds that a whole process may take beyond its parts; and in all, the first time on a machine."""
MEDIAN, WORST, ENTER = 50, 150, 500
"""The most milliseconds of a key while a scan begins, and of `enter` on a GPU that is ready."""
SCANNED = 10.0
CACHES = ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
IMPORT = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
CONTEXT = """
import sys, time, torch
t = time.perf_counter()
torch.zeros(1, device=sys.argv[1])
torch.cuda.synchronize()
print(time.perf_counter() - t)
"""
WARM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from whole_scan import scan
folder, device, repeats = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
scan(folder, device)
print(*(scan(folder, device).seconds for _ in range(repeats)))
"""
SCAN = ("-c", "import sys; from rankscope.tui.cli.main import main; sys.exit(main())", "scan")
EXPLORER = (sys.executable, "-c", "import sys; from rankscope.tui.cli.main import main_tui; sys.exit(main_tui())")
CURVE = re.compile("\N{BOX DRAWINGS HEAVY HORIZONTAL}".encode())
"""A text in the legend of a spectrum, and nowhere else on the first screen."""
QUIET = 1.0
"""Seconds without a byte after which the explorer has nothing more to write."""


def seconds_of(program: str, *words: str) -> list[float]:
    """The seconds that a program prints in a separate process."""
    told = subprocess.check_output([sys.executable, "-c", program, *words], text=True)
    return [float(word) for word in told.splitlines()[-1].split()]


def whole(folder: Path, device: str, program: Sequence[str] = SCAN) -> tuple[float, str]:
    """The seconds of a scan into an empty store from start to end of its process, and its output."""
    with tempfile.TemporaryDirectory() as store:
        start = time.perf_counter()
        command = [sys.executable, *program, str(folder), "--store", store, "--device", device]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        return time.perf_counter() - start, told


def report_scan(folder: Path, device: str, repeats: int) -> None:
    """Print the table of a whole process and its parts, and the times of its steps."""
    is_gpu = device != "cpu"
    seconds_of(IMPORT)  # loads torch into the page cache
    first = whole(folder, device)[0]
    parts = {"`import torch`": [s for _ in range(repeats if is_gpu else 0) for s in seconds_of(IMPORT)]}
    parts["CUDA context"] = [s for _ in range(repeats if is_gpu else 0) for s in seconds_of(CONTEXT, device)]
    parts["scan in a warm process"] = seconds_of(WARM, str(HERE), str(folder), device, str(repeats))
    taken = [whole(folder, device)[0] for _ in range(repeats)]
    target = sum(statistics.median(found) for found in parts.values() if found) + BEYOND
    print("| | seconds, median | all |\n|---|---|---|")
    for name, found in {**parts, "**whole `rankscope scan`**": taken}.items():
        median = f"{statistics.median(found):.2f}" if found else "not needed"
        print(f"| {name} | {median} | {', '.join(f'{s:.2f}' for s in found)} |")
    print(f"| target: the sum of its parts and {BEYOND} | {target:.2f} | |")
    print(f"| the first of all whole processes | {first:.2f} | |\n")
    report_trace(folder, device)


def report_first_run(folder: Path, device: str, repeats: int) -> None:
    """Print the time of a whole process that has to compile its kernels, and the times of its steps."""
    seconds_of(IMPORT)
    taken = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as caches:
            os.environ.update({name: str(Path(caches) / name) for name in CACHES})
            taken.append(whole(folder, device)[0])
    every = ", ".join(f"{s:.2f}" for s in taken)
    print("| | seconds, median | all | target |\n|---|---|---|---|")
    print(f"| whole `rankscope scan`, no kernel cached | {statistics.median(taken):.2f} | {every} | {FIRST_RUN:g} |\n")
    with tempfile.TemporaryDirectory() as caches:
        os.environ.update({name: str(Path(caches) / name) for name in CACHES})
        report_trace(folder, device)
    for name in CACHES:
        del os.environ[name]


def report_trace(folder: Path, device: str) -> None:
    """Print the times of the steps in one whole process."""
    taken, told = whole(folder, device, (str(HERE / "traced_scan.py"), repr(time.time()), "scan"))
    print("| in one whole process | seconds since its start |\n|---|---|")
    for what, at in (json.loads(told.splitlines()[-1]) | {"its end": taken}).items():
        print(f"| {what} | {at:.2f} |")
    print(flush=True)


def opened(folder: Path, device: str, stack: ExitStack) -> Terminal:
    """The explorer with its first screen, on an empty store; the heatmap's first cell is selected."""
    os.environ["RANKSCOPE_STORE"] = stack.enter_context(tempfile.TemporaryDirectory())
    terminal = Terminal(str(folder), 160, 50, [*EXPLORER, "--device", device])
    stack.callback(terminal.close)
    terminal.until(TREE)
    return terminal


def report_keys(folder: Path, device: str, layers: int, rounds: int) -> None:
    """Print how long keys take during the first seconds of a scan: over all presses, and the worst of each explorer."""
    found: list[float] = []
    worst: list[str] = []
    for number in range(rounds):
        with ExitStack() as stack:
            terminal = opened(folder, device, stack)
            terminal.press("3g")
            terminal.burst(QUIET)
            terminal.press("s")
            terminal.burst(QUIET, first=QUIET)
            presses = pressed_while_scanning(terminal, layers, random.Random(number))
        found += [ms for _, ms in presses]
        at, most = max(presses, key=lambda press: press[1])
        worst.append(f"{most:.0f} ms at {at:.1f} s")
    median = statistics.median(found)
    print(f"| {len(found)} keys in the first {SCANNED:g} s of a scan | ms | target |\n|---|---|---|")
    print(f"| median | {median:.0f} | {MEDIAN} |\n| worst | {max(found):.0f} | {WORST} |")
    print(f"| over {WORST} ms | {sum(ms > WORST for ms in found)} of {len(found)} | 0 |")
    print(f"| worst of each explorer | {', '.join(worst)} | |\n", flush=True)


def pressed_while_scanning(terminal: Terminal, layers: int, chance: random.Random) -> list[tuple[float, float]]:
    """The seconds from the scan's begin to each key press, and the milliseconds that the key took."""
    terminal.press("y")
    start, layer, made = time.perf_counter(), 0, []
    while (at := time.perf_counter() - start) < SCANNED:
        is_down = layer == 0 or (layer < layers - 1 and chance.random() < 0.5)
        layer += 1 if is_down else -1
        made.append((at, terminal.answer("j" if is_down else "k", re.compile(rb">\s+%d\s" % layer))))
        terminal.burst(chance.uniform(0.03, 0.2), first=chance.uniform(0.03, 0.2))
    return made


def report_enter(folder: Path, device: str, alone: float) -> None:
    """Print how long `enter` takes to bring a spectrum."""
    with ExitStack() as stack:
        terminal = opened(folder, device, stack)
        terminal.press("3g")
        terminal.burst(0.3)
        cold = terminal.answer("\r", CURVE)
        terminal.burst(QUIET)
        terminal.press("j")
        terminal.burst(QUIET)
        second = terminal.answer("\r", CURVE)
    with ExitStack() as stack:
        terminal = opened(folder, device, stack)
        terminal.press("3g")
        terminal.burst(QUIET)
        time.sleep(alone)
        rested = terminal.answer("\r", CURVE)
    print("| `enter` until the spectrum is drawn | ms | target |\n|---|---|---|")
    print(f"| at once after the first screen | {cold:.0f} | |\n| the next layer | {second:.0f} | {ENTER} |")
    print(f"| of an explorer left alone for {alone:g} s | {rested:.0f} | {ENTER} |\n", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="explorers in which keys are pressed")
    parser.add_argument("--alone", type=float, default=20.0)
    parser.add_argument("--first-run", action="store_true", help="nothing but whole processes without cached kernels")
    parser.add_argument("--folder", type=Path, help="keeps the model")
    args = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    print(f"{datetime.now(UTC):%Y-%m-%d}, {args.device}, {available_cores()} cores: `{shlex.join(sys.argv)}`\n")
    with installed(), tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, args.layers, args.hidden, "cpu" if args.device == "cpu" else args.device)
        if args.first_run:
            report_first_run(folder, args.device, args.repeats)
            return
        report_scan(folder, args.device, args.repeats)
        report_keys(folder, args.device, args.layers, args.rounds)
        report_enter(folder, args.device, args.alone)


if __name__ == "__main__":
    main()
