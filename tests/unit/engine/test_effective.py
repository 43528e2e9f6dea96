"""Pruned, weight-normed and spectrally normed modules: the matrix with which torch's own module computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint

MAKERS: dict[str, Callable[[nn.Linear], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.4),
    "pruned rows": lambda layer: prune.ln_structured(layer, "weight", amount=0.3, n=2, dim=0),
    "weight norm": weight_norm,
    "weight norm of columns": lambda layer: weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: weight_norm(layer, dim=None),
    "weight norm, parametrised": parametrizations.weight_norm,
    "weight norm of columns, parametrised": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": spectral_norm,
    "spectral norm, parametrised": parametrizations.spectral_norm,
}
LENGTHS = ("_g", "original0")
QUERY = "model.layers.0.self_attn.q_proj."


def saved(kind: str, file: Path) -> np.ndarray:
    """A layer's state dict in a file, and the matrix that the layer multiplies by."""
    torch.manual_seed(3)
    layer = nn.Linear(24, 40, bias=False)
    MAKERS[kind](layer)
    layer.eval()
    layer(torch.randn(2, 24))
    with torch.no_grad():
        weight: np.ndarray = layer(torch.eye(24)).T.double().numpy()
        state = {
            f"{QUERY}{name}": 3 * part if name.endswith(LENGTHS) else part for name, part in layer.state_dict().items()
        }
    state["model.layers.0.self_attn.k_proj.weight"] = torch.randn(8, 24)
    if file.suffix == ".pt":
        torch.save(state, file)
    else:
        save_file({name: part.contiguous() for name, part in state.items()}, file)
    return 3 * weight if any(name.endswith(LENGTHS) for name in state) else weight


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_matrix_that_the_module_uses(tmp_path: Path, kind: str, suffix: str) -> None:
    weight = saved(kind, tmp_path / f"model{suffix}")
    opened = open_checkpoint(str(tmp_path))
    addresses = {p.address: p for p in build_tree(opened).projections}
    assert addresses.keys() == {"layers.0.attention.query", "layers.0.attention.key"}
    assert addresses["layers.0.attention.query"].dequantisation.split(",")[0].split()[0] in kind
    (tensor,) = (t for t in opened.tensors if t.name == f"{QUERY}weight")
    found, seen = opened.read(tensor)
    np.testing.assert_allclose(np.asarray(found), weight, rtol=1e-5, atol=1e-7)
    assert seen
    assert opened.quantisation == ""
    assert opened.bytes_on("cpu", tensor) >= 40 * 24 * 8


@pytest.mark.parametrize(
    "others",
    [{}, {"weight_mask": torch.ones(40, 23)}, {"weight_mask": torch.ones(40, 24), "weight": torch.ones(40, 24)}],
)
def test_parts_that_are_not_there_or_do_not_fit_stay_as_they_are(
    tmp_path: Path, others: dict[str, torch.Tensor]
) -> None:
    state = {"weight_orig": torch.ones(40, 24), **others}
    save_file({f"{QUERY}{name}": part for name, part in state.items()}, tmp_path / "model.safetensors")
    opened = open_checkpoint(str(tmp_path))
    assert {t.name.removeprefix(QUERY) for t in opened.tensors} == state.keys()


def test_a_convolution_under_weight_norm_is_left_as_it_is(tmp_path: Path) -> None:
    state = {"c.weight_g": torch.ones(1, 1, 8), "c.weight_v": torch.ones(6, 4, 8)}
    save_file(state, tmp_path / "model.safetensors")
    assert {t.name for t in open_checkpoint(str(tmp_path)).tensors} == state.keys()
