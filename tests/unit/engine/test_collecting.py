"""Moments of a running model: every sum against numpy on its modules' inputs, found by their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from family_builds import SPECS, model_of
from norm_tracing import scattered
from numpy.typing import NDArray
from torch import nn

from rankscope.engine.calibration.collect import CollectionPlan, Collector, make_plan
from rankscope.engine.calibration.figures import figures
from rankscope.engine.calibration.file_weighting import open_weighting
from rankscope.engine.calibration.moments_file import write_moments
from rankscope.engine.calibration.moments_read import Moments, TokenPart, read_moments
from rankscope.engine.calibration.running import fed_of
from rankscope.engine.calibration.said import Figures, sink_lines
from rankscope.engine.catalogue.rules import cut
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.errors import InputError, UnseenError
from rankscope.engine.spectrum import Projection
from rankscope.engine.weights import host_array

Array = NDArray[np.float64]
LENGTH = 20
Given = dict[nn.Module, list[tuple[Array, NDArray[np.int64] | None]]]
"""The inputs of each module, sequence by sequence as it is called; for experts also which of them take each row."""


class Case(NamedTuple):
    """A tiny model, its checkpoint, and sequences of tokens, with the eighth held out."""

    model: Any
    checkpoint: Checkpoint
    tree: list[Projection]
    ids: list[list[int]]

    def plan(self, most: int | None = None) -> tuple[CollectionPlan, list[Projection]]:
        fed, lost = fed_of(self.model, self.tree, self.checkpoint)
        return make_plan(self.model, fed, self.ids[0], most), lost

    def saved(self, file: Path, most: int | None = None) -> Moments:
        """The moments of a run, written and read back."""
        collector = Collector(self.model, self.plan(most)[0])
        collector.run(self.ids, lambda *_: None)
        write_moments(file, collector.seen, {}, {})
        found = read_moments(file)
        assert found is not None
        return found

    def matrix(self, p: Projection) -> Array:
        read, _ = self.checkpoint.read(next(t for t in self.checkpoint.tensors if t.name == p.tensor))
        whole = host_array(read)  # type: ignore[arg-type]
        w = np.asarray(whole if p.slice is None else cut(whole, p.slice), np.float64)
        return w.T if p.transposed else w


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            spec = next(spec for spec in SPECS if spec.name == name)
            few = {key: 2 for key in spec.config if key == "num_experts_per_tok"}
            model: Any = scattered(model_of(replace(spec, config={**spec.config, **few}))).eval()
            model.config._experts_implementation = "eager"
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            checkpoint = open_checkpoint(str(folder))
            rng = np.random.default_rng(3)
            ids = rng.integers(3, getattr(model.config, "vocab_size", 37), (9, LENGTH)).tolist()
            made[name] = Case(model, checkpoint, build_tree(checkpoint).scanned(), ids)
        return made[name]

    return make


@contextmanager
def captured(model: nn.Module) -> Iterator[Given]:
    given: Given = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows = args[0].detach().double().reshape(-1, args[0].shape[-1]).numpy()
        routes = args[1].numpy() if len(args) > 1 and args[1] is not None else None
        given.setdefault(module, []).append((rows, routes))

    watched = [m for m in model.modules() if is_linear(m) or type(m).__name__.endswith("Experts")]
    hooks = [m.register_forward_pre_hook(keep) for m in watched]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def given_by_sequence(case: Case) -> list[Given]:
    found = []
    for ids in case.ids:
        tokens = torch.tensor([ids])
        more = {"decoder_input_ids": tokens} if case.model.config.is_encoder_decoder else {}
        with captured(case.model) as given, torch.no_grad():
            case.model(input_ids=tokens, **more)
        found.append(given)
    return found


def module_of(case: Case, w: Array) -> nn.Module:
    """The only module of the running model whose weight has these rows, whatever its name."""
    found = []
    for module in filter(is_linear, case.model.modules()):
        weight = module.weight.detach().double().numpy()
        weight = weight.T if type(module).__name__ == "Conv1D" else weight
        if weight.shape[1] == w.shape[1] and (weight == w[0]).all(1).any():
            found.append(module)
    (one,) = found
    return one


def second(x: Array) -> Array:
    return x.T @ x


def close(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max())


def loaded(held: Moments, name: str, cols: int, part: TokenPart = "") -> Array:
    (operand,) = held.moment(name, cols, None, None, part).operands
    assert operand.load is not None
    return operand.load()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "t5", "qwen3_next"])
def test_every_sum_is_that_of_what_the_module_was_given(name: str, case: Callable[[str], Case], tmp_path: Path) -> None:
    """Fused by columns and by rows, two towers with cross-attention, and a hybrid of two kinds of attention."""
    built = case(name)
    held = built.saved(tmp_path / "m.safetensors")
    weighting = open_weighting(str(tmp_path / "m.safetensors"), name, built.checkpoint.config)
    given = given_by_sequence(built)
    dense = [p for p in built.tree if p.expert is None]
    assert len({p.block for p in dense}) > 1
    for p in dense:
        module = module_of(built, built.matrix(p))
        parts = {part: np.concatenate([g[module][0][0] for g in some]) for part, some in halves(given).items()}
        first = np.array([g[module][0][0][0] for i, g in enumerate(given) if i != 7])
        (operand,) = weighting.moment(p).operands
        assert operand.load is not None
        assert close(operand.load(), second(parts["seen"]) / len(parts["seen"])), p.address
        assert close(loaded(held, p.tensor, p.cols, "held"), second(parts["held"]) / LENGTH), p.address
        assert close(loaded(held, p.tensor, p.cols, "first"), second(first) / 8), p.address


def halves(given: list[Given]) -> dict[str, list[Given]]:
    return {"seen": [g for i, g in enumerate(given) if i != 7], "held": given[7:8]}


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_have_the_sums_of_their_own_tokens_and_one_without_is_unseen(
    name: str, case: Callable[[str], Case], tmp_path: Path
) -> None:
    built = case(name)
    routers = [m for m in built.model.modules() if type(m).__name__.endswith("Router")]
    hooks = [router.register_forward_hook(around_expert_2) for router in routers]
    built.saved(tmp_path / "m.safetensors")
    seen = halves(given_by_sequence(built))["seen"]
    for hook in hooks:
        hook.remove()
    weighting = open_weighting(str(tmp_path / "m.safetensors"), name, built.checkpoint.config)
    stacks = [m for m in built.model.modules() if type(m).__name__.endswith("Experts")]
    experts = [p for p in built.tree if p.expert is not None]
    assert {p.role for p in experts} == {"gate", "up", "down"}
    for p in experts:
        calls = [g[stacks[p.layer or 0]][0] for g in seen]
        x = np.concatenate([rows[(routes == p.expert).any(1)] for rows, routes in calls if routes is not None])
        if not len(x):
            with pytest.raises(UnseenError):
                weighting.moment(p)
            continue
        wanted = x if p.role != "down" else inside(stacks[p.layer or 0], p.expert or 0, x)
        (operand,) = weighting.moment(p).operands
        assert operand.load is not None
        assert close(operand.load(), (wanted**2).mean(0)), p.address
    unseen = {p.expert for p in experts if isinstance(why(weighting, p), UnseenError)}
    assert {2} <= unseen < {p.expert for p in experts}


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_figures_of_experts_are_those_of_their_own_tokens(name: str, case: Callable[[str], Case]) -> None:
    """k90 of W diag(E[x^2])^1/2, and the energy of the best approximation of that rank under the held-out squares."""
    built = case(name)
    collector = Collector(built.model, built.plan()[0])
    collector.run(built.ids, lambda *_: None)
    found = {p.address: made for p, made in figures(built.checkpoint, collector.seen, "cpu")}
    stacks = [m for m in built.model.modules() if type(m).__name__.endswith("Experts")]
    parts = halves(given_by_sequence(built))
    asked = 0
    for p in (p for p in built.tree if p.expert is not None):
        squares = {}
        for part, given in parts.items():
            calls = [g[stacks[p.layer or 0]][0] for g in given]
            taken = [(rows, (routes == p.expert).any(1)) for rows, routes in calls if routes is not None]
            x = np.concatenate([rows[mine] for rows, mine in taken])
            x = x if p.role != "down" else inside(stacks[p.layer or 0], p.expert or 0, x)
            squares[part] = len(x), (x**2).sum(0)
            if part == "seen":
                is_first = np.concatenate([np.flatnonzero(mine) == 0 for _, mine in taken])
                first = (x[is_first] ** 2).sum(0)
        tokens, seen = squares["seen"]
        if not tokens:
            assert p.address not in found
            continue
        made, w = found[p.address], built.matrix(p)
        u, sigma, _ = np.linalg.svd(w * np.sqrt(seen), full_matrices=False)
        assert (made.tokens, made.cols, made.k90) == (tokens, p.cols, rank(sigma))
        if is_first.any():
            assert made.sink == pytest.approx(((w**2) @ first).sum() / (sigma**2).sum(), rel=1e-4)
        count, held = squares["held"]
        kept = u[:, : rank(sigma)].T @ w
        share = ((kept**2) @ held).sum() / ((w**2) @ held).sum() if count else None
        assert made.held == (None if share is None else pytest.approx(share, abs=1e-4))
        asked += count > 0
    assert asked


def around_expert_2(_: nn.Module, __: Any, answer: Any) -> Any:
    """A router's output with another expert instead of 2."""
    *before, chosen = answer
    free = torch.tensor([next(e for e in (0, 1, 3) if e not in row) for row in chosen.tolist()])
    return (*before, torch.where(chosen == 2, free[:, None], chosen))


def why(weighting: Any, p: Projection) -> Exception | None:
    try:
        weighting.moment(p)
    except UnseenError as error:
        return error
    return None


def inside(stack: Any, expert: int, x: Array) -> Array:
    """The input of an expert's down: its gate and up in float64, by the formulas of Mixtral and of gpt-oss."""
    w = stack.gate_up_proj[expert].detach().double().numpy()
    if not hasattr(stack, "gate_up_proj_bias"):
        gate, up = np.split(x @ w.T, 2, axis=1)
        return np.asarray(gate / (1 + np.exp(-gate)) * up)
    both = x @ w + stack.gate_up_proj_bias[expert].detach().double().numpy()
    gate, up = both[:, ::2].clip(max=stack.limit), both[:, 1::2].clip(-stack.limit, stack.limit)
    return np.asarray((up + 1) * gate / (1 + np.exp(-gate * stack.alpha)))


def test_several_passes_write_the_same_file_as_one(case: Callable[[str], Case], tmp_path: Path) -> None:
    built = case("llama")
    built.saved(tmp_path / "one.safetensors")
    whole = built.plan()[0]
    most = max(map(whole.bytes_of, ([fed] for fed in whole.fed))) * 2
    plan = built.plan(most)[0]
    assert len(plan.passes) > 2
    assert plan.device_bytes <= most < whole.device_bytes == plan.bytes
    built.saved(tmp_path / "several.safetensors", most)
    assert (tmp_path / "several.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    with pytest.raises(InputError, match="more than the device has: use --device cpu"):
        built.plan(100)


def test_inputs_that_are_one_stand_once(case: Callable[[str], Case]) -> None:
    plan, lost = case("llama").plan()
    roles = [sorted(p.role for p in fed.projections) for fed in plan.fed]
    assert roles == [["key", "query", "value"], ["output"], ["gate", "up"], ["down"]] * 2
    assert not lost
    assert not plan.unreached


def test_figures_are_those_of_lapack(case: Callable[[str], Case]) -> None:
    """k90 from the singular values of W C^1/2; the held-out energy from the best approximation of that rank, applied
    to the held tokens one by one; the share of position 0 from outputs."""
    built = case("llama")
    collector = Collector(built.model, built.plan()[0])
    collector.run(built.ids, lambda *_: None)
    found = {p.address: made for p, made in figures(built.checkpoint, collector.seen, "cpu")}
    assert list(found) == [p.address for fed in collector.seen for p in fed.projections]
    given = given_by_sequence(built)
    for p in built.tree:
        w = built.matrix(p)
        module = module_of(built, w)
        x = np.concatenate([g[module][0][0] for g in halves(given)["seen"]])
        held = given[7][module][0][0]
        first = np.array([g[module][0][0][0] for i, g in enumerate(given) if i != 7])
        u, sigma, _ = np.linalg.svd(w @ x.T, full_matrices=False)
        k = rank(sigma)
        kept = u[:, :k] @ (u[:, :k].T @ w)
        error = ((held @ (w - kept).T) ** 2).sum() / ((held @ w.T) ** 2).sum()
        share = ((first @ w.T) ** 2).sum() / ((x @ w.T) ** 2).sum()
        made = found[p.address]
        assert (made.tokens, made.cols, made.k90) == (8 * LENGTH, p.cols, k)
        assert made.held == pytest.approx(1 - error, abs=1e-4)
        assert made.sink == pytest.approx(share, rel=1e-4)
        rest = rank(np.linalg.svd(w @ np.concatenate([g[module][0][0][1:] for g in halves(given)["seen"]]).T)[1])
        assert made.apart == (rest if share > 0.2 else None)


def rank(sigma: Array) -> int:
    running = np.cumsum(sigma**2)
    return int(np.searchsorted(running, 0.9 * running[-1])) + 1


def test_a_sink_has_its_rank_without_position_0(case: Callable[[str], Case], tmp_path: Path) -> None:
    built = case("llama")
    embedding = built.model.get_input_embeddings()
    before = embedding.weight.data.clone()
    norms = [m for name, m in built.model.named_modules() if name.endswith("norm")]
    kept = [norm.variance_epsilon for norm in norms]
    try:
        for norm in norms:
            norm.variance_epsilon = 1e4  # so that what is large stays large
        embedding.weight.data[2] = 300.0
        started = built._replace(ids=[[2, *ids[1:]] for ids in built.ids])
        collector = Collector(built.model, started.plan()[0])
        collector.run(started.ids, lambda *_: None)
        found = {p.address: made for p, made in figures(built.checkpoint, collector.seen, "cpu")}
        given = given_by_sequence(started)
    finally:
        embedding.weight.data = before
        for norm, epsilon in zip(norms, kept, strict=True):
            norm.variance_epsilon = epsilon
    p = next(p for p in built.tree if p.address == "layers.0.attention.value")
    w = built.matrix(p)
    module = module_of(built, w)
    rest = np.concatenate([g[module][0][0][1:] for g in halves(given)["seen"]])
    made = found[p.address]
    assert made.sink is not None
    assert made.sink > 0.9
    assert made.apart == rank(np.linalg.svd(w @ rest.T, compute_uv=False)) > made.k90 == 1
    write_moments(tmp_path / "m.safetensors", collector.seen, {}, {p.address: made})
    weighting = open_weighting(str(tmp_path / "m.safetensors"), "m", {})
    lines = list(sink_lines(weighting.said([weighted(q, weighting) for q in built.tree]).figures))
    assert lines == [f"{p.address}: sink {100 * made.sink:.0f} %, k90 1, without position 0 {made.apart}"]
    assert Figures(**{name: getattr(made, name) for name in made.__slots__}) == made


def test_a_model_that_does_not_read_text_is_refused_in_a_line(case: Callable[[str], Case]) -> None:
    with pytest.raises(InputError, match="does not run on text: "):
        case("clip").plan()
