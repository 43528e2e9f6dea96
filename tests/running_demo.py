"""The demo as transformers runs it, loaded once for the whole suite: its GGUF file takes a quarter of a minute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

FIXTURE = "running_demo"


class RunningDemo(NamedTuple):
    """The demo's checkpoint (rankscope's Checkpoint), its module on the CPU, float32, and its tokenizer.

    All tests of a process share it: whoever hooks a module or changes a weight puts back what was there.
    """

    checkpoint: Any
    module: Any
    tokenizer: Any


def load_demo() -> RunningDemo:
    """As `rankscope moments` loads it. Imports torch and transformers."""
    from rankscope.engine.calibration.running import load
    from rankscope.engine.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint("demo")
    return RunningDemo(checkpoint, *load(checkpoint, "cpu"))


def users_first(tests: Iterable[Any]) -> list[Any]:
    """The tests that take the fixture before all others. pytest-xdist hands each process a stretch of the list and lets
    others steal from its end: so one process has them all, loads once, and begins with what takes longest."""
    return sorted(tests, key=lambda test: FIXTURE not in getattr(test, "fixturenames", ()))
