"""The fixed gauge: running models keep their function, and matrices agree with closed forms."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder
from lapack_reference import Array
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.engine import moment
from rankscope.engine.catalogue.norms import Norms
from rankscope.engine.catalogue.rules import cut
from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.derive.balance import neuron_scales
from rankscope.engine.derive.fixing import Gauge
from rankscope.engine.derive.formulas import FORMULAS
from rankscope.engine.derive.gauge import as_stored, is_fixed, what_is_fixed
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.derive.weigh import NotedMatrix, Weighed
from rankscope.engine.derive.weighting import noise_of, weighted
from rankscope.engine.errors import WeightsError
from rankscope.engine.metrics import threshold_rank
from rankscope.engine.moment import Weighting
from rankscope.engine.spectrum import Derived, Projection
from rankscope.engine.weights import host_array

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 32}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gemma": GROUPED | {"head_dim": 6},
    "phi3": GROUPED | TOKENS,
    "opt": {"hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    | {"word_embed_proj_dim": 24, "max_position_embeddings": 32},
    "nemotron": GROUPED,
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32},
    "qwen2_moe": GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 20},
}
FOLDED = re.compile(
    r"(?:input_layernorm|post_attention_layernorm|layers\.\d+\.\w+_layer_norm|h\.\d\.ln_[12])\.(weight|bias)$"
)
"""Gains and biases of the norms before projections."""
EAGER: Any = {"attn_implementation": "eager", "experts_implementation": "eager"}
BALANCES = {"llama": 1, "gemma": 1, "phi3": 1, "opt": 1, "nemotron": 2, "gpt2": 0, "qwen2_moe": 1}
"""The power of its row of up with which a neuron grows; 0: the neuron is not scaled."""


def build(family: str, folder: Path) -> None:
    """A small model with random weights, gains and biases in float64, saved."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, **EAGER).double().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.copy_(torch.randn_like(tensor) + (0.5 if name.endswith("weight") else 0.0))
            else:
                tensor.copy_(torch.randn_like(tensor) * 0.2)
            if family == "nemotron" and name.endswith("layernorm.bias"):
                tensor.zero_()  # its projections have no biases to take them
    model.save_pretrained(folder)


def matrix_of(checkpoint: Checkpoint, p: Projection) -> Array:
    """The stored matrix, turned to (outputs, inputs)."""
    tensor = next(t for t in checkpoint.tensors if t.name == p.tensor)
    whole = host_array(checkpoint.read(tensor)[0])  # type: ignore[arg-type]
    part = whole if p.slice is None else cut(whole, p.slice)
    return np.asarray(host_array(part.T if p.transposed else part), np.float64)


def made_of(checkpoint: Checkpoint, fixed: Projection) -> Array:
    """The matrix of a projection in the fixed gauge."""
    assert fixed.derived is not None
    if fixed.derived.formula == "as_it_is":
        return matrix_of(checkpoint, fixed.parents[0])
    found = FORMULAS[fixed.derived.formula](fixed, [matrix_of(checkpoint, p) for p in fixed.parents])
    found = found.matrix if isinstance(found, NotedMatrix) else found
    return host_array(found.matrix if isinstance(found, Weighed) else found)


def opened(folder: Path) -> tuple[Checkpoint, Tree, Gauge]:
    checkpoint = open_checkpoint(str(folder))
    tree = build_tree(checkpoint)
    return checkpoint, tree, Gauge(checkpoint, tree.projections)


def rewrite(folder: Path, target: Path) -> list[Projection]:
    """The model with its matrices in the fixed gauge and its norms without gain and bias; return what was fixed."""
    checkpoint, tree, gauge = opened(folder)
    plus_one = checkpoint.config["model_type"] in ("gemma", "nemotron")
    tensors = load_file(folder / "model.safetensors")
    written = {name: tensor.copy() for name, tensor in tensors.items()}
    done = []
    norms = Norms(checkpoint)
    for p in (p for p in tree.projections if p.rows):
        fixed = gauge.fixed(p)
        if fixed.problem is not None:
            continue
        done.append(fixed)
        norm, made, folded = norms.feeding(p), made_of(checkpoint, fixed), matrix_of(checkpoint, p)
        if norm is not None and norm.gain is not None:
            gain = tensors[norm.gain.name] + (1 if plus_one else 0)
            folded = folded * gain
            if not norm.centred:
                made = made * np.sign(gain)  # the spectrum does not depend on it
            name = p.tensor.removesuffix("weight") + "bias"
            if norm.bias is not None and name in tensors:
                bias = tensors[norm.bias.name] @ matrix_of(checkpoint, p).T
                put(written[name], p, tensors[name][places(tensors[name], p)] + bias)
        if p.role == "up" and (name := p.tensor.removesuffix("weight") + "bias") in tensors:
            held = np.linalg.norm(folded - (folded.mean(1)[:, None] if norm and norm.centred else 0), axis=1)
            written[name] *= np.linalg.norm(made, axis=1) / held
        index = np.arange(tensors[p.tensor].size).reshape(tensors[p.tensor].shape)
        where = index if p.slice is None else cut(index, p.slice)
        written[p.tensor].reshape(-1)[where.T if p.transposed else where] = made
    for name in written:
        if found := FOLDED.search(name):
            written[name][:] = 1.0 if found[1] == "weight" and not plus_one else 0.0
    target.mkdir()
    for file in folder.glob("*.json"):
        (target / file.name).write_text(file.read_text())
    save_file(written, target / "model.safetensors", {"format": "pt"})
    return done


def places(vector: Array, p: Projection) -> Array:
    """The entries of a bias that belong to a projection."""
    index = np.arange(len(vector))
    if p.slice is None:
        return index
    return index[p.slice.offset : p.slice.offset + p.slice.width]


def put(vector: Array, p: Projection, values: Array) -> None:
    vector[places(vector, p)] = values


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **EAGER).eval()
    with torch.no_grad():
        answer: torch.Tensor = model(torch.arange(16)[None] * 3 % 50).logits
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_running_model_does_the_same_in_the_fixed_gauge(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # else norms and softmax would round to float32
    build(family, tmp_path / "raw")
    done = rewrite(tmp_path / "raw", tmp_path / "fixed")
    before, after = (logits(tmp_path / name) for name in ("raw", "fixed"))
    assert float((after - before).abs().max() / before.abs().max()) < 1e-12
    changed = [p for p in done if p.derived and p.derived.formula != "as_it_is"]
    assert {"query", "key", "value"} <= {p.role for p in changed}
    degrees = {p.derived.formula.split("_")[2] for p in changed if p.derived and p.derived.formula[:4] == "bala"}
    assert degrees == ({str(BALANCES[family])} if BALANCES[family] else set())
    held = {p.address: p for p in done}
    for up in (p for p in done if p.role == "up" and BALANCES[family]):
        checkpoint, _, _ = opened(tmp_path / "raw")
        down = held[f"{up.address.removesuffix('up')}down"]
        rows, columns = (
            np.linalg.norm(made_of(checkpoint, up), axis=1),
            np.linalg.norm(made_of(checkpoint, down), axis=0),
        )
        np.testing.assert_allclose(rows, columns, rtol=1e-12)


def small(folder: Path, config: dict[str, Any], *, gated: bool, zero: int = 0) -> tuple[Checkpoint, Tree, Gauge]:
    """One layer of attention and MLP with a norm before each; the first `zero` neurons of up are zero."""
    rng = np.random.default_rng(3)
    shapes = {"self_attn.q_proj": (12, 12), "mlp.up_proj": (20, 12), "mlp.down_proj": (12, 20)}
    if gated:
        shapes["mlp.gate_proj"] = (20, 12)
    tensors = {f"model.layers.0.{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    tensors["model.layers.0.mlp.up_proj.weight"][:zero] = 0
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.0.{norm}.weight"] = rng.standard_normal(12)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return opened(folder)


def made(projection: Projection) -> Derived:
    assert projection.derived is not None
    return projection.derived


def by_role(tree: Tree, gauge: Gauge, under: Weighting | None = None) -> dict[str, Projection]:
    return {p.role: gauge.fixed(p, under) for p in tree.scanned()}


REFUSED = [
    ({"model_type": "gpt_oss"}, True, "gpt_oss multiplies with up + 1"),
    ({"model_type": "llama", "swiglu_limit": 7.0}, True, "llama clamps what up gives"),
    ({"model_type": "step3p5", "swiglu_limits": [None, 7]}, True, "step3p5 clamps"),
    ({"model_type": "llama", "hidden_act": "gelu"}, False, "its activation is gelu"),
    ({"model_type": "llama"}, False, "its activation is not known"),
]


@pytest.mark.parametrize(("config", "gated", "reason"), REFUSED, ids=lambda value: str(value))
def test_what_cannot_be_balanced_is_folded_alone_and_says_why(
    config: dict[str, Any], gated: bool, reason: str, tmp_path: Path
) -> None:
    _, tree, gauge = small(tmp_path, config, gated=gated)
    found = by_role(tree, gauge)
    assert [made(found["up"]).formula, made(found["down"]).formula] == ["weigh_diagonal", "as_it_is"]
    for role in ("up", "down"):
        assert reason in made(found[role]).label
    assert what_is_fixed(found.values()) == "gains folded"
    assert found["down"].key == found["down"].parents[0].key


def test_a_limit_that_is_set_for_no_layer_refuses_nothing(tmp_path: Path) -> None:
    for value in (None, 0, [], [None, 0]):
        _, tree, gauge = small(tmp_path, {"model_type": "llama", "swiglu_limit": value}, gated=True)
        assert what_is_fixed(by_role(tree, gauge).values()) == "gains folded, neurons balanced"


def test_a_norm_before_down_refuses_balancing(tmp_path: Path) -> None:
    build_bitnet(tmp_path)
    _, tree, gauge = opened(tmp_path)
    found = by_role(tree, gauge)
    assert "bitnet norms its neurons before down: model.layers.1.mlp.ffn_sub_norm" in made(found["up"]).label
    assert made(found["down"]).formula == "weigh_diagonal"  # its norm is folded
    assert found["up"].problem is None


def build_bitnet(folder: Path) -> None:
    config = AutoConfig.for_model("bitnet", **GROUPED)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_of_an_unknown_model_nothing_is_fixed(tmp_path: Path) -> None:
    _, tree, gauge = small(tmp_path, {"model_type": "nobody"}, gated=True)
    for fixed in by_role(tree, gauge).values():
        assert is_fixed(fixed)
        assert "no norms are known for nobody" in (fixed.problem or "")


def test_one_spectrum_has_one_key_and_is_kept_under_one_name(tmp_path: Path) -> None:
    checkpoint, tree, gauge = small(tmp_path, {"model_type": "llama"}, gated=True)
    raw = {p.role: p for p in tree.scanned()}
    norm = NormWeighting(checkpoint)
    found = by_role(tree, gauge)
    for role in ("query", "gate"):
        assert found[role].key == weighted(raw[role], norm).key
        assert as_stored(found[role]) == weighted(raw[role], norm)
        assert found[role].counts("", "fixed")
        assert not found[role].counts("norm")
    keys = {p.key for p in raw.values()} | {weighted(p, norm).key for p in raw.values()}
    assert not {found[role].key for role in ("up", "down")} & keys
    assert all(as_stored(found[role]) is found[role] for role in ("up", "down"))
    assert all(as_stored(p) is p for p in raw.values())


def test_under_a_weighting_only_up_changes(tmp_path: Path) -> None:
    """Folding scales the input's moments by the gains, and balancing scales down's by c."""
    checkpoint, tree, gauge = small(tmp_path, {"model_type": "llama"}, gated=True)
    rng = np.random.default_rng(5)
    moments = {n: rng.standard_normal((3 * n, n)) for n in (12, 20)}
    under = Given(lambda p: moment.full(moments[p.cols].T @ moments[p.cols]))
    raw = {p.role: p for p in tree.scanned()}
    plain, found = by_role(tree, gauge), by_role(tree, gauge, under)
    for role in ("query", "gate", "down"):
        assert found[role].key == weighted(raw[role], under).key
        assert as_stored(found[role]) == weighted(raw[role], under)
    values = np.linalg.svd(made_of(checkpoint, found["up"]), compute_uv=False)
    up, gain = (
        matrix_of(checkpoint, raw["up"]),
        load_file(tmp_path / "model.safetensors")["model.layers.0.post_attention_layernorm.weight"],
    )
    c = np.linalg.norm(made_of(checkpoint, plain["up"]), axis=1) / np.linalg.norm(up * gain, axis=1)
    explicit = np.linalg.svd(c[:, None] * up @ moments[12].T, compute_uv=False)
    np.testing.assert_allclose(values, explicit[:12], rtol=1e-10)
    assert noise_of(found["up"]).key == noise_of(weighted(raw["up"], under)).key
    # down over c, its moments C times c on both sides: the same matrix W C^1/2 up to a rotation
    down = matrix_of(checkpoint, raw["down"])
    scaled = np.linalg.svd((down / c) @ (moments[20] * c).T, compute_uv=False)
    np.testing.assert_allclose(scaled, np.linalg.svd(down @ moments[20].T, compute_uv=False), rtol=1e-10)


class Given:
    """A weighting by a function."""

    name, label = "moments", "moments of a test"

    def __init__(self, moment_of: Any) -> None:
        self.moment = moment_of


@pytest.mark.parametrize("degree", [1, 2])
def test_scales_make_the_row_as_long_as_the_column(degree: int) -> None:
    up, down = np.array([3.0, 1e-200, 0.0, 2.0, 0.0]), np.array([12.0, 1e200, 5.0, 0.0, 0.0])
    with np.errstate(divide="ignore"):
        scales, zero = neuron_scales(np.log2(up), np.log2(down), degree)
    np.testing.assert_allclose(up[:2] * scales[:2], down[:2] / scales[:2] ** degree, rtol=1e-12)
    np.testing.assert_array_equal(scales[2:], 1.0)
    assert zero == 3


def test_zero_neurons_are_counted_where_the_spectrum_is_kept(tmp_path: Path) -> None:
    checkpoint, tree, gauge = small(tmp_path, {"model_type": "llama"}, gated=True, zero=2)
    found = by_role(tree, gauge)
    sink, heard = MemorySink(), Recorder()
    engine = Engine(sink, heard, ComputeSettings(device="cpu"))
    engine.submit(checkpoint, list(map(as_stored, found.values())))
    heard.wait_until_idle()
    engine.close(PATIENCE)
    kept = {s.projection.role: made(s.projection) for s in sink.kept.values()}
    assert kept["up"].label == "gains folded; neurons balanced; 2 zero neurons"
    assert kept["down"].label == "neurons balanced; 2 zero neurons"
    assert {s.projection.key for s in sink.kept.values()} == {p.key for p in found.values()}


DEMO = {27: (1.22, 1.19), 28: (1.13, 1.09), 29: (1.47, 1.68)}
"""sigma_1 / sigma_2 of up: balanced alone, and folded and balanced."""


def test_the_first_directions_of_the_demo() -> None:
    checkpoint = open_checkpoint("demo")
    tree = build_tree(checkpoint)
    gauge = Gauge(checkpoint, tree.projections)
    held = {p.address: p for p in tree.projections}
    query = np.linalg.svd(made_of(checkpoint, gauge.fixed(held["layers.0.attention.query"])), compute_uv=False)
    assert threshold_rank(query, 0.9) == 21
    for layer, (alone, both) in DEMO.items():
        up, down = (held[f"layers.{layer}.mlp.{role}"] for role in ("up", "down"))
        fixed = gauge.fixed(up)
        assert ratio(made_of(checkpoint, fixed)) == pytest.approx(both, abs=0.005)
        bare = Derived("balance_up_1_none", 1, "", False, (up, down), (), "", "fixed")
        assert ratio(made_of(checkpoint, replace(fixed, derived=bare))) == pytest.approx(alone, abs=0.005)


def ratio(matrix: Array) -> float:
    """sigma_1 / sigma_2."""
    found = np.linalg.eigvalsh(matrix.T @ matrix)
    return float(np.sqrt(found[-1] / found[-2]))


@pytest.mark.parametrize("family", ["llama", "nemotron", "opt"])
def test_tensors_of_torch_give_the_same_as_arrays(family: str, tmp_path: Path) -> None:
    """As on a GPU, for any stored type; one of them is on the host, as where a device has no room."""
    build(family, tmp_path)
    checkpoint, tree, gauge = opened(tmp_path)
    for fixed in (gauge.fixed(p) for p in tree.scanned()):
        if made(fixed).formula.startswith(("balance_", "fold_")):
            parents = [matrix_of(checkpoint, p).astype(np.float32) for p in fixed.parents]
            mixed = [torch.tensor(parents[0]), *parents[1:]]
            results = []
            for given in (parents, mixed, [torch.tensor(p) for p in parents]):
                found = FORMULAS[made(fixed).formula](fixed, given)
                found = found.matrix if isinstance(found, NotedMatrix) else found
                assert not isinstance(found, Weighed)
                results.append(host_array(found))
            assert results[0].dtype == results[2].dtype == np.float64
            np.testing.assert_allclose(results[1], results[0], rtol=1e-13, atol=1e-14)
            np.testing.assert_allclose(results[2], results[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_sizes_whose_squares_leave_the_numbers_balance_too(size: float, tmp_path: Path) -> None:
    checkpoint, tree, gauge = small(tmp_path, {"model_type": "llama"}, gated=True)
    fixed = by_role(tree, gauge)["up"]
    up, down = (matrix_of(checkpoint, p) for p in fixed.parents)
    plain = FORMULAS[made(fixed).formula](fixed, [up, down])
    large = FORMULAS[made(fixed).formula](fixed, [up * size, down / size])
    assert isinstance(plain, NotedMatrix)
    assert isinstance(large, NotedMatrix)
    np.testing.assert_allclose(np.asarray(large.matrix), np.asarray(plain.matrix), rtol=1e-12)


def test_a_matrix_that_is_not_finite_is_named(tmp_path: Path) -> None:
    checkpoint, tree, gauge = small(tmp_path, {"model_type": "llama"}, gated=True)
    fixed = by_role(tree, gauge)["up"]
    up, down = (matrix_of(checkpoint, p) for p in fixed.parents)
    down[0, 0] = np.nan
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.down: the weights hold NaN"):
        FORMULAS[made(fixed).formula](fixed, [up, down])
