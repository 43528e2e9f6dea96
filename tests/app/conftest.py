"""One BLAS thread and no network, settled before torch is imported; a model and a store for each test."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TEXTUAL_ANIMATIONS"] = "none"
# The settings, the log and the first-run hint of whoever runs the tests are not looked at.
os.environ |= {f"XDG_{kind}_HOME": tempfile.mkdtemp(prefix="rankscope-") for kind in ("CONFIG", "STATE")}

import pytest
from textual import _wait

sys.path.insert(0, str(Path(__file__).parent))

from app_models import LLAMA, llama_weights, save_model

from rankscope.engine.spectrum import Spectrum
from rankscope.tui.screens.first_run import mark_seen

mark_seen()

# The pilot waits for the process to be idle in steps of 20 ms, three a key: most of what these tests would take.
_wait.SLEEP_GRANULARITY = 0.005

LAYERS = 6


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a llama of six small layers."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama", llama_weights(LAYERS), LLAMA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an empty store."""
    return tmp_path / "store"


class Gate:
    """Solving waits here: a scan stands still for as long as a test looks at it."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)

    def let(self, count: int) -> None:
        """So many more matrices may be solved."""
        self._passes.release(count)

    def open(self) -> None:
        """All may."""
        self.let(10_000)

    def wait(self) -> None:
        """For a pass."""
        self._passes.acquire()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate before the solver; open again at the end."""
    from rankscope.engine.compute.worker import Solver

    gate, solve = Gate(), Solver._spectrum

    def wait_and_solve(*arguments: Any) -> Spectrum:
        gate.wait()
        return solve(*arguments)

    monkeypatch.setattr(Solver, "_spectrum", wait_and_solve)
    yield gate
    gate.open()
