"""The demo as transformers runs it, loaded once for the whole suite: its GGUF file takes a quarter of a minute."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

FIXTURE = "running_demo"


class RunningDemo(NamedTuple):
    """The demo's checkpoint (rankscope's Checkpoint), its module on the CPU, float32, and its tokenizer.

    All tests of a process share it: whoever hooks a module or changes a weight puts back what was there.
    """

    checkpoint: Any
    module: Any
    tokenizer: Any


def load_demo() -> RunningDemo:
    """As `rankscope moments` loads it. Imports torch and transformers.

    Transformers has gguf read the file's words four times and make one table of names 397 times; here each is made once.
    """
    import gguf
    from rankscope.engine.calibration.running import load
    from rankscope.engine.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint("demo")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patched.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        return RunningDemo(checkpoint, *load(checkpoint, "cpu"))


def users_first(tests: Iterable[Any]) -> list[Any]:
    """The tests that take the fixture before all others. pytest-xdist hands each process a stretch of the list and lets
    others steal from its end: so one process has them all, loads once, and begins with what takes longest."""
    return sorted(tests, key=lambda test: FIXTURE not in getattr(test, "fixturenames", ()))
