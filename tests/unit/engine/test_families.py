"""Every known family: the projections cut from its checkpoint are the matrices that its running module applies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from family_specs import FAMILIES, Family
from lapack_reference import assert_same_spectrum, compute
from running_modules import States, matrix_of
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Built:
    """A tiny model of a family, running and saved."""

    family: Family
    model: nn.Module
    checkpoint: Checkpoint
    tree: Tree

    def running_matrices(self, layer: int) -> States:
        """Role -> the matrix that the running layer applies, (out, in)."""
        module = self.model.get_submodule(f"{self.family.layers}.{layer}")
        held = {name for name, _ in module.named_modules()}
        plain = {
            role: matrix_of(module.get_submodule(path)) for role, path in self.family.plain.items() if path in held
        }
        return {**plain, **(self.family.measured(module) if self.family.measured else {})}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.model_type)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    family: Family = request.param
    torch.manual_seed(7)
    config = AutoConfig.for_model(family.model_type, **family.config)
    auto: Any = AutoModelForCausalLM if family.causal else AutoModel
    model = auto.from_config(config).eval()
    for parameter in model.parameters():  # so that no bias and no norm is zero or one
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp(family.model_type)
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    with torch.no_grad():
        yield Built(family, model, checkpoint, build_tree(checkpoint))


def test_spectra_are_those_of_the_running_module(built: Built) -> None:
    found = {p.address: p for p in built.tree.projections}
    for layer, roles in enumerate(built.family.roles):
        matrices = built.running_matrices(layer)
        assert matrices.keys() >= roles
        for role in roles:
            projection = found[f"layers.{layer}.{role}"]
            assert (projection.rows, projection.cols) == tuple(matrices[role].shape)
            assert_same_spectrum(compute(built.checkpoint, projection), matrices[role])


def test_layers_hold_exactly_these_roles(built: Built) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for projection in built.tree.projections:
        if projection.block != "other":
            layer, role = re.fullmatch(r"layers\.(\d+)\.(.*)", projection.address).groups()  # type: ignore[union-attr]
            found[layer].add(role)
    assert found == {str(i): set(roles) for i, roles in enumerate(built.family.roles)}
    assert built.tree.known


def test_projection_fields_say_what_the_address_says(built: Built) -> None:
    for p in (p for p in built.tree.projections if p.block != "other"):
        expert = [] if p.expert is None else [str(p.expert)]
        assert p.address == ".".join(["layers", str(p.layer), p.block, *expert, p.role])
        assert p.problem is None
        assert p.tower is None


def test_addresses_and_keys_are_unique_and_no_tensor_is_lost(built: Built) -> None:
    projections = built.tree.projections
    assert len({p.address for p in projections}) == len(projections)
    assert len({p.key for p in projections}) == len(projections)
    assert {p.tensor for p in projections} == {t.name for t in built.checkpoint.tensors}


def test_norms_embeddings_routers_and_heads_are_no_projections(built: Built) -> None:
    blocks = {p.tensor: p.block for p in built.tree.projections}
    assert {name: blocks[name] for name in built.family.others} == dict.fromkeys(built.family.others, "other")
    scanned = {p.tensor for p in built.tree.scanned()}
    assert not scanned & built.family.others


def test_order_is_that_of_the_layers(built: Built) -> None:
    blocks = [p.block for p in built.tree.projections]
    named = [p for p in built.tree.projections if p.block != "other"]
    assert blocks == [p.block for p in named] + ["other"] * (len(blocks) - len(named))
    assert [p.layer for p in named] == sorted(p.layer for p in named if p.layer is not None)


def test_the_parts_of_a_fused_tensor_fill_it_once(built: Built) -> None:
    """Frobenius norms of the parts add up to the tensor's: nothing is left out, nothing is used twice."""
    parts = defaultdict(list)
    for p in built.tree.projections:
        if p.slice is not None:
            parts[p.tensor].append(p)
    for tensor in (t for t in built.checkpoint.tensors if t.name in parts):
        weights, _ = built.checkpoint.read(tensor)
        squares = sum(compute(built.checkpoint, p).provenance.frobenius_norm ** 2 for p in parts[tensor.name])
        assert squares == pytest.approx(float((weights.astype(float) ** 2).sum()), rel=1e-12)
        assert sum(p.rows * p.cols for p in parts[tensor.name]) == weights.size
    fused = {"phi3": 4, "gpt2": 2, "gpt_neox": 2, "deepseek_v2": 4, "deepseek_v3": 4}
    assert len(parts) == fused.get(built.family.model_type, 0)
