"""A plan in a running model, against the model that transformers saves afterwards."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from family_builds import SPECS, model_of
from norm_tracing import scattered
from numpy.typing import NDArray
from running_demo import RunningDemo

from rankscope.engine.calibration.next_token_loss import Windows, mean_loss
from rankscope.engine.calibration.replacing import RunningMatrices
from rankscope.engine.calibration.texts import read_text, sequences
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.errors import InputError
from rankscope.engine.moment import Moment, diagonal, full
from rankscope.engine.plan.in_memory import put_into
from rankscope.engine.plan.matrices import Matrices
from rankscope.engine.plan.works import Work
from rankscope.engine.spectrum import Projection

Array = NDArray[np.float64]
RANK = 3


def built(name: str, folder: Path) -> tuple[Any, Checkpoint]:
    spec = next(spec for spec in SPECS if spec.name == name)
    few = {key: 2 for key in spec.config if key == "num_experts_per_tok"}
    model: Any = scattered(model_of(replace(spec, config={**spec.config, **few}))).eval()
    model.save_pretrained(folder)
    return model, open_checkpoint(str(folder))


def moment(p: Projection) -> Moment | None:
    """A second moment, of a kind that depends on the place of the projection; None for down."""
    rng = np.random.default_rng([p.rows, p.cols, p.layer or 0])
    if p.role == "down":
        return None
    if p.expert is not None:
        return diagonal(rng.uniform(0.01, 3, p.cols))
    x = rng.standard_normal((3 * p.cols, p.cols)) * rng.uniform(0.1, 3, p.cols)
    return full(x.T @ x / len(x))


def best(w: Array, held: Moment | None) -> Array:
    """The best approximation of this rank, by LAPACK's singular vectors of W C^1/2."""
    root = np.eye(w.shape[1])
    if held is not None:
        (operand,) = held.operands
        assert operand.load is not None
        c = operand.load()
        root = np.real(scipy.linalg.sqrtm(np.diag(c) if c.ndim == 1 else c))
    u = scipy.linalg.svd(w @ root)[0][:, :RANK]
    return np.asarray(u @ u.T @ w)


def silent(_done: int, _total: int) -> None:
    return None


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "phi3", "gpt_neox", "falcon", "mixtral", "gpt_oss", "albert", "qwen3_next"]
)
def test_transformers_saves_the_best_approximations_and_nothing_else_has_changed(name: str, tmp_path: Path) -> None:
    """Matrices fused by rows, by columns and by head, expert stacks in both orientations, and shared layers."""
    model, checkpoint = built(name, tmp_path / "before")
    planned = [p for p in build_tree(checkpoint).scanned() if p.layer != 1 or p.role in ("query", "up")]
    put_into(model, checkpoint, [Work(p, RANK, moment(p), 0.0) for p in planned], "cpu", silent)
    model.save_pretrained(tmp_path / "after")
    after = open_checkpoint(str(tmp_path / "after"))
    read, saved = Matrices(checkpoint), Matrices(after)
    found = {p.address: p for p in build_tree(after).scanned()}
    changed = {p.address for p in planned}
    assert len(changed) > 4
    for p in build_tree(checkpoint).scanned():
        w, made = (np.asarray(held.matrix(one), float) for held, one in ((read, p), (saved, found[p.address])))
        wanted = best(w, moment(p)) if p.address in changed else w
        assert np.abs(made - wanted).max() <= 1e-5 * np.abs(w).max(), p.address
    parts = {p.tensor for p in found.values()}
    own = {tensor.name: tensor for tensor in checkpoint.tensors}
    for tensor in after.tensors:
        if tensor.name not in parts:
            assert (saved.whole(tensor) == read.whole(own[tensor.name])).all(), tensor.name


def test_what_the_model_does_not_hold_is_refused_by_name(tmp_path: Path) -> None:
    model, checkpoint = built("llama", tmp_path)
    tree = build_tree(checkpoint).scanned()
    up = next(p for p in tree if p.address == "layers.1.mlp.up")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 10
    with pytest.raises(InputError, match=r"^layers\.1\.mlp\.up: the running model does not hold it"):
        put_into(model, checkpoint, [Work(up, RANK, None, 0.0)], "cpu", silent)
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(InputError, match=r"1 of 14 projections are in no module .* e\.g\. layers\.1\.mlp\.up: "):
        RunningMatrices(model, tree, checkpoint)


def test_the_demo_has_the_best_approximations_in_the_order_of_its_modules(running_demo: RunningDemo) -> None:
    """From GGUF, whose queries and keys have their rows in another order; the loss is transformers'."""
    checkpoint, model, tokenizer = running_demo
    layer = model.model.layers[15]
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    modules = {f"layers.15.attention.{role}": getattr(layer.self_attn, name) for role, name in parts.items()}
    modules |= {f"layers.15.mlp.{role}": getattr(layer.mlp, f"{role}_proj") for role in ("gate", "up", "down")}
    exact = {address: module.weight.detach().clone() for address, module in modules.items()}
    planned = build_tree(checkpoint).scanned("layers.15.*")
    assert {p.address for p in planned} == set(modules)
    ids = list(islice(sequences(read_text("builtin").text, tokenizer, 64, 10**6), 3))
    windows = Windows(ids, 0)
    try:
        put_into(model, checkpoint, [Work(p, RANK, None, 0.0) for p in planned], "cpu", silent)
        for address, module in modules.items():
            wanted = best(exact[address].numpy().astype(float), None)
            assert np.abs(module.weight.detach().numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max(), address
        with torch.no_grad():
            losses = [float(model(input_ids=x, labels=x).loss) for x in (torch.tensor([one]) for one in ids)]
        assert mean_loss(model, windows, silent) == pytest.approx(sum(losses) / 3, rel=1e-5)
        factored = sum(losses) / 3
    finally:
        with torch.no_grad():
            for address, module in modules.items():
                module.weight.copy_(exact[address])
    assert mean_loss(model, windows, silent) < factored - 0.01
