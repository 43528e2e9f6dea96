"""Helpers for tests of opening: safetensors files, and the error line of a refused model."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import InputError

QUERY = "model.layers.0.self_attn.q_proj.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1
}  # fmt: skip


def weights(*names: str, seed: int = 0, shape: tuple[int, ...] = (4, 8)) -> bytes:
    """A safetensors file of float32 tensors, written by the reference package."""
    rng = np.random.default_rng(seed)
    return save({name: rng.standard_normal(shape).astype(np.float32) for name in names})


def stored(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header (bytes, or an object to be written as JSON), without any check."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def index(weight_map: Mapping[str, str]) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def refusal(model: object, *, download: bool = False) -> str:
    """The one line that a user gets for a model that cannot be opened."""
    return refused(model, Access.DOWNLOAD if download else Access.CACHE)


def refused(model: object, access: Access) -> str:
    """`refusal` with this access."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model), access)
    return checked(caught.value)


def checked(error: InputError) -> str:
    """The error's line, checked to be one line, short, and safe on any terminal."""
    line = str(error)
    assert line
    assert line.isprintable()  # no line break, no escape sequence, no half of a surrogate pair
    assert len(line) < 700
    assert "Traceback" not in line
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return line


def tree_or_refusal(model: object) -> Tree | str:
    """Open and build the tree; anything but success or one clear line is an exception, and fails the test."""
    try:
        checkpoint = open_checkpoint(str(model), Access.CACHE)
    except InputError as error:
        return checked(error)
    tree = build_tree(checkpoint)
    addresses = [p.address for p in tree.projections]
    assert len(set(addresses)) == len(addresses)
    assert all(a.isprintable() and not set(a) & set(" *?[]") for a in addresses)
    assert all(len(line) == len(line.splitlines()[0]) and line.isprintable() for line in checkpoint.warnings)
    assert {p.tensor for p in tree.projections} == {t.name for t in checkpoint.tensors}
    return tree
