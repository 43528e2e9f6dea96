"""`rankscope delta --extract` reads what one module, or one expert, needs: from GGUF files, stacks, single experts."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli_models import lapack
from cli_process import Run
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tiny_gguf import write_llama, write_qwen3_moe
from torch.utils._python_dispatch import TorchDispatchMode

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.formats.writing import write_safetensors
from rankscope.engine.plan.extract import Adapter
from rankscope.engine.plan.lora_file import ranks_for
from rankscope.engine.plan.lora_modules import modules_of
from rankscope.engine.plan.module_weights import ModuleWeights

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = SIZES | {"vocab_size": 61, "num_hidden_layers": 2, "max_position_embeddings": 32, "head_dim": 8}
ALL = {"num_experts_per_tok": 4}  # a choice of experts would depend on the last bit
KINDS: dict[str, dict[str, Any]] = {
    "llama": CONFIG | {"bos_token_id": 30, "eos_token_id": 31},
    "qwen3_moe": CONFIG | ALL | {"num_experts": 4, "moe_intermediate_size": 768},
}
RANK = 3
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pair]:
    """A folder with two llamas as `a.gguf`, `b.gguf` and as folders `a`, `b`; and the two models."""
    root, pair = tmp_path_factory.mktemp("llamas"), pair_of("llama")
    for side, model in zip("ab", pair, strict=True):
        write("llama", root / f"{side}.gguf", model)
        copy.deepcopy(model).half().save_pretrained(root / side)
    return root, pair


def pair_of(kind: str) -> Pair:
    """A model, and one whose matrices have changed by matrices of RANK, both with numbers that float16 holds."""
    torch.manual_seed(5)
    before: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **KINDS[kind]))
    for weight in before.parameters():
        weight.data = (
            (torch.ones(weight.shape) if weight.dim() == 1 else torch.randn(weight.shape) * 0.1).half().float()
        )
    after: Any = copy.deepcopy(before)
    for name, weight in after.named_parameters():
        if name.startswith("model.layers.") and weight.dim() > 1 and not name.endswith("mlp.gate.weight"):
            change = torch.randn(*weight.shape[:-1], RANK) @ torch.randn(*weight.shape[:-2], RANK, weight.shape[-1])
            weight.data = (weight + change * 0.02).half().float()
    return before.eval(), after.eval()


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("rankscope.engine.plan.module_weights.load_model", refuse)


def write(kind: str, file: Path, model: Any) -> Path:
    if kind == "llama":
        write_llama(file, model, GGMLQuantizationType.F16)
    else:
        write_qwen3_moe(file, model)
    return file


def of_experts(root: Path) -> tuple[Path, Pair]:
    pair = pair_of("qwen3_moe")
    for side, model in zip("ab", pair, strict=True):
        write("qwen3_moe", root / f"{side}.gguf", model)
    return root, pair


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_model_is_loaded")
def test_an_adapter_of_two_gguf_files_makes_one_of_the_other(kind: str, llamas: Any, cli: Run, tmp_path: Path) -> None:
    import peft

    root, (before, after) = llamas if kind == "llama" else of_experts(tmp_path)
    ran = cli("delta", root / "a.gguf", root / "b.gguf", "-t", "99.99", "--extract", tmp_path / "adapter")
    assert ran.code == 0, ran.err
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["rank_pattern"]) == (RANK, {})
    model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "adapter")
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        a, b, ours = (m(ids).logits for m in (before, after, model.merge_and_unload()))
    assert float((ours - b).norm()) < 0.02 * float((a - b).norm())


@pytest.mark.usefixtures("no_model_is_loaded")
def test_at_a_smaller_rank_the_adapter_loses_what_lapack_says(llamas: Any, cli: Run, tmp_path: Path) -> None:
    """Rows of queries and keys have another order in the file than in the model."""
    root, (before, after) = llamas
    words = ("--filter", "layers.1.*", "-t", "60", "--extract", tmp_path / "adapter")
    assert cli("delta", root / "a.gguf", root / "b.gguf", *words).code == 0
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        path = f"model.layers.1.{name}"
        a, b = (factors[f"base_model.model.{path}.lora_{letter}.weight"].double() for letter in "AB")
        ours, theirs = (model.get_submodule(path).weight.detach().double() for model in (before, after))
        sigma = lapack((theirs - ours).numpy())
        assert 1 <= len(a) < RANK
        lost = float((theirs - ours - b @ a).norm() ** 2)
        assert lost == pytest.approx((sigma[len(a) :] ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize("models", [("a.gguf", "b"), ("a", "b.gguf")])
def test_of_a_gguf_file_and_a_folder_what_is_reordered_is_left_out(
    llamas: Any, cli: Run, tmp_path: Path, models: tuple[str, str]
) -> None:
    """llama.cpp reorders the rows of a llama's queries and keys, so the spectra of their differences mean nothing."""
    root, _ = llamas
    both = ("-o", tmp_path / "r.json", "--extract", tmp_path / "adapter")
    ran = cli("delta", *(root / name for name in models), "--filter", "layers.1.*", "-t", "99.99", *both)
    assert ran.code == 0, ran.err
    assert "layers.1.attention.query and 1 others: a GGUF file has its rows or columns in another order" in ran.err
    for made in (tmp_path / "r.json", tmp_path / "adapter" / "adapter_config.json"):
        said = json.loads(made.read_text())
        assert (said["r"], said["rank_pattern"]) == (RANK, {})
        assert [name.rpartition(".")[2] for name in said["target_modules"]] == [
            *("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        ]


EXPERTS = 24
MANY = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96}


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that torch makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(one, torch.Tensor) and one.device.type != "meta":
                self.numbers = max(self.numbers, one.numel())
        return made


def mixtral(folder: Path) -> Path:
    """Experts in tensors of their own, which transformers stacks."""
    sizes = CONFIG | MANY | {"num_local_experts": EXPERTS}
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).save_pretrained(folder)
    return folder


def gpt_oss(folder: Path) -> Path:
    """Experts in one tensor."""
    sizes = CONFIG | MANY | {"num_local_experts": EXPERTS}
    transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes)).save_pretrained(folder)
    return folder


def gguf_stacks(folder: Path) -> Path:
    """Gates and ups in one tensor each, which transformers joins."""
    sizes = KINDS["qwen3_moe"] | {"num_experts": EXPERTS, "num_hidden_layers": 1, "hidden_size": 16}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes))
    folder.mkdir()
    write_qwen3_moe(folder / "m.gguf", model)
    return folder / "m.gguf"


@pytest.mark.parametrize("made", [mixtral, gpt_oss, gguf_stacks])
@pytest.mark.usefixtures("no_model_is_loaded")
def test_a_few_matrices_are_held_and_never_the_model(made: Callable[[Path], Path], tmp_path: Path) -> None:
    """By what numpy holds at most, and by the largest tensor that torch makes."""
    checkpoint = open_checkpoint(str(made(tmp_path / "m")))
    found = modules_of(checkpoint, build_tree(checkpoint).projections)
    weights = ModuleWeights(checkpoint)
    sizes = {m.name: weights.shape(m) for m in found.modules if m.is_parameter}
    matrix = max(shape[-2] * shape[-1] for shape in sizes.values() if shape is not None)
    given = ranks_for(found, dict.fromkeys((m.name for m in found.modules), 1))
    assert given.parameters.keys() == sizes.keys()
    adapter = Adapter(weights, weights, lambda _: None, lambda held: held)
    entries = list(adapter.entries({m.name: m for m in found.modules}, given))
    write_safetensors(tmp_path / "warm.safetensors", entries[:2], {})  # what is imported is not counted
    tracemalloc.start()
    try:
        with Largest() as seen:
            write_safetensors(tmp_path / "adapter.safetensors", entries, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen.numbers <= matrix
    assert peak < 8 * 8 * matrix < 0.5 * 4 * checkpoint.numbers


@pytest.mark.usefixtures("no_model_is_loaded")
def test_what_b_lacks_is_left_out(cli: Run, tmp_path: Path) -> None:
    """The query of a layer, and the gate of one expert; transformers does not load B."""
    torch.manual_seed(4)
    sizes = CONFIG | {"num_local_experts": 4, "num_hidden_layers": 1, "vocab_size": 17}
    model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    model.save_pretrained(tmp_path / "a")
    for weight in model.parameters():
        weight.data = weight + torch.randn(*weight.shape[:-1], 1) * torch.randn(weight.shape[-1]) * 0.1
    model.save_pretrained(tmp_path / "b")
    held = load_file(tmp_path / "b" / "model.safetensors")
    lacking = ("self_attn.q_proj.weight", "block_sparse_moe.experts.2.w1.weight")
    save_file(
        {name: tensor for name, tensor in held.items() if not name.endswith(lacking)},
        tmp_path / "b" / "model.safetensors",
        {"format": "pt"},
    )
    ran = cli("delta", tmp_path / "a", tmp_path / "b", "-t", "99.99", "--extract", tmp_path / "adapter")
    assert ran.code == 0, ran.err
    assert "only in A: 2: layers.0.attention.query; layers.0.expert.2.gate" in ran.err
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    layer = "model.layers.0"
    assert said["target_modules"] == [f"{layer}.self_attn.{name}_proj" for name in "kvo"]
    assert said["target_parameters"] == [f"{layer}.mlp.experts.down_proj"]
