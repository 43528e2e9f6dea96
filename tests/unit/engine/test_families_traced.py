"""Every family that transformers builds: our slices are the rows that the running model uses, under both namings."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_builds import SPECS, Build, Spec, build, model_of
from family_norms import UNKNOWN
from lapack_reference import Array, lapack
from norm_tracing import fits
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from rankscope.engine.catalogue.families import KNOWN_FAMILIES, NOT_PROJECTIONS
from rankscope.engine.catalogue.layouts import INTERLEAVE
from rankscope.engine.catalogue.norms import Norms
from rankscope.engine.catalogue.rules import cut, split
from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection
from rankscope.engine.weights import Weights
from rankscope.tui.data.wording import left_out

USES = {
    **dict.fromkeys(("query", "query_b"), ("query", "part")),
    **dict.fromkeys(("key", "key_b", "key_rope", "kv"), ("key", "part")),
    **dict.fromkeys(("value", "value_b"), ("value", "part")),
    **dict.fromkeys(("kv_a", "query_a"), ("input",)),
    **dict.fromkeys(("x", "B", "C", "dt_a", "conv_B", "conv_C", "conv_x"), ("input", "part")),
    "z": ("norm_gate", "activation", "part"),
    "b": ("sigmoid",),
    "a": ("softplus",),
    "dt": ("softplus",),
}
"""The uses that a running model makes of the rows of a role (see tracing.py)."""


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(request.param, tmp_path_factory.mktemp(request.param.name))


def test_slices_are_what_the_running_model_uses(built: Build) -> None:
    for checkpoint, tree in built.trees:
        pool: dict[tuple[str, int], list[tuple[int | None, Array]]] = defaultdict(list)
        for used in built.used:
            pool[used.use, used.layer].append((used.expert, lapack(used.matrix)))
        unmatched = [
            p.address
            for p, values in _spectra(checkpoint, tree)
            if not built.spec.untraced & {"*", p.tower, f"{p.block}.{p.role}"}
            and not any(_take(pool[use, p.layer or 0], p.expert, values) for use in _uses(tree, p))
        ]
        assert not unmatched


def _spectra(checkpoint: Checkpoint, tree: Tree) -> list[tuple[Projection, Array]]:
    """The spectra of the slices, by LAPACK, of every projection whose use a running model shows."""
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    shown = [p for p in tree.projections if _uses(tree, p)]
    weights = {name: checkpoint.read(stored[name])[0] for name in {p.tensor for p in shown}}
    return [(p, lapack(weights[p.tensor] if p.slice is None else cut(weights[p.tensor], p.slice))) for p in shown]


def _uses(tree: Tree, p: Projection) -> tuple[str, ...]:
    if p.block == "other":
        return ()
    if p.role == "gate":
        return ("sigmoid",) if p.block == "attention" else ("activation",)
    if p.role == "up":
        place = (p.tower, p.layer, p.block, p.expert)
        gated = any((q.tower, q.layer, q.block, q.expert) == place for q in _gates(tree))
        return ("input",) if gated else ("activation",)
    return USES.get(p.role, ())


def _gates(tree: Tree) -> list[Projection]:
    return [p for p in tree.projections if p.role == "gate"]


def _take(pool: list[tuple[int | None, Array]], expert: int | None, values: Array) -> bool:
    """Take these values out of the pool; return whether it has them."""
    for place, (number, wanted) in enumerate(pool):
        same = wanted.shape == values.shape and np.abs(wanted - values).max() <= 1e-9 * wanted[0]
        if same and number in (None, expert):
            del pool[place]
            return True
    return False


def test_addresses_and_keys_are_unique_and_no_tensor_is_lost(built: Build) -> None:
    for checkpoint, tree in built.trees:
        assert len({p.address for p in tree.projections}) == len(tree.projections)
        assert len({p.key for p in tree.projections}) == len(tree.projections)
        assert {p.tensor for p in tree.projections} == {t.name for t in checkpoint.tensors}


def test_what_is_no_projection_is_shown_as_other(built: Build) -> None:
    shapes = {tensor.name: tensor.shape for tensor in built.hub.tensors}
    (_, tree), *_ = built.trees
    others = {p.tensor for p in tree.projections if p.block == "other" and len(shapes[p.tensor]) > 1}
    assert {re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name).removesuffix(".weight") for name in others} == built.spec.others
    assert not others & {p.tensor for p in tree.scanned()}


def test_a_scan_says_what_it_leaves_out(built: Build) -> None:
    (_, tree), *_ = built.trees
    said = f"{built.spec.left_out} {'is' if built.spec.left_out.startswith('1 ') else 'are'} left out"
    assert not built.spec.left_out or left_out(tree) == said


def test_what_cannot_run_has_the_roles_that_its_code_says(built: Build) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for p in (p for p in built.trees[0][1].projections if p.block != "other"):
        words = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", p.tensor).removesuffix(".weight").split(".")
        found[".".join(words[-2:])].add(f"{p.block}.{p.role}")
    if built.spec.roles:
        assert {name: "+".join(sorted(roles)) for name, roles in found.items()} == built.spec.roles


def test_the_family_is_known_under_both_namings_and_nothing_contradicts(built: Build) -> None:
    assert built.spec.model_type in KNOWN_FAMILIES
    for _, tree in built.trees:
        assert tree.known
        # A bare `gate` chooses among the experts beside it.
        assert all(p.layer is None or p.role == "gate" or NOT_PROJECTIONS.search(p.role) for p in tree.left_out())
        assert not [p.note for p in tree.projections if p.note]


def test_both_namings_hold_the_same_projections(built: Build) -> None:
    held = [_held(built.spec, *pair) for pair in built.trees]
    assert all([place for place, _ in found] == [place for place, _ in held[0]] for found in held)
    norms = [np.array([norm for _, norm in found]) for found in held]
    assert all(np.allclose(found, norms[0], rtol=1e-9) for found in norms)


def _held(spec: Spec, checkpoint: Checkpoint, tree: Tree) -> list[tuple[tuple[str | int, ...], float]]:
    """The place of each projection; where tracing does not see it, its Frobenius norm, as other rows have another."""
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    named = [p for p in tree.projections if p.block != "other"]
    weights = {name: checkpoint.read(stored[name])[0] for name in {p.tensor for p in named} if spec.untraced}
    norms = [_norm(weights[p.tensor], p) if spec.untraced else 0.0 for p in named]
    return sorted(zip((_place(p)[2 * spec.regrouped :] for p in named), norms, strict=True))


def _norm(weights: Weights, p: Projection) -> float:
    return float(np.linalg.norm(np.asarray(weights if p.slice is None else cut(weights, p.slice), dtype=np.float64)))


def _place(p: Projection) -> tuple[str | int, ...]:
    expert = -1 if p.expert is None else p.expert
    return (p.tower or "", expert, p.layer or 0, p.block, p.role, p.rows, p.cols)


def test_the_norm_that_feeds_a_projection_is_the_one_that_the_running_model_uses(built: Build) -> None:
    """Folding it into the matrix gives the output of the model's own layer; where the table has none, there is none."""
    in_memory = {p.address: p for p in built.trees[-1][1].projections}
    refused: set[str] = set()
    for checkpoint, tree in built.trees:
        weighting, norms = NormWeighting(checkpoint), Norms(checkpoint)
        stored = {tensor.name: tensor for tensor in checkpoint.tensors}
        # For a stack, the first expert of each role; and routers.
        shown = [p for p in tree.projections if p.block != "other" or ROUTER.search(p.role)]
        named = {(p.tensor, p.role): p for p in reversed(shown)}
        for p in named.values():
            own = in_memory.get(p.address)
            given = built.inputs.get(own.tensor) if own else None
            if own is None or given is None or f"{built.spec.model_type} {p.block}.{p.role}" in GATED_BEHIND:
                continue
            try:
                norm = norms.feeding(p)
            except WeightsError:
                refused |= {f"{p.block}.{p.role}"} if p.block != "other" else set()
                continue
            assert (norm is None) == (given.bare is None), p.address
            if norm is not None:
                matrix = checkpoint.read(stored[p.tensor])[0]
                matrix = np.asarray(matrix if p.slice is None else cut(matrix, p.slice), np.float64)
                matrix = matrix.T if p.transposed else matrix
                assert fits(given, weighting.moment(p), matrix, own.slice), p.address
    assert refused == set(UNKNOWN.get(built.spec.name, "").split())


ROUTER = re.compile(r"(?:mlp|block_sparse_moe|feed_forward|ffn)\.(?:shared_expert_)?(?:gate|router)(?:\.wg|\.layer)?$")
GATED_BEHIND = frozenset(("minimax attention.output",))
"""Where the model multiplies the norm's output with a gate (test_norms.py)."""


def test_more_than_sixty_families() -> None:
    assert len({spec.model_type for spec in SPECS}) > 120


@pytest.mark.parametrize(
    ("family", "module", "fused"),
    [
        ("moonshine", "decoder.layers.0.mlp", "fc1"),
        ("clvp", "text_encoder_model.layers.0.mlp.fc1", "proj"),
        ("clvp", "speech_encoder_model.layers.0.mlp.fc1", "proj"),
        ("phi4_multimodal", "model.embed_tokens_extend.audio_embed.encoder.encoders.0.feed_forward_in", "gate_up_proj"),
        ("gemma4_audio", "layers.0.lconv1d", "linear_start"),
    ],
)
def test_gate_and_up_of_one_matrix_are_told_apart_by_curvature(
    tmp_path: Path, family: str, module: str, fused: str
) -> None:
    """A block is curved in every gate and linear in every up, if everything else in it passes on its input."""
    model = model_of(next(spec for spec in SPECS if spec.name == family))
    model.save_pretrained(tmp_path)
    name = f"{module}.{fused}"
    parts = [p for p in build_tree(open_checkpoint(str(tmp_path))).projections if p.tensor.startswith(f"{name}.")]
    rows = sum(p.rows for p in parts)
    block = torch.nn.GLU() if fused == "linear_start" else model.get_submodule(module).double().eval()
    for part, _ in list(block.named_children()):
        if not part.startswith("act"):
            setattr(block, part, torch.nn.Identity())
    torch.manual_seed(3)
    hessian = torch.autograd.functional.hessian(
        lambda x: block(x[None, None]).sum(), torch.randn(rows, dtype=torch.float64)
    )
    curved = {i for i in range(rows) if hessian[i, i].abs() > 1e-9}
    numbers = torch.arange(rows)[:, None]
    found = {p.role: set(cut(numbers, p.slice).flatten().tolist()) for p in parts if p.slice}
    assert found == {"gate": curved, "up": set(range(rows)) - curved}


def test_gate_and_up_of_gpt_oss_are_told_apart_by_curvature() -> None:
    """The experts' own gate function is linear in every up and curved in every gate: columns of gate_up_proj."""
    torch.manual_seed(3)
    config = AutoConfig.for_model("gpt_oss", hidden_size=12, intermediate_size=9, num_local_experts=2)
    experts = GptOssExperts(config)
    inputs = torch.randn(18, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: experts._apply_gate(x).sum(), inputs)
    curved = [bool(hessian[i, i].abs() > 1e-9) for i in range(18)]
    ((_, gate), (_, up)) = split((12, 18), replace(INTERLEAVE, axis=1), {"pairs": 9})
    columns = torch.arange(18)[None]
    assert [i for i in range(18) if curved[i]] == cut(columns, gate)[0].tolist()
    assert [i for i in range(18) if not curved[i]] == cut(columns, up)[0].tolist()
