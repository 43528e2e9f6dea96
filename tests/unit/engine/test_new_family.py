"""A new family takes one rule: tried with names that no family has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankscope.engine.catalogue import rules, tree
from rankscope.engine.catalogue.layouts import CAT, Rule
from rankscope.engine.catalogue.rules import cut
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

FAMILY = "pelican"
CONFIG = {"model_type": FAMILY, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 12, "head_dim": 4}
ROLES = {"query": (0, 12), "key": (12, 16), "value": (16, 20)}


def _opened(folder: Path) -> tuple[Checkpoint, np.ndarray]:
    beak = np.random.default_rng(3).standard_normal((20, 12)).astype(np.float32)
    save_file({"model.layers.0.self_attn.beak.weight": beak}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return open_checkpoint(str(folder)), beak


def test_without_its_rule_the_tensor_stays_whole(tmp_path: Path) -> None:
    checkpoint, _ = _opened(tmp_path)
    (whole,) = tree.build_tree(checkpoint).scanned()
    assert (whole.address, whole.rows, whole.slice) == ("other.model.layers.0.self_attn.beak.weight", 20, None)


def test_one_rule_splits_it_into_the_rows_of_each_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rules, "FUSED", (Rule("beak", "attention", layouts=(CAT,), models=frozenset({FAMILY})), *rules.FUSED)
    )
    monkeypatch.setattr(tree, "KNOWN_FAMILIES", tree.KNOWN_FAMILIES | {FAMILY})
    rules.find_rules.cache_clear()
    try:
        checkpoint, beak = _opened(tmp_path)
        found = tree.build_tree(checkpoint)
    finally:
        rules.find_rules.cache_clear()
    assert found.known
    assert [p.address for p in found.scanned()] == [f"layers.0.attention.{role}" for role in ROLES]
    for p in found.scanned():
        first, end = ROLES[p.role]
        assert p.slice is not None
        np.testing.assert_array_equal(cut(beak, p.slice), beak[first:end])
