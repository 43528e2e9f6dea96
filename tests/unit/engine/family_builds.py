"""Tiny models of the families in families.jsonl, built by transformers, saved and opened; each is made once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from family_towers import ENDS_EARLY, TOWERS
from norm_tracing import Input, scattered, watched
from tracing import Running, Used, traced
from transformers import AutoConfig

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

_SMALL = {
    "vocab_size": 37,
    "hidden_size": 36,
    "intermediate_size": 41,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 13}
_LATENT = {"kv_lora_rank": 11, "qk_rope_head_dim": 6, "qk_nope_head_dim": 5, "v_head_dim": 9, "q_lora_rank": 17}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 13, "n_shared_experts": 1}
_BASES: dict[str, dict[str, Any]] = {
    "": {},
    "small": _SMALL,
    "wide": {**_SMALL, "head_dim": 8},
    "moe": {**_SMALL, **_MOE},
    "wide_moe": {**_SMALL, **_MOE, "head_dim": 8},
    "latent": {
        **{**_SMALL, "num_key_value_heads": 6, **_LATENT, **_ROUTED},
        **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    },
    "gpt": {"vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4},
}
_KINDS = (
    *("AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModel"),
    *("AutoModelForPreTraining",),
)


@dataclass(frozen=True)
class Spec:
    """A family of families.jsonl.

    `untraced` are the roles and the towers whose use tracing.py cannot see in this family ("*": it cannot run on one
    token); `others` the tensors with two axes and more that are no projections, numbers as #, without `.weight`;
    `regrouped` says that towers or experts are counted otherwise in memory than on the Hub; `kind` is the class of
    transformers that builds all of it, where the first that could builds its text alone; `left_out` is what a scan says
    that it does not compute, "" where that is not tested. `roles`, where a family cannot be traced, is what its
    modules' code says of the others: by the last two words of a name, `block.role`, with a plus between those of a
    fused one.
    """

    name: str
    model_type: str
    config: dict[str, Any]
    untraced: frozenset[str]
    others: frozenset[str]
    regrouped: bool
    kind: str
    left_out: str
    roles: Mapping[str, str]


def _spec(line: str) -> Spec:
    data = json.loads(line)
    config = _BASES[data.get("base", "")] | data["config"]
    untraced = frozenset(data.get("untraced", "").split())
    others = frozenset(data["others"].split())
    regrouped, kind, left_out = data.get("regrouped", False), data.get("kind", ""), data.get("left_out", "")
    roles = dict(word.split("=") for word in data.get("roles", "").split())
    return Spec(data["name"], data["model_type"], config, untraced, others, regrouped, kind, left_out, roles)


SPECS = tuple(_spec(line) for line in Path(__file__).with_name("families.jsonl").read_text().splitlines())


@dataclass(frozen=True)
class Build:
    """A model's checkpoint under its names on the Hub, under those in memory; what its weights are used for, and what
    they are multiplied with, by their names in memory.
    """

    spec: Spec
    hub: Checkpoint
    memory: Checkpoint
    used: list[Used]
    inputs: dict[str, Input]

    @cached_property
    def trees(self) -> tuple[tuple[Checkpoint, Tree], ...]:
        """Of the names on the Hub, and of those in memory where they differ."""
        checkpoints = (self.hub,) if self.memory is self.hub else (self.hub, self.memory)
        return tuple((checkpoint, build_tree(checkpoint)) for checkpoint in checkpoints)


def model_of(spec: Spec) -> Running:
    """The model, with random weights."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(spec.model_type, **copy.deepcopy(spec.config))
    kinds = (spec.kind,) if spec.kind else _KINDS
    auto = next(a for a in (getattr(transformers, kind) for kind in kinds) if type(config) in a._model_mapping)
    return auto.from_config(config)


def build(spec: Spec, folder: Path) -> Build:
    """Build, save under both namings, and trace."""
    model = scattered(model_of(spec))
    hub = _saved(model, folder / "hub", True)
    in_file = {tensor.name for tensor in hub.tensors}
    same = in_file <= {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    memory = hub if same else _saved(model, folder / "memory", False)
    model.config.use_cache, model.config._experts_implementation = False, "eager"
    inputs = _watched(spec, model)
    used = [] if "*" in spec.untraced else traced(model, lambda running: _run(spec.model_type, running, _ONE))
    return Build(spec, hub, memory, used, inputs)


def _saved(model: Running, folder: Path, original: bool) -> Checkpoint:
    model.save_pretrained(folder, save_original_format=original)
    return open_checkpoint(str(folder))


class _Given(NamedTuple):
    """What a model is run on: tokens, and what fills images and sounds."""

    token: torch.Tensor
    filled: Callable[..., torch.Tensor]


_ONE = _Given(torch.ones(1, 1, dtype=torch.long), torch.zeros)
_SOME = _Given(torch.tensor([[1, 5, 3, 7]]), torch.randn)
_SINGLE = frozenset(("gemma4_audio", "inkling2", "xglm"))
"""Models whose code runs in single precision alone."""


def _watched(spec: Spec, model: Running) -> dict[str, Input]:
    """What feeds the weights; of a model or a tower that cannot run to its end, of those up to there."""
    dtype = torch.float32 if spec.name in _SINGLE else torch.float64

    def filled(*shape: int) -> torch.Tensor:
        return _SOME.filled(*shape).to(dtype)

    def run(running: Running) -> None:
        with suppress(*((Exception,) if "*" in spec.untraced else ())):
            _run(spec.model_type, running, _SOME)
        if tower := TOWERS.get(spec.name):
            with suppress(*((Exception,) if spec.name in ENDS_EARLY else ())):
                tower(running, filled)

    return watched(model.to(dtype).eval(), run)


def _run(kind: str, model: Running, given: _Given) -> None:
    """Tokens, one image, or one sound, through every tower."""
    token, dtype = given.token, next(model.parameters()).dtype
    side = 32 if kind == "swin" else 8

    def filled(*shape: int) -> torch.Tensor:
        return given.filled(*shape).to(dtype)

    if kind == "minimax":
        for module in model.modules():
            if type(module).__name__ == "MiniMaxLightningAttention":
                module.act_fn = torch.nn.Identity()  # it would stand between the projection and its split
    if model.main_input_name == "pixel_values" and kind != "blip-2":
        model(pixel_values=filled(1, 3, side, side))
    elif model.main_input_name == "input_values":
        model(input_values=filled(1, 40))
    elif kind == "whisper":
        model(input_features=filled(1, 8, 32), decoder_input_ids=token)
    elif model.config.is_encoder_decoder:
        model(input_ids=token, decoder_input_ids=token)
    elif kind in ("clip", "siglip"):
        model(input_ids=token, pixel_values=filled(1, 3, side, side))
    elif kind == "blip-2":
        model.vision_model(filled(1, 3, side, side))
        model.qformer(query_embeds=filled(1, 1, 36), encoder_hidden_states=filled(1, 1, 24))
        model.language_model(input_ids=token)
    else:
        _run_text(kind, model, token, filled)


def _run_text(kind: str, model: Running, token: torch.Tensor, filled: Callable[..., torch.Tensor]) -> None:
    if kind in ("llava", "paligemma", "gemma3"):
        model.model.vision_tower(filled(1, 3, 8, 8))
    elif kind == "idefics3":
        model.model.vision_model(filled(1, 3, 8, 8))
    elif kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        size = model.config.vision_config.patch_size
        model.model.visual(filled(4, 6 * size * size), grid_thw=torch.tensor([[1, 2, 2]]))
    model(input_ids=token)
