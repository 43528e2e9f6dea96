"""`rankscope delta -o` and `--extract`: ranks and adapter as PEFT reads them, on the modules of transformers."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli_models import lapack, threshold_rank
from cli_process import Run
from safetensors.torch import load_file, save_file
from torch import nn

BASE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 4}  # all: a choice would depend on the last bit
LATENT = BASE | {
    **{"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{"v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16},
    **{"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "phi3": BASE,
    "gpt2": GPT,
    "mixtral": BASE | EXPERTS,
    "deepseek_v2": LATENT,
}
RANKS = (2, 5, 3)
"""The ranks of the planted changes, in turn."""
QUIET = 1
"""The layer whose first matrix is left unchanged."""


@dataclass(frozen=True)
class Tuned:
    """Two folders, the models in them, and the planted rank by the name of a module or parameter."""

    base: Path
    other: Path
    before: nn.Module
    after: nn.Module
    ranks: Mapping[str, int]


def targets(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The weights that an adapter can change: linear layers and Conv1D of the blocks, stacks of experts."""
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    named = [(path, m.weight) for path, m in model.named_modules() if isinstance(m, kinds) and path != "lm_head"]
    stacks = [(name, p) for name, p in model.named_parameters() if p.dim() == 3]
    return [*named, *stacks]


def low_rank(shape: torch.Size, rank: int, scale: float) -> torch.Tensor:
    left, right = torch.randn(*shape[:-1], rank), torch.randn(*shape[:-2], rank, shape[-1])
    made = left @ right
    return made * (scale / made.std())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    """A model of a kind in bfloat16 and a fine-tune of it; each is made once."""
    made: dict[str, Tuned] = {}

    def make(kind: str) -> Tuned:
        if kind not in made:
            made[kind] = _make(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


def _make(kind: str, root: Path) -> Tuned:
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind])
    before = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).float().eval()
    for _, weight in targets(before):
        weight.data = (torch.randn(weight.shape) * 0.1).bfloat16().float()
    after, ranks = copy.deepcopy(before), {}
    for number, (name, weight) in enumerate(targets(after)):
        if number % 5 == QUIET:
            ranks[name] = 0
            continue
        ranks[name] = RANKS[number % len(RANKS)]
        change = low_rank(weight.shape, ranks[name], 0.02)
        if change.dim() == 3:  # one expert that changed less than the others, and one that did not change
            change[1] = low_rank(weight.shape[1:], 1, 0.02)
            change[2] = 0
        weight.data = (weight.data + change).bfloat16().float()
    for folder, model in (("a", before), ("b", after)):
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(root / folder)
    return Tuned(root / "a", root / "b", before, after, ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_every_module_its_rank_and_the_adapter_makes_b_of_a(
    tuned: Any, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The models themselves are not loaded."""
    import peft

    def refuse(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("rankscope.engine.plan.module_weights.load_model", refuse)
    held = tuned(kind)
    ran = cli(
        "delta", held.base, held.other, "-t", "99.99", "-o", tmp_path / "ranks.json", "--extract", tmp_path / "adapter"
    )
    assert ran.code == 0, ran.err
    said = json.loads((tmp_path / "ranks.json").read_text())
    assert (said["use_rslora"], said["exclude_modules"], said["lora_alpha"]) == (False, None, said["r"])
    assert said["fan_in_fan_out"] is (kind == "gpt2")
    expected = {name: rank for name, rank in held.ranks.items() if rank}
    named = {*said["target_modules"], *(name.removesuffix(".weight") for name in said["target_parameters"] or ())}
    assert named == expected.keys()
    if kind != "deepseek_v2":  # PEFT would take its gates of dense layers for gates of experts
        assert {*said["target_modules"], *(said["target_parameters"] or ())} == named
    given = given_by_peft(copy.deepcopy(held.before), said)
    assert given == {name: (rank, 1.0) for name, rank in expected.items()}
    model = peft.PeftModel.from_pretrained(copy.deepcopy(held.before), tmp_path / "adapter").eval()
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        a, b, ours = (m(ids).logits for m in (held.before, held.after, model))
    assert float((ours - b).norm()) < 0.1 * float((a - b).norm())


def given_by_peft(model: nn.Module, said: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """The rank and scale of each module and parameter as PEFT wraps them."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(**said))
    found = {}
    for path, module in wrapped.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            name = path.replace(".base_layer", "")
            own = getattr(module, "parameter_name", "weight")
            found[name if own == "weight" else f"{name}.{own}"] = module.r["default"], module.scaling["default"]
    return found


GAINS = torch.linspace(0.2, 3.0, BASE["hidden_size"])


def with_gains(held: Tuned, folder: Path) -> Path:
    """Save a model whose norms before attention have gains; return its folder."""
    model: Any = copy.deepcopy(held.before)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data = GAINS.clone()
    model.save_pretrained(folder)
    return folder


def test_a_fused_module_under_a_weighting_has_the_rank_of_its_whole_change(
    tuned: Any, cli: Run, tmp_path: Path
) -> None:
    """By LAPACK on the change times the gains before it; the adapter loses the least that is possible at its rank."""
    import peft

    held = tuned("phi3")
    words = ("delta", with_gains(held, tmp_path / "a"), held.other, "-t", "80", "--filter", "attention")
    ran = cli(*words, "--weight", "norm", "-o", tmp_path / "r.json", "--extract", tmp_path / "weighted")
    assert ran.code in (0, 1), ran.err  # the output projection is not fed by a norm
    config = peft.LoraConfig(**json.loads((tmp_path / "r.json").read_text()))
    name = "model.layers.1.self_attn.qkv_proj"
    a, b = (m.get_submodule(name).weight.detach().double().numpy() for m in (held.before, held.after))
    sigma = lapack((b - a) * GAINS.double().numpy())
    k = threshold_rank(sigma, 0.8)
    assert config.rank_pattern.get(f"^{re.escape(name)}$", config.r) == k
    model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(held.before), tmp_path / "weighted")
    made = model.base_model.model.get_submodule(name).get_delta_weight("default").double().numpy()
    lost = ((b - a - made) * GAINS.double().numpy()) ** 2
    assert lost.sum() == pytest.approx((sigma[k:] ** 2).sum(), rel=1e-4)


def test_what_no_adapter_can_be_made_of_is_named(tuned: Any, cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    phi, mixtral = tuned("phi3"), tuned("mixtral")
    for words, why in (
        ((phi.base, phi.other, "--filter", "*.key"), "qkv_proj holds more than these projections"),
        ((mixtral.base, mixtral.other, "--filter", "*.expert.1.*"), "holds 4 experts, of which 1 are compared"),
        ((mixtral.base, mixtral.base), "nothing is written: no module changed by more than rounding"),
    ):
        ran = cli("delta", *words, "-o", out)
        assert (ran.code, out.exists()) == (1, False), words
        assert why in ran.err
    for words, why in (
        (("-t", "80", "90", "-o", out), "ranks are written at one threshold"),
        (("-o", tmp_path), "name another with -o FILE.json"),
        (("--extract", tmp_path), "name a new folder with --extract DIR"),
        (("-o", tmp_path / "none" / "r.json"), "name another with -o FILE.json"),
    ):
        ran = cli("delta", phi.base, phi.other, *words)
        assert (ran.code, ran.out) == (2, "")
        assert why in ran.err
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").write_bytes((phi.base / "model.safetensors").read_bytes())
    for pair in ((tmp_path / "bare", phi.other), (phi.base, tmp_path / "bare")):
        ran = cli("delta", *pair, "--extract", tmp_path / "adapter")
        assert (ran.code, (tmp_path / "adapter").exists()) == (2, False)
        assert "transformers cannot load bare: there is no config.json beside its weights" in ran.error


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_the_product_of_the_factors_is_the_change(tuned: Any, cli: Run, tmp_path: Path, kind: str) -> None:
    """To the planted rank."""
    held = tuned(kind)
    assert cli("delta", held.base, held.other, "-t", "99.99", "--extract", tmp_path / "adapter").code == 0
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in (name for name, rank in held.ranks.items() if rank):
        a, b = (factors[f"base_model.model.{name}.lora_{letter}.weight"].double() for letter in "AB")
        before, after = (m.get_submodule(name).weight.detach().double() for m in (held.before, held.after))
        change = (after - before).T if kind == "gpt2" else after - before
        assert float((b @ a - change).norm()) < 0.1 * float(change.norm())


@pytest.mark.parametrize(
    ("tensor", "rows", "said"),
    [
        (
            "model.embed_tokens.weight",
            64,
            "model.embed_tokens.weight is 64 x 32 in its files and 61 x 32 by its config",
        ),
        ("lm_head.weight", 60, "lm_head.weight is 60 x 32 in its files and 61 x 32 by its config"),
        ("model.layers.1.mlp.up_proj.weight", 56, "layers.1.mlp.up_proj.weight is 56 x 32 in its files and 48 x 32 by"),
    ],
)
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_tensor_of_another_shape_than_its_configuration_says_is_named(
    tuned: Any, cli: Run, tmp_path: Path, tensor: str, rows: int, said: str, side: str
) -> None:
    """Named before anything is computed: the store stays empty."""
    held = tuned("llama")
    folder = shutil.copytree(held.base if side == "a" else held.other, tmp_path / side)
    weights = load_file(folder / "model.safetensors")
    weights[tensor] = torch.ones(rows, 32, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pair = (folder, held.other) if side == "a" else (held.base, folder)
    ran = cli("delta", *pair, "--extract", tmp_path / "adapter", "-t", "90")
    assert (ran.code, ran.out, (tmp_path / "adapter").exists()) == (2, "", False)
    assert said in ran.error
    assert "leave out --extract" in ran.error
    assert "stored" not in cli("ls").out


def test_another_vocabulary_is_no_hindrance_and_another_number_of_experts_is(
    tuned: Any, cli: Run, tmp_path: Path
) -> None:
    """transformers writes the configuration when it resizes the vocabulary, too."""
    held, mixtral = tuned("llama"), tuned("mixtral")
    more: Any = copy.deepcopy(held.after)
    more.resize_token_embeddings(70, mean_resizing=False)
    more.to(torch.bfloat16).save_pretrained(tmp_path / "more")
    ran = cli("delta", held.base, tmp_path / "more", "-t", "90", "--extract", tmp_path / "adapter")
    assert ran.code == 0, ran.err
    config = transformers.AutoConfig.for_model("mixtral", **KINDS["mixtral"] | {"num_local_experts": 6})
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "six")
    ran = cli("delta", mixtral.base, tmp_path / "six", "-t", "90", "--extract", tmp_path / "none")
    assert (ran.code, ran.out, (tmp_path / "none").exists()) == (2, "", False)
    assert "model.layers.0.mlp.experts.gate_up_proj is 6 x 96 x 32 in B and 4 x 96 x 32 in A" in ran.error
