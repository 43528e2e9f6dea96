"""Matrices that a GPU (here the CPU, by the twins) solves again: the line about them, and stopping meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_gate import Gate
from app_looking import SMALL, View, exploring
from app_models import LLAMA, llama_weights, save_model

from rankscope.engine.compute import devices, second_pass
from rankscope.engine.solvers import batch, svd
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME

KEYS = ["layers.0.attention.query", "layers.1.attention.query"]


@pytest.fixture
def ill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two layers whose queries are ill-conditioned."""
    monkeypatch.setattr(devices, "is_gpu", lambda _name: True)
    monkeypatch.setattr(devices, "workers", lambda *_: (1, 1))
    monkeypatch.setattr(batch, "limits", lambda _device: lambda _side: 8)
    monkeypatch.setattr(batch, "faster_together", lambda _device, _small: True)
    monkeypatch.setattr(second_pass, "SHARE", 1e9)
    weights = llama_weights(2)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        left, _, right = np.linalg.svd(weights[name])
        weights[name] = ((left * np.append(np.linspace(1, 0.5, len(left) - 1), 1e-9)) @ right).astype(np.float64)
    return save_model(tmp_path / "ill", weights, LLAMA)


@pytest.fixture
def svd_gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A closed gate before the SVD; it is opened at the end."""
    gate, solve = Gate(), svd.singular_values

    def wait_and_solve(*arguments: Any) -> Any:
        gate.wait()
        return solve(*arguments)

    monkeypatch.setattr(svd, "singular_values", wait_and_solve)
    yield gate
    gate.open()


def _conditions(view: View) -> list[str]:
    """The condition numbers of both queries, as the table shows them."""
    lens = Lens(view.app.pair, 0.9, BY_NAME["condition_number"])
    return [lens.text(p) for p in view.app.pair.first.model.tree.projections if p.address in KEYS]


async def test_the_line_says_what_is_solved_again_and_the_table_follows(ill: Path, root: Path, svd_gate: Gate) -> None:
    async with exploring(ill, root, SMALL) as view:
        await view.press("5")
        await view.scan()
        await view.until(lambda: "solving 1 of 2 again, ill-conditioned" in view.job, "the second pass")
        assert "14/14" in view.job
        await view.until(lambda: all(text.startswith("> ") for text in _conditions(view)), "the bounds")
        svd_gate.let(1)
        await view.until(lambda: "solving 2 of 2 again, ill-conditioned" in view.job, "the second of them")
        svd_gate.open()
        await view.until(lambda: view.foot.startswith("14 computed in "), "the last word")
        assert ", 0 failed, saved; 2 of 2 bounds solved again in " in view.foot
        await view.until(lambda: all(text[:1].isdecimal() for text in _conditions(view)), "the condition numbers")


async def test_x_ends_it_after_the_running_one_and_the_other_stays_a_bound(
    ill: Path, root: Path, svd_gate: Gate
) -> None:
    async with exploring(ill, root, SMALL) as view:
        await view.press("5")
        await view.scan()
        await view.until(lambda: "solving 1 of 2 again" in view.job, "the second pass")
        await view.press("x")
        svd_gate.open()
        await view.until(lambda: view.foot == "stopped; what is finished is saved", "the stop")
        await view.until(lambda: sum(">" in text for text in _conditions(view)) == 1, "one bound")
        await view.sees("14/14 stored")
