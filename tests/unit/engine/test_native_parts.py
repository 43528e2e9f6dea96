"""Meta's consolidated.NN.pth: the parts of each matrix, cut as Megatron cuts them, are read as one matrix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lapack_reference import assert_same_spectrum, compute

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.errors import InputError, WeightsError
from rankscope.engine.spectrum import Projection

PARAMS: dict[str, Any] = {
    "dim": 30, "n_layers": 1, "n_heads": 6, "n_kv_heads": 3, "vocab_size": 33, "multiple_of": 7,
    "ffn_dim_multiplier": 1.3,
}  # fmt: skip
PARTS = 3
LAYER = "layers.0."
# (out, in); the width 105 by hand: 2/3 of 4 x 30 is 80, times 1.3 it is 104, and the next multiple of 7 is 105.
SHAPES = {
    "attention.wq": (30, 30), "attention.wk": (15, 30), "attention.wv": (15, 30), "attention.wo": (30, 30),
    "feed_forward.w1": (105, 30), "feed_forward.w2": (30, 105), "feed_forward.w3": (105, 30),
}  # fmt: skip
ROLES = {
    "attention.wq": "attention.query", "attention.wk": "attention.key", "attention.wv": "attention.value",
    "attention.wo": "attention.output", "feed_forward.w1": "mlp.gate", "feed_forward.w2": "mlp.down",
    "feed_forward.w3": "mlp.up",
}  # fmt: skip
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole() -> State:
    random = torch.Generator().manual_seed(11)
    named = {f"{LAYER}{module}.weight": shape for module, shape in SHAPES.items()}
    named |= {"tok_embeddings.weight": (33, 30), "output.weight": (33, 30), "norm.weight": (30,)}
    return {name: torch.randn(shape, generator=random) for name, shape in named.items()}


def cut(name: str, matrix: torch.Tensor, embeddings: int = 0) -> list[torch.Tensor]:
    """The parts of a matrix, as ColumnParallelLinear (rows of its weight) and RowParallelLinear (columns) hold them."""
    if matrix.ndim < 2:
        return [matrix] * PARTS
    axis = embeddings if "tok_embeddings" in name else 1 if name.endswith(("wo.weight", "w2.weight")) else 0
    return list(matrix.chunk(PARTS, axis))


def save(folder: Path, parts: Mapping[str, list[torch.Tensor]], params: Any = PARAMS, suffix: str = "pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if params is not None:
        (folder / "params.json").write_text(json.dumps(params))
    for n in range(len(next(iter(parts.values())))):
        torch.save(
            {k: v[n].clone() for k, v in parts.items() if v[n] is not None}, folder / f"consolidated.{n:02}.{suffix}"
        )
    return folder


def named(checkpoint: Checkpoint) -> dict[str, Projection]:
    return {p.address: p for p in build_tree(checkpoint).projections}


@pytest.mark.parametrize(("embeddings", "vocabulary"), [(0, 33), (1, 33), (1, -1), (0, -1)])
def test_parts_are_read_as_the_matrices(tmp_path: Path, whole: State, embeddings: int, vocabulary: int) -> None:
    parts = {name: cut(name, matrix, embeddings) for name, matrix in whole.items()}
    checkpoint = open_checkpoint(str(save(tmp_path, parts, PARAMS | {"vocab_size": vocabulary})))
    found = named(checkpoint)
    wanted = {f"layers.0.{role}": whole[f"{LAYER}{module}.weight"] for module, role in ROLES.items()}
    wanted |= {f"other.{name}.weight": whole[f"{name}.weight"] for name in ("tok_embeddings", "output")}
    assert {a for a, p in found.items() if p.problem is None} == wanted.keys()
    for address, matrix in wanted.items():
        assert (found[address].rows, found[address].cols) == tuple(matrix.shape)
        assert_same_spectrum(compute(checkpoint, found[address]), matrix)
    assert checkpoint.bytes == sum(4 * m.numel() for m in whole.values())


@pytest.mark.parametrize("number", [0, 2])
def test_one_of_the_files_opens_the_model(tmp_path: Path, whole: State, number: int) -> None:
    save(tmp_path, {name: cut(name, matrix) for name, matrix in whole.items()})
    by_file = named(open_checkpoint(str(tmp_path / f"consolidated.0{number}.pth")))
    by_folder = named(open_checkpoint(str(tmp_path)))
    assert {a: p.key for a, p in by_file.items()} == {a: p.key for a, p in by_folder.items()}


def test_the_key_covers_every_part(tmp_path: Path, whole: State) -> None:
    save(tmp_path, {name: cut(name, matrix) for name, matrix in whole.items()})
    before = {a: p.key for a, p in named(open_checkpoint(str(tmp_path))).items() if p.problem is None}
    last = tmp_path / "consolidated.02.pth"
    status = last.stat()
    os.utime(last, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    after = {a: p.key for a, p in named(open_checkpoint(str(tmp_path))).items() if p.problem is None}
    assert all(after[address] != key for address, key in before.items())


def test_a_part_that_changes_while_open_is_no_matrix(tmp_path: Path, whole: State) -> None:
    checkpoint = open_checkpoint(str(save(tmp_path, {name: cut(name, m) for name, m in whole.items()})))
    with open(tmp_path / "consolidated.01.pth", "ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match=r"consolidated\.01\.pth changed since it was opened"):
        compute(checkpoint, named(checkpoint)["layers.0.mlp.down"])


def test_transposed_views_and_bfloat16_join(tmp_path: Path, whole: State) -> None:
    parts = {name: [p.bfloat16() for p in cut(name, matrix)] for name, matrix in whole.items()}
    save(tmp_path, parts)
    name = f"{LAYER}attention.wo.weight"
    for n, part in enumerate(parts[name]):
        file = tmp_path / f"consolidated.0{n}.pth"
        torch.save({k: v[n] for k, v in parts.items()} | {name: part.t().contiguous().t()}, file)
    checkpoint = open_checkpoint(str(tmp_path))
    assert_same_spectrum(compute(checkpoint, named(checkpoint)["layers.0.attention.output"]), whole[name].bfloat16())


def test_fewer_key_heads_than_parts_repeat(tmp_path: Path, whole: State) -> None:
    """Six parts hold three key heads, each twice: one of the two counts, and the other must be equal."""
    name = f"{LAYER}attention.wk.weight"
    heads = [head for head in whole[name].chunk(3) for _ in range(2)]
    checkpoint = open_checkpoint(str(save(tmp_path / "equal", {name: heads})))
    assert_same_spectrum(compute(checkpoint, named(checkpoint)["layers.0.attention.key"]), whole[name])
    checkpoint = open_checkpoint(str(save(tmp_path / "other", {name: [*heads[:5], heads[5] * 2]})))
    with pytest.raises(WeightsError, match=r"consolidated\.05\.pth holds other numbers than the part"):
        compute(checkpoint, named(checkpoint)["layers.0.attention.key"])


def test_a_matrix_in_every_part_whole(tmp_path: Path, whole: State) -> None:
    name = f"{LAYER}attention.wq.weight"
    checkpoint = open_checkpoint(str(save(tmp_path, {name: [whole[name]] * 3})))
    assert_same_spectrum(compute(checkpoint, named(checkpoint)["layers.0.attention.query"]), whole[name])


def test_copies_are_not_put_side_by_side_where_nothing_says_the_size(tmp_path: Path, whole: State) -> None:
    name = f"{LAYER}feed_forward.w1.weight"
    params = {key: value for key, value in PARAMS.items() if key != "multiple_of"}
    checkpoint = open_checkpoint(str(save(tmp_path, {name: [whole[name]] * 3}, params)))
    with pytest.raises(WeightsError, match="its parts are copies of one another"):
        compute(checkpoint, named(checkpoint)["layers.0.mlp.gate"])


@pytest.mark.parametrize(
    ("module", "shapes", "said"),
    [
        ("attention.wq", [(10, 29)] * 3, "its 3 parts of 10 x 29 do not join to the shape that params.json gives"),
        ("attention.wv", [(7, 30)] * 3, "its 3 parts of 7 x 30 do not join to the shape that params.json gives"),
        ("feed_forward.w2", [(30, 36)] * 3, "its 3 parts of 30 x 36 do not join to the shape that params.json gives"),
        ("attention.wo", [(30, 10), (30, 10), (30, 9)], "its 3 parts differ in shape or type"),
        ("feed_forward.router", [(4, 30)] * 3, "its name does not say how its 3 parts of 4 x 30 join"),
        ("feed_forward.w3", [(35, 30), (35, 30), None], "2 of 3 parts of the model hold it"),
    ],
)
def test_what_does_not_join_is_not_computed(
    tmp_path: Path, whole: State, module: str, shapes: list[tuple[int, int] | None], said: str
) -> None:
    parts: dict[str, Any] = {f"{LAYER}{module}.weight": [None if s is None else torch.ones(s) for s in shapes]}
    parts["norm.weight"] = [whole["norm.weight"]] * 3
    (found,) = [p for p in named(open_checkpoint(str(save(tmp_path, parts)))).values() if p.tensor != "norm.weight"]
    assert found.problem == said


def test_whole_tensors_in_files_of_these_names_are_shards(tmp_path: Path, whole: State) -> None:
    """Such as Mixtral's consolidated.00.pt to 07.pt."""
    parts: dict[str, Any] = {name: [None, None] for name in whole}
    for n, (name, matrix) in enumerate(whole.items()):
        parts[name][n % 2] = matrix
    checkpoint = open_checkpoint(str(save(tmp_path, parts, None, "pt")))
    found = named(checkpoint)
    for module, role in ROLES.items():
        assert_same_spectrum(compute(checkpoint, found[f"layers.0.{role}"]), whole[f"{LAYER}{module}.weight"])


def refused(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    return str(caught.value)


def test_sets_that_are_not_whole_are_refused(tmp_path: Path, whole: State) -> None:
    parts = {name: cut(name, matrix) for name, matrix in whole.items()}
    folder = save(tmp_path, parts)
    (folder / "params.json").unlink()
    assert f"{folder / 'consolidated.00.pth'} is part 1 of 3 of a tensor-parallel model, and params.json" in refused(
        folder
    )
    (folder / "params.json").write_text("{}")
    needed = "gives no dim and n_heads, which joining the parts needs: fetch it again"
    assert refused(folder) == f"{folder / 'params.json'} {needed}"
    (folder / "params.json").write_text(json.dumps(PARAMS))
    (folder / "consolidated.01.pth").unlink()
    assert "consolidated.01.pth is missing beside" in refused(folder)
    (folder / "consolidated.02.pth").unlink()
    for model in (folder, folder / "consolidated.00.pth"):
        assert "consolidated.00.pth is part 1 of 3 of a tensor-parallel model by what params.json says" in refused(
            model
        )
    (folder / "consolidated.00.pth").rename(folder / "consolidated.01.pth")
    assert "consolidated.00.pth is missing beside" in refused(folder / "consolidated.01.pth")


def test_one_file_opens_as_it_did(tmp_path: Path, whole: State) -> None:
    folder = save(tmp_path / "with", {name: [matrix] for name, matrix in whole.items()})
    bare = save(tmp_path / "without", {name: [matrix] for name, matrix in whole.items()}, None)
    for model in (folder, bare, bare / "consolidated.00.pth"):
        checkpoint = open_checkpoint(str(model))
        assert all(not t.parts and not t.problem for t in checkpoint.tensors)
        assert len(checkpoint.tensors) == len(whole)


def test_memory_counts_the_parts_and_the_whole(tmp_path: Path, whole: State) -> None:
    checkpoint = open_checkpoint(str(save(tmp_path, {name: cut(name, m) for name, m in whole.items()})))
    (query,) = [t for t in checkpoint.tensors if t.name.endswith("wq.weight")]
    assert checkpoint.bytes_on("cuda", query) == 2 * 4 * math.prod(query.shape)
