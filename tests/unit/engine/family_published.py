"""Families that only remote code runs, with the split that each one's published code states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Parts = Mapping[str, Array]
D, F, NH, NKV, HD = 36, 41, 6, 2, 6  # hidden, MLP, heads, key heads, head size


def q_k_v(w: Array) -> Parts:
    """torch.split(w, [NH * HD, NKV * HD, NKV * HD])"""
    q, k, v = np.split(w, [NH * HD, (NH + NKV) * HD])
    return {"attention.query": q, "attention.key": k, "attention.value": v}


def thirds(w: Array) -> Parts:
    """w.chunk(3)"""
    return dict(zip(("attention.query", "attention.key", "attention.value"), np.split(w, 3), strict=True))


def heads(w: Array) -> Parts:
    """w.view(NH, 3, HD)"""
    parts = w.reshape(NH, 3, HD, -1)
    return {f"attention.{role}": parts[:, i].reshape(NH * HD, -1) for i, role in enumerate(("query", "key", "value"))}


def groups(w: Array) -> Parts:
    """rearrange(w, "(kv gs d) -> kv gs d", gs=2 + NH // NKV): queries but the last two, key, value"""
    parts = w.reshape(NKV, NH // NKV + 2, HD, -1)
    split = {"query": parts[:, :-2], "key": parts[:, -2], "value": parts[:, -1]}
    return {f"attention.{role}": part.reshape(-1, w.shape[1]) for role, part in split.items()}


def pairs(w: Array) -> Parts:
    """w.view(NKV, 2 * HD).split(HD)"""
    parts = w.reshape(NKV, 2, HD, -1)
    return {f"attention.{role}": parts[:, i].reshape(NKV * HD, -1) for i, role in enumerate(("key", "value"))}


def gate_up(w: Array) -> Parts:
    """gate, up = w.chunk(2)"""
    return dict(zip(("mlp.gate", "mlp.up"), np.split(w, 2), strict=True))


def up_gate(w: Array) -> Parts:
    """x, gate = w.chunk(2)"""
    return dict(zip(("mlp.up", "mlp.gate"), np.split(w, 2), strict=True))


def every_second(w: Array) -> Parts:
    """gate, up = w[::2], w[1::2]"""
    return {"mlp.gate": w[::2], "mlp.up": w[1::2]}


def shared_pairs(w: Array) -> Parts:
    """The same of a shared expert."""
    return {f"shared_{role.replace('mlp', 'expert')}": part for role, part in every_second(w).items()}


def columns(w: Array) -> Parts:
    """Conv1D: x @ w, then split(3, dim=-1)"""
    return thirds(w.T)


def turned(role: str) -> Callable[[Array], Parts]:
    """Conv1D: x @ w."""
    return lambda w: {role: w.T}


Place = tuple[tuple[int, ...], str | Callable[[Array], Parts]]
QKV, THREE, DD = (NH + 2 * NKV) * HD, 3 * D, (D, D)
MLP: dict[str, Place] = {
    "mlp.gate_proj": ((F, D), "mlp.gate"),
    "mlp.up_proj": ((F, D), "mlp.up"),
    "mlp.down_proj": ((D, F), "mlp.down"),
}
PLAIN: dict[str, Place] = {
    "self_attn.q_proj": (DD, "attention.query"),
    "self_attn.k_proj": ((NKV * HD, D), "attention.key"),
    "self_attn.v_proj": ((NKV * HD, D), "attention.value"),
    "self_attn.o_proj": (DD, "attention.output"),
}
SHORT = {"q": "query", "k": "key", "v": "value", "o": "output"}
HF = {"hidden_size": D, "num_attention_heads": NH, "num_key_value_heads": NKV, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Published:
    """`tensors`: path in the layer -> shape, and the role or the published split."""

    model_type: str
    prefix: str
    tensors: Mapping[str, Place]
    config: Mapping[str, Any] = field(default_factory=lambda: HF)
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = ""
    left_out: str = ""


def _experts(path: str, names: str = "gate_proj up_proj down_proj") -> dict[str, Place]:
    shapes = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    return {
        f"{path.format(e)}.{name}": (shapes[role], f"expert.{e}.{role}")
        for e in range(3)
        for name, role in zip(names.split(), shapes, strict=True)
    }


def _mlp(gate: str, up: str, down: str) -> dict[str, Place]:
    shapes = {gate: ((F, D), "mlp.gate"), up: ((F, D), "mlp.up"), down: ((D, F), "mlp.down")}
    return {name: place for name, place in shapes.items() if name}


GPT = {"n_embd": D, "n_head": NH, "n_layer": 2}
PUBLISHED = (
    Published(
        "qwen",
        "transformer.h",
        {
            "attn.c_attn": ((THREE, D), thirds),
            "attn.c_proj": (DD, "attention.output"),
            **_mlp("mlp.w2", "mlp.w1", "mlp.c_proj"),
        },
        {
            "hidden_size": D,
            "num_attention_heads": NH,
            "kv_channels": HD,
            "intermediate_size": 2 * F,
            "num_hidden_layers": 2,
        },
    ),
    Published(
        "baichuan",
        "model.layers",
        {"self_attn.W_pack": ((THREE, D), thirds), "self_attn.o_proj": (DD, "attention.output"), **MLP},
    ),
    Published(
        "chatglm",
        "transformer.encoder.layers",
        {
            "self_attention.query_key_value": ((QKV, D), q_k_v),
            "self_attention.dense": (DD, "attention.output"),
            "mlp.dense_h_to_4h": ((2 * F, D), gate_up),
            "mlp.dense_4h_to_h": ((D, F), "mlp.down"),
        },
        {
            "hidden_size": D,
            "num_attention_heads": NH,
            "multi_query_attention": True,
            "multi_query_group_num": NKV,
            "kv_channels": HD,
            "num_layers": 2,
            "ffn_hidden_size": F,
        },
        name="chatglm2",
    ),
    Published(
        "chatglm",
        "transformer.layers",
        {
            "attention.query_key_value": ((THREE, D), heads),
            "attention.dense": (DD, "attention.output"),
            "mlp.dense_h_to_4h": ((F, D), "mlp.up"),
            "mlp.dense_4h_to_h": ((D, F), "mlp.down"),
        },
        {"hidden_size": D, "num_attention_heads": NH, "num_layers": 2, "inner_hidden_size": F},
        name="chatglm1",
    ),
    Published(
        "chatglm",
        "transformer.encoder.layers",
        {"self_attention.query_key_value": ((THREE, D), heads), "self_attention.dense": (DD, "attention.output")},
        {
            "hidden_size": D,
            "num_attention_heads": NH,
            "multi_query_attention": False,
            "multi_query_group_num": NKV,
            "num_layers": 2,
        },
        name="chatglm2-mha",
    ),
    Published(
        "internlm2",
        "model.layers",
        {
            "attention.wqkv": ((QKV, D), groups),
            "attention.wo": (DD, "attention.output"),
            **_mlp("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
        },
    ),
    Published(
        "internvl_chat",
        "language_model.model.layers",
        {
            "attention.wqkv": ((QKV, D), groups),
            "attention.wo": (DD, "attention.output"),
            **_mlp("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
        },
        {"llm_config": {"model_type": "internlm2", **HF}},
    ),
    Published(
        "phi3small",
        "model.layers",
        {
            "self_attn.query_key_value": ((QKV, D), groups),
            "self_attn.dense": (DD, "attention.output"),
            "mlp.up_proj": ((2 * F, D), every_second),
            "mlp.down_proj": ((D, F), "mlp.down"),
        },
        {**HF, "ff_intermediate_size": F},
    ),
    Published(
        "codeshell",
        "transformer.h",
        {
            "attn.c_attn": ((QKV, D), q_k_v),
            "attn.c_proj": (DD, "attention.output"),
            **_mlp("", "mlp.c_fc", "mlp.c_proj"),
        },
        {**GPT, "num_query_groups": NKV},
    ),
    Published(
        "telechat",
        "transformer.h",
        {
            "self_attention.query": (DD, "attention.query"),
            "self_attention.key_value": ((2 * NKV * HD, D), pairs),
            "self_attention.dense": (DD, "attention.output"),
            **MLP,
        },
        {**HF, "n_head": NH},
    ),
    Published(
        "hf_olmo",
        "model.transformer.blocks",
        {
            "att_proj": ((THREE, D), thirds),
            "attn_out": (DD, "attention.output"),
            "ff_proj": ((2 * F, D), up_gate),
            "ff_out": ((D, F), "mlp.down"),
        },
        {"d_model": D, "n_heads": NH, "n_layers": 2, "mlp_hidden_size": 2 * F},
    ),
    Published(
        "molmo",
        "model.transformer.blocks",
        {
            "att_proj": ((QKV, D), q_k_v),
            "attn_out": (DD, "attention.output"),
            "ff_proj": ((2 * F, D), up_gate),
            "ff_out": ((D, F), "mlp.down"),
        },
        HF,
    ),
    Published(
        "llada",
        "model.transformer.blocks",
        {
            "q_proj": (DD, "attention.query"),
            "k_proj": (DD, "attention.key"),
            "v_proj": (DD, "attention.value"),
            "attn_out": (DD, "attention.output"),
            **_mlp("ff_proj", "up_proj", "ff_out"),
        },
        {"d_model": D, "n_heads": NH, "n_layers": 2},
    ),
    Published(
        "new",
        "encoder.layer",
        {
            "attention.qkv_proj": ((THREE, D), thirds),
            "attention.o_proj": (DD, "attention.output"),
            "mlp.up_gate_proj": ((2 * F, D), up_gate),
            "mlp.down_proj": ((D, F), "mlp.down"),
        },
        HF,
    ),
    Published(
        "phi-msft",
        "transformer.h",
        {
            "mixer.Wqkv": ((THREE, D), thirds),
            "mixer.out_proj": (DD, "attention.output"),
            **_mlp("", "mlp.fc1", "mlp.fc2"),
        },
        GPT,
    ),
    Published(
        "jais",
        "transformer.h",
        {
            "attn.c_attn": ((D, THREE), columns),
            "attn.c_proj": (DD, turned("attention.output")),
            "mlp.c_fc": ((D, F), turned("mlp.up")),
            "mlp.c_fc2": ((D, F), turned("mlp.gate")),
            "mlp.c_proj": ((F, D), turned("mlp.down")),
        },
        GPT,
    ),
    Published(
        "bailing_moe",
        "model.layers",
        {
            "attention.query_key_value": ((QKV, D), q_k_v),
            "attention.dense": (DD, "attention.output"),
            **_experts("mlp.experts.{}"),
            "mlp.shared_experts.gate_proj": ((F, D), "shared_expert.gate"),
        },
        HF,
        {"mlp.gate": (3, D)},
    ),
    Published(
        "grok-1",
        "transformer.decoder_layer",
        {
            **{f"multi_head_attention.{role}": (DD, f"attention.{role}") for role in ("query", "key", "value")},
            "multi_head_attention.linear": (DD, "attention.output"),
            **_experts("moe.{}", "linear linear_v linear_1"),
        },
        HF,
        {"router": (3, D)},
    ),
    Published(
        "arctic",
        "model.layers",
        {
            **PLAIN,
            **_experts("block_sparse_moe.experts.{}", "w1 w3 w2"),
            **_mlp("residual_mlp.w1", "residual_mlp.w3", "residual_mlp.w2"),
        },
        HF,
        {"block_sparse_moe.gate": (3, D)},
    ),
    Published(
        "RefinedWebModel",
        "transformer.h",
        {
            "self_attention.query_key_value": (
                ((NH + 2) * HD, D),
                lambda w: dict(
                    zip(
                        ("attention.query", "attention.key", "attention.value"),
                        np.split(w, [NH * HD, (NH + 1) * HD]),
                        strict=True,
                    )
                ),
            ),
            "self_attention.dense": (DD, "attention.output"),
            **_mlp("", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        },
        {**GPT, "hidden_size": D, "multi_query": True},
    ),
    Published(
        "RefinedWeb",
        "transformer.h",
        {
            "self_attention.query_key_value": ((QKV, D), groups),
            "self_attention.dense": (DD, "attention.output"),
            **_mlp("", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        },
        {**GPT, "hidden_size": D, "n_head_kv": NKV},
    ),
    Published(
        "kimi_vl",
        "vision_tower.encoder.blocks",
        {"wqkv": ((THREE, D), thirds), "wo": (DD, "attention.output"), **_mlp("", "mlp.fc0", "mlp.fc1")},
        {"vision_config": {"model_type": "moonvit", **HF}},
    ),
    Published(
        "open_clip",
        "visual.transformer.resblocks",
        {
            "attn.in_proj_weight": ((THREE, D), thirds),
            "attn.out_proj": (DD, "attention.output"),
            **_mlp("", "mlp.c_fc", "mlp.c_proj"),
        },
        {},
    ),
    Published(
        "aria",
        "language_model.model.layers",
        {**PLAIN, "mlp.shared_experts.up_proj": ((F, D), "shared_expert.up")},
        {"text_config": {"model_type": "aria_text", **HF}},
        {"mlp.router": (3, D)},
    ),
    Published(
        "kimi_k25",
        "vision_tower.encoder.blocks",
        {"wqkv": ((THREE, D), thirds), "wo": (DD, "attention.output"), **_mlp("", "mlp.fc0", "mlp.fc1")},
        {"vision_config": {"vt_num_attention_heads": NH, "vt_hidden_size": D}, "text_config": HF},
        name="kimi_k25-vision",
    ),
    Published(
        "deepseek_vl_v2",
        "model.vision_model.transformer.layers",
        {
            "self_attn.qkv_proj": ((THREE, D), thirds),
            "self_attn.out_proj": (DD, "attention.output"),
            **_mlp("", "mlp.fc1", "mlp.fc2"),
        },
        {"vision_config": {"model_type": "vision", "width": {"clip-l-14-224": {"heads": NH, "width": D}}}},
    ),
    Published(
        "molmo",
        "model.vision_backbone.image_vit.transformer.resblocks",
        {
            **{f"attention.w{name}": (DD, f"attention.{role}") for name, role in SHORT.items()},
            "feed_forward.w1": ((F, D), "mlp.up"),
            "feed_forward.w2": ((D, F), "mlp.down"),
        },
        HF,
        name="molmo-vision",
    ),
    Published(
        "gpt-sw3",
        "h",
        {
            "attn.c_attn": ((D, THREE), columns),
            "attn.c_proj": (DD, turned("attention.output")),
            "mlp.c_fc": ((D, F), turned("mlp.up")),
            "mlp.c_proj": ((F, D), turned("mlp.down")),
        },
        GPT,
    ),
    Published(
        "exaone",
        "transformer.h",
        {
            **{
                f"attn.attention.{path.partition('.')[2]}": place
                for path, place in PLAIN.items()
                if "o_proj" not in path
            },
            "attn.attention.out_proj": (DD, "attention.output"),
            **_mlp("mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"),
        },
        {**HF, "num_layers": 2},
    ),
    Published("dory", "model.layers", {**PLAIN, "self_attn.g_proj": ((NH, D), "attention.gate"), **MLP}),
    Published(
        "sarvam_moe",
        "model.layers",
        {
            "attention.query_key_value": ((QKV, D), q_k_v),
            "attention.dense": (DD, "attention.output"),
            **_experts("mlp.experts.{}"),
            "mlp.shared_experts.gate_proj": ((F, D), "shared_expert.gate"),
        },
        HF,
        {"mlp.gate": (3, D)},
        left_out="2 matrices (mlp.gate) are left out",
    ),
    Published(
        "ernie4_5_vl",
        "model.layers",
        {**PLAIN, **_experts("mlp.experts.{}"), "mlp.shared_experts.up_proj": ((F, D), "shared_expert.up")},
        HF,
        {"mlp.gate": (D, 3), "mlp.gate.weight_1": (D, 3)},
        left_out="4 matrices (mlp.gate, mlp.gate.weight_1) are left out",
    ),
    Published(
        "inkling_mm_model",
        "model.llm.layers",
        {
            "mlp.experts.shared_w13_weight": ((2 * F, D), shared_pairs),
            "mlp.experts.shared_w2_weight": ((D, F), "shared_expert.down"),
        },
        {"text_config": {"model_type": "inkling_text", **HF}},
    ),
)
