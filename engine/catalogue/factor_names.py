"""Recognising the two factors of a matrix by the names of tensors: adapters (LoRA), and checkpoints of low rank."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

OTHER = {"LoHa": "LoHa", "LoKr": "LoKr", "third": "a LoRA of three factors"}
"""Sides of parts that form no product of two factors, and the kind of adapter that has them."""
LORA, NESTED, APPLY = "LoRA", "nested linears", "rankscope apply"
_WORDS = ("lora", "hada_", "lokr_", ".U.")
_ENDINGS = (
    ".A", ".B", ".0.weight", ".1.weight", "Linear.weight", "_u_proj.weight", "_v_proj.weight", ".VT.weight",
    ".U.weight",
)  # fmt: skip


class Named(NamedTuple):
    """The meaning of a tensor's name. `side` is "A" (its columns are the inputs) or "B" for a factor of the matrix of
    `module`, "alpha" for a number that scales it, "magnitude" for the lengths of DoRA, or a key of OTHER.

    `kind` is LORA or the kind of low rank, `adapter` the name of one of several adapters, `block` the number of one of
    several blocks of B. `is_turned`: the tensor is stored as (inputs, outputs).
    """

    module: str
    side: str
    kind: str = LORA
    adapter: str = ""
    block: int = 0
    is_turned: bool = False


_PEFT = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
_DOWN_UP = re.compile(r"(.+?)[._]lora(?:_linear_layer)?(?:[._](\d+))?[._](down|up)\.weight")
_X_FLUX = re.compile(r"(.+_blocks\.\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight")
_SMALL = re.compile(r"(.+?)(\.weight)?\.lora_([ab])")
_BESIDE = re.compile(
    r"(?P<alpha>.+)\.alpha"
    r"|(?P<magnitude>.+?)\.(?:lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?|dora_scale|m)"
    r"|(?P<LoHa>.+?)\.hada_\w+(?:\.weight)?"
    r"|(?P<LoKr>.+?)\.lokr_\w+(?:\.weight)?"
    r"|(?P<third>.+?)\.(?:lora_mid|lora_E|ranknum)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)
_LOW_RANK = (
    ("SVD-LLM", re.compile(r"(?P<module>.+?)_(?P<side>[uv])_proj(?P<rest>)\.weight"), {"u": "B", "v": "A"}),
    ("ASVD", re.compile(r"(?P<module>.+)\.(?P<side>[AB])Linear(?P<rest>)\.weight"), {"A": "B", "B": "A"}),
    ("Palu", re.compile(r"(?P<module>.+)\.(?P<side>VT|U)(?:\.(?P<rest>\d{1,4}))?\.weight"), {"VT": "A", "U": "B"}),
    (NESTED, re.compile(r"(?P<module>.+)\.(?P<side>[01])(?P<rest>)\.weight"), {"0": "A", "1": "B"}),
    (APPLY, re.compile(r"(?P<module>.+)\.(?P<side>[AB])(?P<rest>)"), {"A": "B", "B": "A"}),
)
_FLAT = re.compile(r"lora_(?:unet|te(\d?)|transformer|prior_unet|prior_te)_|lycoris_")
_COMPOUND_WORDS = """
single_transformer_blocks transformer_blocks double_blocks single_blocks joint_blocks down_blocks up_blocks mid_block
input_blocks output_blocks middle_block text_model vision_model encoder_hid_proj self_attn cross_attn q_proj k_proj
v_proj o_proj out_proj qkv_proj gate_proj up_proj down_proj gate_up_proj to_q to_k to_v to_out to_add_out add_q_proj
add_k_proj add_v_proj proj_in proj_out conv_in conv_out conv_shortcut time_emb_proj time_embedding linear_1 linear_2
img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in final_layer context_block x_block context_embedder
ff_context norm1_context diffusion_model c_attn c_proj c_fc lm_head embed_tokens cross_attention self_attention
query_key_value dense_h_to_4h dense_4h_to_h
"""
_COMPOUNDS = sorted(tuple(word.split("_")) for word in _COMPOUND_WORDS.split())[::-1]
"""Words that contain underscores; of two that begin alike the longer comes first."""


def may_be_factor(name: str) -> bool:
    """A quick test that rules out most names; in a model of 91,000 tensors it may rule out all."""
    return name.endswith(_ENDINGS) or any(word in name for word in _WORDS)


def named(name: str) -> Iterator[Named]:
    """Yield what a tensor's name may mean, the likeliest first; nothing if it is no factor."""
    if found := _X_FLUX.fullmatch(name):
        stream = {"1": "img_attn.", "2": "txt_attn.", "": ""}[found[3]]
        yield Named(f"{found[1]}.{stream}{found[2]}", _side(found[4]))
    elif found := _PEFT.fullmatch(name):
        yield Named(found[1], found[3], adapter="" if found[4] in (None, "default") else found[4])
    elif found := _SMALL.fullmatch(name):
        # llama.cpp appends to the tensor's full name and stores A as PEFT does; MLX stores both transposed.
        yield Named(found[1], found[3].upper(), is_turned=not found[2])
    elif found := _DOWN_UP.fullmatch(name):
        yield Named(dotted(found[1].replace(".processor.", ".")), _side(found[3]), adapter=found[2] or "")
    elif found := _BESIDE.fullmatch(name):
        side = str(found.lastgroup)
        yield Named(dotted(found[side]), side)
    for kind, pattern, sides in _LOW_RANK:
        if found := pattern.fullmatch(name):
            module = f"{found['module']}_proj" if kind == "SVD-LLM" else found["module"]
            yield Named(module, sides[found["side"]], kind, block=int(found["rest"] or 0))


def dotted(module: str) -> str:
    """The name of a module in its model, from the one that kohya's scripts write with underscores:
    `lora_unet_down_blocks_0_...` is `down_blocks.0. ...`, for several text encoders `te1.text_model. ...`. Other names
    are returned unchanged."""
    if "." in module or not (found := _FLAT.match(module)):
        return module
    words = module[found.end() :].split("_")
    made = [f"te{found[1]}"] if found[1] else []
    while words:
        compound = next((c for c in _COMPOUNDS if tuple(words[: len(c)]) == c), words[:1])
        made.append("_".join(compound))
        words = words[len(compound) :]
    return ".".join(made)


def _side(word: str) -> str:
    return "A" if word == "down" else "B"
