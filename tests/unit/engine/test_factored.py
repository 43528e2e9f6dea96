"""Matrices stored as two factors: their places in the tree, their spectra against scale x B A in float64."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import MemorySink, Recorder
from factor_files import CONFIG, PEFT, WAYS, Files, M, N, R, put, several, two
from gguf import GGUFWriter
from lapack_reference import lapack
from safetensors.numpy import save_file

from rankscope.engine.catalogue.attention import attentions
from rankscope.engine.catalogue.caches import caches
from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.opened import OpenedCheckpoints
from rankscope.engine.compute.remote_batch import light
from rankscope.engine.derive.derived import AS_FACTORS
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.spectrum import Projection, Spectrum

PATIENCE = 30


def opened(model: Path) -> tuple[Checkpoint, Tree]:
    checkpoint = open_checkpoint(str(model))
    return checkpoint, build_tree(checkpoint)


def computed(checkpoint: Checkpoint, projections: list[Projection]) -> tuple[dict[str, Spectrum], Recorder]:
    """The spectra of these projections by address, and the engine's notes."""
    sink, heard = MemorySink(), Recorder()
    engine = Engine(sink, heard, ComputeSettings(device="cpu"))
    engine.submit(checkpoint, projections)
    heard.wait_until_idle()
    engine.close(PATIENCE)
    return {s.projection.address: s for s in sink.kept.values()}, heard


def lines_of(folder: Path, files: Files) -> tuple[str, ...]:
    return opened(files.write(folder))[1].lines


def one(seed: int = 1, **adapter: Any) -> Files:
    """An adapter of layer 0's query with scale 4, with these changes to adapter_config.json."""
    files = Files(adapter={**CONFIG, **adapter})
    put(files, f"{PEFT}.0.self_attn.q_proj", "layers.0.attention.query", 4, seed)
    return files


@pytest.mark.parametrize("way", WAYS)
def test_a_product_stands_under_its_module_with_the_spectrum_of_scale_b_a(way: str, tmp_path: Path) -> None:
    files = WAYS[way]()
    checkpoint, tree = opened(files.write(tmp_path))
    found, heard = computed(checkpoint, tree.scanned())
    assert set(files.meant) <= set(found), heard.events()
    assert {p.address for p in tree.projections if p.is_product} <= set(files.meant)
    for address, product in files.meant.items():
        spectrum = found[address]
        wanted = lapack(product)
        values = np.pad(spectrum.values, (0, len(wanted) - len(spectrum.values)))
        assert abs(values - wanted).max() <= 1e-12 * wanted[0], address
        assert (spectrum.projection.rows, spectrum.projection.cols) == product.shape
        assert spectrum.provenance.frobenius_norm == pytest.approx(np.linalg.norm(product), rel=1e-12)
        assert spectrum.provenance.error_bound >= abs(values - wanted).max()
    # Every factor is beside its products and is scanned with them.
    factors = {t.name for t in checkpoint.tensors if len(t.shape) > 1}
    assert factors <= {q.tensor for s in found.values() for q in s.projection.parents}


def test_a_product_has_no_more_values_than_its_factors_share(tmp_path: Path) -> None:
    files = one()
    b, a, product = two(7, rank=M + 5)  # more than either side
    files.tensors |= {f"{PEFT}.1.self_attn.q_proj.lora_{s}.weight": f for s, f in (("A", a), ("B", b))}
    checkpoint, tree = opened(files.write(tmp_path))
    found, _ = computed(checkpoint, tree.scanned())
    assert len(found["layers.0.attention.query"].values) == R
    wide = found["layers.1.attention.query"].values
    assert wide == pytest.approx(lapack(12 / (M + 5) * product), rel=1e-9)
    assert len(wide) == min(M, N)


def test_the_estimate_of_a_product_is_that_of_its_factors(tmp_path: Path) -> None:
    files = Files(adapter=CONFIG)
    files.tensors = {
        f"{PEFT}.0.mlp.up_proj.lora_{side}.weight": np.zeros(shape, "f2")
        for side, shape in (("A", (2, 1024)), ("B", (3072, 2)))
    }
    costs = {p.address: p.cost for p in opened(files.write(tmp_path))[1].projections}
    factors = costs["layers.0.lora.up_A"] + costs["layers.0.lora.up_B"]
    assert factors < costs["layers.0.mlp.up"] < 10 * factors


def test_an_adapter_of_llama_cpp(tmp_path: Path) -> None:
    """B A with alpha / r; alpha 0 and a missing alpha mean a scale of 1."""
    b, a, product = two(1)
    for alpha, scale in ((6.0, 6 / R), (0.0, 1.0), (None, 1.0)):
        writer = GGUFWriter(tmp_path / f"{alpha}.gguf", "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        if alpha is not None:
            writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_tensor("blk.0.attn_q.weight.lora_a", a)
        writer.add_tensor("blk.0.attn_q.weight.lora_b", b)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        checkpoint, tree = opened(tmp_path / f"{alpha}.gguf")
        found, _ = computed(checkpoint, tree.scanned())
        assert set(found) == {f"layers.0.{where}" for where in ("attention.query", "lora.query_A", "lora.query_B")}
        assert found["layers.0.attention.query"].values == pytest.approx(lapack(scale * product)[:R], rel=1e-12)


def test_a_zero_b_gives_zeros_and_a_factor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    files = one()
    put(files, f"{PEFT}.1.self_attn.q_proj", "", 4, 2)
    put(files, f"{PEFT}.2.self_attn.q_proj", "", 4, 3)
    files.tensors[f"{PEFT}.0.self_attn.q_proj.lora_B.weight"][:] = 0
    files.tensors[f"{PEFT}.1.self_attn.q_proj.lora_B.weight"][3, 1] = np.inf
    checkpoint, tree = opened(files.write(tmp_path))
    products = [p for p in tree.projections if p.is_product]
    found, heard = computed(checkpoint, products)
    assert found["layers.0.attention.query"].values.tolist() == [0.0] * R
    assert set(found) == {"layers.0.attention.query", "layers.2.attention.query"}
    (failed,) = [e for e in heard.events() if type(e).__name__ == "Failed"]
    assert failed.reason == "layers.1.lora.query_B: the weights hold NaN or infinite values"


def test_what_is_no_product_is_named(tmp_path: Path) -> None:
    files = one()
    _, a, _ = two(2)
    files.tensors[f"{PEFT}.1.self_attn.v_proj.lora_A.weight"] = a
    files.tensors[f"{PEFT}.2.self_attn.v_proj.lora_B.weight"] = a
    for side, rows in (("A", R), ("B", R + 1)):
        files.tensors[f"{PEFT}.3.self_attn.v_proj.lora_{side}.weight"] = np.ones((rows, 7), "f4")
    files.tensors[f"{PEFT}.0.self_attn.q_proj.lora_magnitude_vector"] = np.ones(M, "f4")
    files.tensors |= {f"lora_unet_mid_block_attentions_0_proj_in.hada_w1_{s}": np.ones((4, 4), "f4") for s in "ab"}
    put(files, f"{PEFT}.4.self_attn.q_proj", "", 1, 5)
    files.tensors[f"{PEFT}.4.self_attn.q_proj.lora_E"] = np.ones((R, 1), "f4")  # AdaLoRA: B diag(E) A
    for module, planes in (("experts.down_proj", (2, 3)), ("mlp.strange", (3, 3))):
        for side, count in zip("ab", planes, strict=True):
            files.tensors[f"model.layers.0.{module}.lora_{side}"] = np.ones((count, 4, 4), "f4")
    put(files, f"{PEFT}.5.mlp.experts.base_layer", "", 1, 6)  # PEFT's target_parameters: all experts in one pair
    said = "\n".join(lines_of(tmp_path, files))
    for words in (
        "1 tensor: A without B, e.g. base_model.model.model.layers.1.self_attn.v_proj.lora_A",
        "1 tensor: B without A, e.g. base_model.model.model.layers.2.self_attn.v_proj.lora_B",
        "1 tensor: an A and a B whose shapes do not fit, e.g. base_model.model.model.layers.3.",
        "DoRA: 1 tensor of magnitudes not applied",
        "2 tensors of LoHa, which is not a product of two factors",
        "1 tensor of a LoRA of three factors, which",
        "1 tensor: A and B of a module with a third factor, which are not multiplied",
        "stacks of factors that do not fit",
        "1 tensor: factors of a stack of experts, which are not multiplied",
        "stacks of factors that belong to no stack of experts are not multiplied: model.layers.0.mlp.strange.lora_a",
    ):
        assert words in said
    tree = build_tree(open_checkpoint(str(tmp_path)))
    assert [p.address for p in tree.projections if p.is_product] == ["layers.0.attention.query"]


@pytest.mark.parametrize(
    ("changes", "scale", "said"),
    [
        ({"lora_alpha": "twelve"}, 1.0, "lora_alpha of adapter_config.json is not a number (twelve): the scale is 1"),
        ({"lora_alpha": float("nan")}, 1.0, "is not a number (nan)"),
        ({"lora_alpha": 10**400}, 1.0, "is not a number (1000"),
        ({"lora_alpha": True}, 1.0, "is not a number (True)"),
        ({"alpha_pattern": {"(a+)+$": 1}}, 4.0, "alpha_pattern (a+)+$ of adapter_config.json is not read"),
        ({"alpha_pattern": {"a*" * 60 + "!": 1}}, 4.0, "is not read: it is too long, or repeats too much"),
        ({"alpha_pattern": {r".*layers\.\d+\..*q_proj": 3}}, 1.0, ""),
        ({"alpha_pattern": {"[": 1}}, 4.0, "alpha_pattern [ of adapter_config.json is not read"),
        ({"alpha_pattern": {"proj": 1}}, 4.0, ""),  # the whole last word, and no part of it
        ({"alpha_pattern": {"self_attn.q_proj": 1, "q_proj": 2}}, 1 / 3, ""),  # the first match
        ({"lora_alpha": -6}, 2.0, ""),
        ({"use_bdlora": True}, 4.0, "use_bdlora of adapter_config.json is not applied"),
        ({"lora_parameters": {"rank": 3}}, 1.0, "gives no scale"),
    ],
)
def test_the_scale_that_is_said(changes: dict[str, Any], scale: float, said: str, tmp_path: Path) -> None:
    files = one(**changes)
    checkpoint, tree = opened(files.write(tmp_path))
    assert said in "\n".join(tree.lines) if said else tree.lines == ()
    found, _ = computed(checkpoint, [p for p in tree.projections if p.is_product])
    wanted = scale / 4 * lapack(files.meant["layers.0.attention.query"])[:R]
    assert found["layers.0.attention.query"].values == pytest.approx(wanted)


def test_small_networks_and_ordinary_names_are_no_factors(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.0.weight": np.ones((4, 8), "f4"),
        "model.layers.0.mlp.1.weight": np.ones((8, 4), "f4"),
        "model.layers.0.self_attn.q_proj.0.weight": np.ones((8, 8), "f4"),  # not of low rank
        "model.layers.0.self_attn.q_proj.1.weight": np.ones((8, 8), "f4"),
        "model.layers.0.mixer.A": np.ones((8, 4), "f4"),
        "model.layers.0.mixer.B": np.ones((3, 8), "f4"),
        "model.layers.0.self_attn.k_u_proj.weight": np.ones((8, 4), "f4"),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    tree = opened(tmp_path)[1]
    assert not any(p.is_product for p in tree.projections)
    assert tree.lines == ()


def test_the_families_of_the_base_say_how_a_fused_module_is_split(tmp_path: Path) -> None:
    """From the base's config.json where the adapter names a local folder; whole where nothing says how to split."""
    files = WAYS["fused"]()
    config, files.config = files.config, None
    base = Files({"x": np.ones(3, "f4")}, config=config).write(tmp_path / "base")
    roles = {p.role for p in opened(files.write(tmp_path / "alone"))[1].projections if p.is_product}
    assert roles == {"qkv_proj"}
    files.adapter = {**CONFIG, "base_model_name_or_path": str(base)}
    roles = {p.role for p in opened(files.write(tmp_path / "named"))[1].projections if p.is_product}
    assert roles == {"query", "key", "value"}


def test_an_adapter_beside_the_weights_of_its_base_is_opened_by_its_file(tmp_path: Path) -> None:
    files = one()
    files.write(tmp_path)
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((M, N), "f4")}, tmp_path / "model.safetensors")
    assert not any(p.is_product for p in opened(tmp_path)[1].projections)
    (product,) = [p for p in opened(tmp_path / "adapter_model.safetensors")[1].projections if p.is_product]
    assert (product.address, product.stored_as) == ("layers.0.attention.query", f"4 B A, r {R}")


def test_a_key_is_of_both_factors_and_the_scale(tmp_path: Path) -> None:
    def key(name: str, files: Files) -> str:
        (product,) = [p for p in opened(files.write(tmp_path / name))[1].projections if p.is_product]
        return product.key

    first = key("one", one())
    assert first == build_tree(open_checkpoint(str(tmp_path / "one"))).projections[0].key
    save_file(one().tensors, tmp_path / "one" / "adapter_model.safetensors")
    (tmp_path / "one" / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 13}')
    (other,) = [p for p in opened(tmp_path / "one")[1].projections if p.is_product]
    assert other.key != first
    assert len({first, key("two", one(seed=2)), other.key}) == 3


def test_nothing_is_made_of_a_product(tmp_path: Path) -> None:
    files = WAYS["svd-llm"]()
    for layer in range(2):
        for role in "kvo":
            b, a, _ = two(10 + layer)
            name = f"model.layers.{layer}.self_attn.{role}"
            files.tensors |= {f"{name}_u_proj.weight": b, f"{name}_v_proj.weight": a}
        files.tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(N, "f4")
    checkpoint, tree = opened(files.write(tmp_path))
    products = [p for p in tree.projections if p.is_product]
    assert len(products) == 8
    assert caches(checkpoint, products) == []
    assert attentions(checkpoint, products) == ([], {})
    assert {weighted(p, NormWeighting(checkpoint)).problem for p in products} == {AS_FACTORS}


def test_a_product_travels_to_a_worker_process(tmp_path: Path) -> None:
    checkpoint, tree = opened(several().write(tmp_path))
    elsewhere = OpenedCheckpoints([open_checkpoint(checkpoint.elsewhere)])
    products = [p for p in tree.projections if p.is_product]
    assert [elsewhere.whole(light(p)) for p in products] == products


ROLES = {"q_proj": "query", "v_proj": "value", "o_proj": "output"}


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.conv = torch.nn.Module(), torch.nn.Conv2d(4, 6, 3)
        for name, rows in zip(ROLES, (M, 8, N), strict=True):
            self.self_attn.add_module(name, torch.nn.Linear(N, rows))


def test_peft_adds_what_is_computed(tmp_path: Path) -> None:
    """peft's delta of each module, as it would merge it."""
    import peft

    torch.manual_seed(0)
    model = torch.nn.Module()
    model.add_module("layers", torch.nn.ModuleList([Layer(), Layer()]))
    model.add_module("embed_tokens", torch.nn.Embedding(30, N))
    ranks = {"layers.1.self_attn.v_proj": 5, "conv": 1}
    alphas = {r"^layers\.0\..*q_proj": 3, "v_proj": 5}
    config = peft.LoraConfig(
        r=R, lora_alpha=12, target_modules=[*ROLES, "conv", "embed_tokens"], rank_pattern=ranks,
        alpha_pattern=alphas, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    tuned = peft.PeftModel(model, config)
    with warnings.catch_warnings(action="ignore"):  # the embedding is no transformers model's
        tuned.save_pretrained(tmp_path)
    checkpoint, tree = opened(tmp_path)
    found, _ = computed(checkpoint, tree.scanned())
    deltas = {name: module for name, module in tuned.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(deltas) == 9
    for name, module in deltas.items():
        module_name = name.removeprefix("base_model.model.")
        _, layer, *_, leaf = f"..{module_name}".split(".")[-4:] if "self_attn" in name else ("", "", module_name)
        address = f"layers.{layer}.attention.{ROLES[leaf]}" if leaf in ROLES else f"other.{module_name}.weight"
        delta = lapack(module.get_delta_weight("default").detach().flatten(1))
        values = found[address].values
        assert abs(np.pad(values, (0, len(delta) - len(values))) - delta).max() <= 1e-6 * delta[0]
