"""Matrices whose input features have another order in GGUF than in the model's own files.

llama.cpp's converter permutes the rows of many queries and keys, which does not affect their input. For the few
matrices here it permutes the columns, so that heads which share a key have the order in which ggml repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..catalogue.names import inner_config
from ..errors import WeightsError, printable
from ..spectrum import Projection
from .moment_reader import FeatureOrder


class Shuffled(NamedTuple):
    """Matrices of a `block` and `role`, in these model types, whose columns are permuted.

    `heads` and `groups` are the names in config.json of how many heads they have, in how many groups. A model's own
    files hold group after group; GGUF the first head of every group, then the second of every group ...
    """

    model_types: tuple[str, ...]
    block: str
    role: str
    groups: str
    heads: str


# llama.cpp, conversion/plamo.py (shuffle_attn_output_weight) and conversion/qwen.py (_reorder_v_heads).
SHUFFLED = (
    Shuffled(("plamo",), "attention", "output", "n_shared_head", "num_attention_heads"),
    Shuffled(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "qwen4_exp_text"),
        "linear_attention", "output", "linear_num_key_heads", "linear_num_value_heads",
    ),
)  # fmt: skip


def order_of(projection: Projection, config: Mapping[str, Any], name: str) -> FeatureOrder | None:
    """The place of each input feature of a projection in a file that calls its tensor `name`; None for the same order.

    Raises:
        WeightsError: the order differs, and config.json does not give it.
    """
    model_is_gguf, file_is_gguf = is_gguf(projection.tensor), is_gguf(name)
    if model_is_gguf == file_is_gguf:
        return None
    inner = inner_config(config, "")
    place = inner.get("model_type"), projection.block, projection.role
    found = next((row for row in SHUFFLED if place in [(kind, row.block, row.role) for kind in row.model_types]), None)
    if found is None:
        return None
    groups, heads = inner.get(found.groups), inner.get(found.heads)
    if type(groups) is not int or type(heads) is not int or groups < 1 or heads % groups or projection.cols % heads:
        raise WeightsError(
            f"{printable(projection.tensor)}: GGUF stores its input features in another order, and "
            f"{found.groups} and {found.heads} of config.json do not say which"
        )
    sizes = (groups, heads // groups) if model_is_gguf else (heads // groups, groups)
    places = np.arange(projection.cols, dtype=np.intp).reshape(*sizes, projection.cols // heads)
    return places.transpose(1, 0, 2).reshape(-1)


def is_gguf(name: str) -> bool:
    """Return whether a tensor has a name as in GGUF files."""
    return name.startswith("blk.")
