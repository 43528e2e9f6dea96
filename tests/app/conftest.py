"""No animations; a model and a store for each test, and a gate before the solver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TEXTUAL_ANIMATIONS"] = "none"

import pytest
from app_gate import Gate
from app_models import LLAMA, llama_weights, save_model
from app_rest import pilots_wait_for_rest
from app_styles import parse_styles_once

from rankscope.engine.spectrum import Spectrum
from rankscope.tui.screens.first_run import mark_seen

mark_seen()
pilots_wait_for_rest()
parse_styles_once()

LAYERS = 6


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a llama of six small layers."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama", llama_weights(LAYERS), LLAMA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an empty store."""
    return tmp_path / "store"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate before the solver; it is opened at the end."""
    from rankscope.engine.compute.worker_thread import Solver

    gate, solve = Gate(), Solver._spectrum

    def wait_and_solve(*arguments: Any) -> Spectrum:
        gate.wait()
        return solve(*arguments)

    monkeypatch.setattr(Solver, "_spectrum", wait_and_solve)
    yield gate
    gate.open()
