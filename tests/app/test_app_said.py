"""Notes of a file of second moments in the explorer: position 0, tokens, held-out text, centred moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_looking import HUGE, SMALL, WIDE, View, exploring
from app_models import LLAMA, SHAPES, llama_weights, numpy_rank, save_model
from calibration_files import Stats, write_gguf, write_moments

DOWN = "layers.0.mlp.down"
TOKENS = 200
SINK = "sink 93 %, k90 4, without position 0 31"


def inputs(leaf: str) -> Any:
    rng = np.random.default_rng([*leaf.encode()])
    return rng.standard_normal((TOKENS, SHAPES[leaf][1])) + 2.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `m`, moments that state how much of down position 0 holds, and an imatrix."""
    folder = tmp_path_factory.mktemp("said")
    save_model(folder / "m", llama_weights(1), LLAMA)
    sums, held = {}, {}
    for leaf in SHAPES:
        name, x = f"model.layers.0.{leaf}.weight", inputs(leaf)
        sums |= {f"{name}.xx": x.T @ x, f"{name}.x": x.sum(0), f"{name}.count": np.array([float(TOKENS)])}
        sums |= {f"{name}.first.x2": x[0] ** 2, f"{name}.first.count": np.ones(1)}
        held[f"blk.0.{GGUF[leaf]}.weight"] = Stats((x**2).sum(0).astype(np.float32)[None], (TOKENS,))
    down = {"tokens": TOKENS, "cols": 80, "k90": 4, "held": 0.8125, "sink": 0.93, "apart": 31}
    write_moments(folder / "m.moments", sums, figures=json.dumps({DOWN: down}))
    write_gguf(folder / "m.imatrix", held)
    return folder


GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


async def at_down(seen: View) -> None:
    """Compute and select the one projection that the filter shows."""
    seen.app.explorer.state.set_filter(DOWN)
    await seen.press("5", "enter")
    state = seen.app.explorer.state
    await seen.until(lambda: state.lens.number(state.selected[0]) is not None, DOWN)
    await seen.until(lambda: state.session.progress is None or not state.session.progress.busy, "its noise")
    await seen.rests()


async def test_a_sink_is_said_in_the_table_and_under_every_chart(files: Path, root: Path) -> None:
    async with exploring(files / "m", root, HUGE, weight=str(files / "m.moments")) as seen:
        await at_down(seen)
        headings, row = seen.pane("table")[0], seen.pane("table")[1]
        for heading, value in (
            ("position 0", "sink 93 %"), ("k90 without", "31"), ("held out %", "81.2"), ("tokens/n", "2.5")
        ):  # fmt: skip
            end = headings.index(heading) + len(heading)
            assert row[:end].endswith(f" {value}"), (heading, row)
        assert f"{SINK}  2.5 tokens/n: too few  k60 " in seen.pane("chart")[-1]
        assert "held out 81.2 %" in seen.pane("chart")[-1]
        await seen.press("space", "6")
        assert any("position 0" in line and "sink 93 %" in line for line in seen.pane("compare"))
    async with exploring(files / "m", root, SMALL, weight=str(files / "m.moments")) as seen:
        await at_down(seen)
        await seen.press("2")
        await seen.rests()
        assert SINK in seen.pane("chart")[-1]
        await seen.press("3", "4")
        await seen.rests()
        assert f"layer 0: down {rank()} ({SINK})" in seen.pane("chart")[-1]


def rank(*, centred: bool = False) -> int:
    x = inputs("mlp.down_proj")
    c = np.cov(x.T, bias=True) if centred else x.T @ x / TOKENS
    return numpy_rank(llama_weights(1)["model.layers.0.mlp.down_proj.weight"] @ np.linalg.cholesky(c), 0.9)


async def test_an_imatrix_is_said_to_be_whole(files: Path, root: Path) -> None:
    async with exploring(files / "m", root, WIDE) as seen:
        seen.app.explorer.weigher.use_named(str(files / "m.imatrix"))
        await seen.sees("weighted by imatrix")
        await seen.until(lambda: len(seen.app._notifications) > 0, "a toast")
        (toast,) = seen.app._notifications
        assert toast.message.startswith("an imatrix does not keep position 0 apart")
        await at_down(seen)
        assert "imatrix  48x80  position 0 not apart  k60 " in seen.pane("chart")[-1]
        await seen.press(*["l"] * 7)
        assert "not apart" in seen.pane("table")[1]


async def test_centred_ranks_are_never_without_the_word(files: Path, root: Path) -> None:
    async with exploring(files / "m", root, SMALL) as seen:
        await seen.press("colon")
        await seen.type(f"weight centred {files / 'm.moments'}")
        await seen.sees("m  weighted by centred moments m.moments")
        await at_down(seen)
        assert rank(centred=True) != rank()
        assert f"{DOWN}  48x80  k90 centred {rank(centred=True)}" in seen.job
        assert "k60 centred" in seen.pane("table")[0]
        assert "sink" not in seen.text
        for key, words in (("1", "by index, centred"), ("2", "by components, centred"), ("3", "k90 centred")):
            await seen.press(key)
            await seen.rests()
            assert words in seen.text
        await seen.press("2")
        await seen.rests()
        assert seen.pane("chart")[-1].startswith("centred  48x80  2.5 tokens/n: too few  k60 ")
        await seen.press("4")
        await seen.rests()
        assert "4 layers  k90 centred by layer" in seen.text
        assert seen.pane("chart")[-1].startswith("layer 0, centred: down")
        await seen.press("space", "6")
        assert any("k90 centred" in line for line in seen.pane("compare"))
