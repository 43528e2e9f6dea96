"""tr(W C W^T) against dense products, for matrices as stored: parts of fused tensors, transposed ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.derive.energy import output_energy

N = 8
GPT2 = {"model_type": "gpt2", "n_embd": N, "n_head": 2}


def moment(form: str) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """The numbers of a second moment of this form, and C."""
    rng = np.random.default_rng(1)
    if form == "diagonal":
        d = rng.random(N)
        return [d], np.diag(d)
    if form == "full":
        x = rng.standard_normal((20, N))
        return [x.T @ x], x.T @ x
    gain, bias = rng.standard_normal((2, N))
    centred = np.eye(N) - 1 / N
    return [gain, bias], np.diag(gain) @ centred @ np.diag(gain) + np.outer(bias, bias)


@pytest.mark.parametrize("form", ["diagonal", "full", "layer_norm"])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_it_is_that_of_the_dense_product(tmp_path: Path, form: str, scale: float) -> None:
    fused = (scale * np.random.default_rng(2).standard_normal((N, 3 * N))).astype(np.float32)
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    save_file({"h.0.attn.c_attn.weight": fused}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    projections = {p.role: p for p in build_tree(checkpoint).projections}
    numbers, c = moment(form)
    for number, role in enumerate(("query", "key", "value")):
        w = fused[:, number * N : (number + 1) * N].T.astype(np.float64)
        found = output_energy(checkpoint, projections[role], form, numbers)
        assert found == pytest.approx(np.trace(w @ c @ w.T), rel=1e-12)
