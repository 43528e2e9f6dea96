"""The demo as transformers runs it, loaded once for the whole suite: that takes a quarter of a minute."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    import gguf

FIXTURE = "running_demo"


class RunningDemo(NamedTuple):
    """The demo's checkpoint (rankscope's Checkpoint), its module on the CPU in float32, and its tokenizer.

    All tests of a process share it: a test that hooks a module or changes a weight has to restore it.
    """

    checkpoint: Any
    module: Any
    tokenizer: Any


def load_demo() -> RunningDemo:
    """Load the demo as `rankscope moments` does. Imports torch and transformers.

    Transformers has gguf read the file four times and make one table of names 397 times; here each is done once.
    """
    import gguf

    from rankscope.engine.calibration.running import load
    from rankscope.engine.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        patched.setattr(gguf, "GGUFReader", functools.cache(read_gguf))
        return RunningDemo(checkpoint, *load(checkpoint, "cpu"))


def read_gguf(file: Path | str) -> gguf.GGUFReader:
    """A file as the gguf package reads it, from plain memory: from a mapped file it takes several times as long."""
    import numpy as np
    from gguf.gguf_reader import GGUFReader

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))  # noqa: ARG005
        return GGUFReader(file)


def users_first(tests: Iterable[Any]) -> list[Any]:
    """Put the tests that use the fixture before all others. pytest-xdist gives each process a part of the list and
    lets others steal from its end: so one process runs them all, loads once, and begins with what takes longest."""
    return sorted(tests, key=lambda test: FIXTURE not in getattr(test, "fixturenames", ()))
