"""The norms that feed projections: what the table says, reads and refuses, apart from the families that run whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_builds import SPECS, model_of
from norm_tracing import Running, scattered
from safetensors.numpy import save_file
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLRMSNorm

from rankscope.engine.catalogue.families import KNOWN_FAMILIES
from rankscope.engine.catalogue.gguf_norms import GGUF_ROWS
from rankscope.engine.catalogue.norm_families import ROWS, VARIANTS
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.errors import WeightsError
from rankscope.engine.moment import Moment, Weighting
from rankscope.engine.spectrum import Projection, Values

RNG = np.random.default_rng(5)
LAYER = {
    "model.layers.0.self_attn.q_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.input_layernorm.weight": (8,),
}


def _folder(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    tensors = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def _opened(folder: Path) -> tuple[NormWeighting, dict[str, Projection]]:
    checkpoint = open_checkpoint(str(folder))
    return NormWeighting(checkpoint), {p.address: p for p in build_tree(checkpoint).projections}


def _loaded(moment: Moment) -> list[Values]:
    return [operand.load() for operand in moment.operands if operand.load]


@pytest.mark.parametrize(("family", "one"), [("llama", 0.0), ("gemma", 1.0)])
def test_an_rms_norm_gives_the_square_of_its_gain(tmp_path: Path, family: str, one: float) -> None:
    tensors = _folder(tmp_path, {"model_type": family}, LAYER)
    weighting, named = _opened(tmp_path)
    query = named["layers.0.attention.query"]
    gain = tensors["model.layers.0.input_layernorm.weight"].astype(np.float64) + one
    moment = weighting.moment(query)
    assert (moment.form, moment.cols) == ("diagonal", 8)
    assert np.array_equal(_loaded(moment)[0], gain**2)
    assert weighting.says(query) == "gain of model.layers.0.input_layernorm"


def test_a_layer_norm_gives_gain_and_bias_and_one_without_bias_zeros(tmp_path: Path) -> None:
    bias = "model.layers.0.input_layernorm.bias"
    for shapes in (LAYER, {**LAYER, bias: (8,)}):
        tensors = _folder(tmp_path, {"model_type": "cohere"}, shapes)
        weighting, named = _opened(tmp_path)
        moment = weighting.moment(named["layers.0.attention.query"])
        assert moment.form == "layer_norm"
        gain, added = _loaded(moment)
        assert np.array_equal(gain, tensors["model.layers.0.input_layernorm.weight"].astype(np.float64))
        assert np.array_equal(added, tensors.get(bias, np.zeros(8)).astype(np.float64))


def test_where_no_norm_feeds_a_projection_its_moment_is_the_identity_and_it_says_so(tmp_path: Path) -> None:
    _folder(tmp_path, {"model_type": "llama"}, LAYER)
    weighting, named = _opened(tmp_path)
    down = named["layers.0.mlp.down"]
    assert np.array_equal(_loaded(weighting.moment(down))[0], np.ones(12))
    assert weighting.says(down) == "no norm feeds it: as raw"
    source: Weighting = weighting
    assert (source.name, source.label) == ("norm", "norm gains")


@pytest.mark.parametrize(
    ("config", "shapes", "address", "said"),
    [
        ({"model_type": "strange"}, LAYER, "layers.0.attention.query", "no norms are known for strange"),
        ({}, LAYER, "layers.0.attention.query", "no norms are known for a model without model_type"),
        (
            {"model_type": "llama"},
            {**LAYER, "model.embed_tokens.weight": (9, 8)},
            "other.model.embed_tokens.weight",
            "no norm is known to feed it",
        ),
        (
            {"model_type": "llama"},
            {name: shape for name, shape in LAYER.items() if "norm" not in name},
            "layers.0.attention.query",
            "model.layers.0.input_layernorm, which feeds it, is not in the checkpoint",
        ),
        (
            {"model_type": "llama"},
            {**LAYER, "model.layers.0.input_layernorm.bias": (8,)},
            "layers.0.attention.query",
            "model.layers.0.input_layernorm has a bias, which no RMS norm has",
        ),
        (
            {"model_type": "llama"},
            {**LAYER, "model.layers.0.input_layernorm.weight": (5,)},
            "layers.0.attention.query",
            "model.layers.0.input_layernorm.weight has 5 numbers for 8 inputs",
        ),
        (
            {"model_type": "cohere"},
            {**LAYER, "model.layers.0.input_layernorm.weight": (4,)},
            "layers.0.attention.query",
            "model.layers.0.input_layernorm is a LayerNorm of each head",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, config: dict[str, str], shapes: dict[str, tuple[int, ...]], address: str, said: str
) -> None:
    _folder(tmp_path, config, shapes)
    weighting, named = _opened(tmp_path)
    with pytest.raises(WeightsError) as raised:
        weighting.moment(named[address])
    assert str(raised.value) == f"{address}: {said}"


def test_metas_own_files_in_parts_give_the_gain_that_each_of_them_holds(tmp_path: Path) -> None:
    """Beside them params.json alone says what the model is."""
    gain = torch.linspace(0.5, 2, 8)
    for part in range(2):
        tensors = {"layers.0.attention.wq.weight": torch.ones(4, 8) + part, "layers.0.attention_norm.weight": gain}
        torch.save(tensors, tmp_path / f"consolidated.0{part}.pth")
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8, "n_layers": 1, "n_heads": 2}))
    weighting, named = _opened(tmp_path)
    query = named["layers.0.attention.query"]
    assert (query.rows, query.cols) == (8, 8)
    assert np.array_equal(_loaded(weighting.moment(query))[0], gain.double().numpy() ** 2)


def test_a_wrapped_name_and_a_number_with_zeros_stand_where_others_do(tmp_path: Path) -> None:
    shapes = {name.replace("model.layers.0", "module.model.layers.00"): shape for name, shape in LAYER.items()}
    _folder(tmp_path, {"model_type": "llama"}, shapes)
    weighting, named = _opened(tmp_path)
    assert weighting.says(named["layers.0.attention.query"]) == "gain of model.layers.00.input_layernorm"


def test_gains_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = _folder(tmp_path, {"model_type": "llama"}, LAYER)
    tensors["model.layers.0.input_layernorm.weight"][3] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    weighting, named = _opened(tmp_path)
    with pytest.raises(WeightsError, match=r"^layers.0.attention.query: .*weight has values that are not finite$"):
        weighting.moment(named["layers.0.attention.query"])


def test_a_layer_before_that_is_not_there_is_not_the_embeddings_norm(tmp_path: Path) -> None:
    shapes = {
        "bert.embeddings.LayerNorm.weight": (8,),
        "bert.encoder.layer.1.attention.self.query.weight": (8, 8),
        "bert.encoder.layer.1.output.LayerNorm.weight": (8,),
    }
    _folder(tmp_path, {"model_type": "bert"}, shapes)
    weighting, named = _opened(tmp_path)
    with pytest.raises(WeightsError, match=r"bert.encoder.layer.0.output.LayerNorm, which feeds it, is not in"):
        weighting.moment(named["layers.1.attention.query"])


@pytest.mark.parametrize(
    ("family", "inner", "norm"),
    [("minimax", "self_attn.out_proj", "self_attn.norm"), ("qwen3_next", "linear_attn.out_proj", "linear_attn.norm")],
)
def test_a_gate_behind_a_norm_leaves_its_gain_the_factor_of_each_column(
    tmp_path: Path, family: str, inner: str, norm: str
) -> None:
    """Where one gain is 0, so is that input of the matrix, and of no other; and the table reads that gain."""
    model = scattered(model_of(next(spec for spec in SPECS if spec.name == family))).double().eval()
    model.config._experts_implementation = "eager"
    number, layer = next((i, m) for i, m in enumerate(model.model.layers) if _has(m, norm))
    gain = layer.get_submodule(norm).weight
    gain.data[2] = 0.0
    seen: list[torch.Tensor] = []
    layer.get_submodule(inner).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([[1, 5, 3, 7]]), use_cache=False)
    zeros = (seen[0].abs().amax((0, 1)) == 0).numpy()
    model.save_pretrained(tmp_path)
    weighting, named = _opened(tmp_path)
    output = next(p for p in named.values() if p.role == "output" and p.layer == number)
    (squares,) = _loaded(weighting.moment(output))
    assert np.array_equal(squares == 0, zeros)
    assert zeros.sum() == len(zeros) // len(gain)


def _has(module: Running, name: str) -> bool:
    return any(inner == name for inner, _ in module.named_modules())


def test_the_norms_of_minimax_m3_vl_add_one() -> None:
    """No tiny model of the family is among those that run; its row says what its norm does."""
    norm, x = MiniMaxM3VLRMSNorm(8), torch.randn(3, 8)
    norm.weight.data.fill_(0.0)
    unit = norm(x)
    norm.weight.data.fill_(1.0)
    assert torch.allclose(norm(x), 2 * unit)
    assert next(row.kind for row in ROWS if "minimax_m3_vl_text" in row.models) == "1+rms"


def test_every_family_has_one_row_and_every_variant_has_one() -> None:
    for rows in (ROWS, GGUF_ROWS):
        named = [model for row in rows for model in row.models]
        assert len(named) == len(set(named))
    families = {model for row in ROWS for model in row.models}
    assert all(f"{family}+{setting}" in families for family, (setting, _) in VARIANTS.items())
    assert len(families & KNOWN_FAMILIES) > 195
