"""Which tensors are the two factors of a matrix, told by their names: adapters (LoRA), and checkpoints of low rank."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

OTHER = {"LoHa": "LoHa", "LoKr": "LoKr", "third": "a LoRA of three factors"}
"""The sides of parts that make no product of two factors, and what they are of."""
LORA, NESTED, APPLY = "LoRA", "nested linears", "rankscope apply"
_WORDS = ("lora", "hada_", "lokr_", ".U.")
_ENDINGS = (
    ".A",
    ".B",
    ".0.weight",
    ".1.weight",
    "Linear.weight",
    "_u_proj.weight",
    "_v_proj.weight",
    ".VT.weight",
    ".U.weight",
)


class Named(NamedTuple):
    """What a tensor's name says: it is the factor "A" (its columns are the inputs) or "B" of the matrix of `module`,
    or "alpha", a number that scales it, "magnitude", the lengths of DoRA, or one of OTHER.

    `kind` is LORA or the way of low rank, `adapter` the name of one of several, `block` the number of one of several
    blocks of B, `is_turned` whether the tensor is stored as (inputs, outputs).
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
"""Words with an underscore of their own, of two that begin alike the longer one first."""


def may_be_factor(name: str) -> bool:
    """Whether it is worth while to look at a name: a model of 91,000 tensors has none that is."""
    return name.endswith(_ENDINGS) or any(word in name for word in _WORDS)


def named(name: str) -> Iterator[Named]:
    """What a tensor's name may say, the likeliest first; nothing of any other tensor."""
    if found := _X_FLUX.fullmatch(name):
        stream = {"1": "img_attn.", "2": "txt_attn.", "": ""}[found[3]]
        yield Named(f"{found[1]}.{stream}{found[2]}", _side(found[4]))
    elif found := _PEFT.fullmatch(name):
        yield Named(found[1], found[3], adapter="" if found[4] in (None, "default") else found[4])
    elif found := _SMALL.fullmatch(name):
        # llama.cpp keeps the name of the tensor and A as PEFT has it; MLX has both turned.
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
    """A module whose name kohya's scripts wrote with underscores, as its model writes it: `lora_unet_down_blocks_0_...`
    is `down_blocks.0. ...`, of several text encoders `te1.text_model. ...`; any other as it is."""
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
