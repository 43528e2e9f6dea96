"""Derived matrices: their keys, what is read for them and how often, their spectra by LAPACK, and their failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from derived_examples import FORMULAS, stacked, weighted
from engine_fakes import PATIENCE, MemorySink, Recorder, saved
from lapack_reference import lapack

from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine, _tensors_in
from rankscope.engine.compute.events import Failed
from rankscope.engine.compute.job import Job
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.derive import formulas
from rankscope.engine.derive.derived import derive
from rankscope.engine.derive.flip import flipped
from rankscope.engine.errors import WeightsError
from rankscope.engine.formats.safetensors import SAFETENSORS as safetensors  # noqa: N811
from rankscope.engine.spectrum import FLIPPED, Derived, Projection

KEYS = "model.layers.{}.self_attn.k_proj.weight"
VALUES = "model.layers.{}.self_attn.v_proj.weight"


def matrix(rows: int, cols: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, formula in FORMULAS.items():
        monkeypatch.setitem(formulas.FORMULAS, name, formula)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def engine(sink: MemorySink, heard: Recorder) -> Iterator[Engine]:
    made = Engine(sink, heard, ComputeSettings(device="cpu"))
    yield made
    made.close(PATIENCE)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file and tensor of every read, in order."""
    found: list[str] = []
    original = safetensors.read_matrix

    def reading(tensor: Any, *args: Any) -> Any:
        found.append(f"{tensor.file.parent.name}/{tensor.name}")
        return original(tensor, *args)

    monkeypatch.setattr(safetensors, "read_matrix", reading)
    return found


Pair = tuple[Checkpoint, list[Projection], list[Projection]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Three layers of key (3 x 9) and value (4 x 9) projections, each in a separate tensor."""
    tensors = {KEYS.format(n): matrix(3, 9, n) for n in range(3)} | {
        VALUES.format(n): matrix(4, 9, 9 + n) for n in range(3)
    }
    (tmp_path / "a").mkdir()
    checkpoint, found = saved(tmp_path / "a", tensors, {"model_type": "llama"})
    return checkpoint, [p for p in found if p.role == "key"], [p for p in found if p.role == "value"]


def assert_lapacks(sink: MemorySink, projection: Projection, wanted: Any) -> None:
    spectrum, sigma = sink.kept[projection.key], lapack(wanted)
    assert abs(spectrum.values - sigma).max() <= 1e-10 * sigma[0]
    assert spectrum.values.shape == (min(wanted.shape),)
    assert spectrum.projection == projection


def framed(*parts: object) -> str:
    """128 bits of blake2b over the parts, each after its length in 8 bytes: a key, composed by hand."""
    joined = b"".join(len(str(part).encode()).to_bytes(8, "little") + str(part).encode() for part in parts)
    return blake2b(joined, digest_size=16).hexdigest()


def test_a_key_holds_parents_formula_version_and_operands_in_order(pair: Pair) -> None:
    _, (key, *_), (value, *_) = pair
    assert stacked(key, value).key == framed(key.key, value.key, "stack", 3)
    numbers = np.arange(9.0)
    operand = blake2b(numbers.tobytes(), digest_size=16).hexdigest()
    assert weighted(key, numbers, "x").key == framed(key.key, "scale columns", 1, operand)
    assert weighted(key, numbers, "x").key == weighted(key, numbers, "the same numbers by another name").key
    others = [
        weighted(key, numbers + 1, "x"),
        stacked(value, key),
        derive(key, Derived("stack", 4, "", is_further=True, parents=(key, value))),
        derive(key, Derived("product", 3, "", is_further=True, parents=(key, value))),
        flipped(key),
    ]
    assert len({p.key for p in (key, value, stacked(key, value), weighted(key, numbers, "x"), *others)}) == 9


def test_what_counts_depends_on_the_state_that_is_chosen(pair: Pair) -> None:
    _, (key, *_), (value, *_) = pair
    fixed = derive(key, Derived("fold", 1, "folded", is_further=False, parents=(key,), gauge="fixed"))
    stack_of_weighted = derive(key, Derived("stack", 3, "", is_further=True, parents=(key, value), weighting="x"))
    shown = {
        "plain": key,
        "weighted": weighted(key, np.ones(9), "x"),
        "fixed": fixed,
        "twin": flipped(key),
        "stack": stacked(key, value),
        "weighted stack": stack_of_weighted,
    }

    def counted(*state: str) -> list[str]:
        return [name for name, projection in shown.items() if projection.counts(*state)]

    assert counted() == ["plain"]
    assert counted("x") == ["weighted"]
    assert counted("", "fixed") == ["fixed"]
    assert counted("x", "fixed") == counted("y") == []


def test_labels_and_parents(pair: Pair) -> None:
    _, (key, *_), (value, *_) = pair
    assert (key.label, key.parents, key.null) == ("layers.0.attention.key", (key,), "")
    twin = flipped(key)
    assert (twin.label, twin.parents, twin.null) == ("layers.0.attention.key with random signs", (twin,), "flip")
    both = stacked(key, value)
    assert (both.label, both.parents, both.null) == ("layers.0.attention.key_value [K; V]", (key, value), "")


def test_a_stack_of_two_checkpoints_is_lapacks(
    tmp_path: Path, engine: Engine, sink: MemorySink, heard: Recorder, reads: list[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    fused, values = matrix(6, 18, 1), matrix(5, 6, 2).to(torch.bfloat16)  # GPT-2 stores (input, output): q | k | v
    first, (_, key, _) = saved(tmp_path / "a", {"h.0.attn.c_attn.weight": fused}, {"model_type": "gpt2"})
    second, (value,) = saved(tmp_path / "b", {VALUES.format(0): values}, {"model_type": "llama"})
    both = stacked(key, value)
    assert (key.transposed, both.transposed, both.rows, both.cols) == (True, False, 11, 6)
    assert engine.submit(first, [both], others=[second]) == [both]
    assert heard.wait_until_idle().done == 1
    assert_lapacks(sink, both, np.vstack([fused[:, 6:12].double().numpy().T, values.double().numpy()]))
    assert reads == ["a/h.0.attn.c_attn.weight", f"b/{VALUES.format(0)}"]
    assert _tensors_in(first, [both]) == {"h.0.attn.c_attn.weight"}
    assert _tensors_in(second, [both, value]) == {VALUES.format(0)}
    digests = tuple(opened.read(opened.tensors[0])[1] for opened in (first, second))
    assert sink.kept[both.key].weights_digests == digests
    assert all(digests)
    assert engine.submit(first, [both], others=[second]) == []


def test_equal_names_in_two_checkpoints_are_two_tensors(
    tmp_path: Path, engine: Engine, sink: MemorySink, heard: Recorder
) -> None:
    opened = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        opened.append(saved(tmp_path / name, {KEYS.format(0): matrix(3, 7, ord(name))}, {"model_type": "llama"}))
    (first, (one,)), (second, (other,)) = opened
    both = stacked(one, other)
    engine.submit(first, [one, both], others=[second])
    assert heard.wait_until_idle().done == 2
    assert_lapacks(sink, one, matrix(3, 7, ord("a")))
    assert_lapacks(sink, both, torch.vstack([matrix(3, 7, ord("a")), matrix(3, 7, ord("b"))]))


def test_each_tensor_is_read_once_for_all_that_needs_it(
    pair: Pair, engine: Engine, sink: MemorySink, heard: Recorder, reads: list[str]
) -> None:
    checkpoint, keys, values = pair
    numbers = np.linspace(0.5, 3.0, 9)
    stacks = [stacked(k, v) for k, v in zip(keys, values, strict=True)]
    heavy = [weighted(k, numbers, "x") for k in keys]
    everything = [*keys, *stacks, *map(flipped, keys), *heavy, *values]
    assert engine.submit(checkpoint, everything) == everything
    last = heard.wait_until_idle()
    assert (last.done, last.total) == (15, 15)
    assert sorted(reads) == sorted(f"a/{name.format(n)}" for n in range(3) for name in (KEYS, VALUES))
    for n in range(3):
        assert_lapacks(sink, keys[n], matrix(3, 9, n))
        assert_lapacks(sink, values[n], matrix(4, 9, 9 + n))
        assert_lapacks(sink, stacks[n], torch.vstack([matrix(3, 9, n), matrix(4, 9, 9 + n)]))
        assert_lapacks(sink, heavy[n], matrix(3, 9, n).double().numpy() * numbers)
        assert sink.kept[heavy[n].key].weights_digests == sink.kept[keys[n].key].weights_digests


def spoil(pair: Pair, name: str) -> Checkpoint:
    """The checkpoint with a tensor that reaches beyond the end of its file."""
    checkpoint = pair[0]
    tensors = [
        t._replace(begin=t.begin + 10**6, end=t.end + 10**6) if t.name == name else t for t in checkpoint.tensors
    ]
    return replace(checkpoint, tensors=tuple(tensors))


def test_a_parent_that_cannot_be_read_fails_what_needs_it_and_is_named(
    pair: Pair, engine: Engine, sink: MemorySink, heard: Recorder
) -> None:
    _, keys, values = pair
    checkpoint = spoil(pair, VALUES.format(1))
    both = [stacked(k, v) for k, v in zip(keys, values, strict=True)]
    engine.submit(checkpoint, [*keys, *both, *values])
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (7, 2)
    failed = {f.projection.label: f.reason for f in heard.of(Failed)}
    reason = failed["layers.1.attention.value"]
    assert failed == {
        "layers.1.attention.value": reason,
        "layers.1.attention.key_value [K; V]": f"layers.1.attention.value: {reason}",
    }
    assert keys[1].key in sink.kept
    assert engine.submit(checkpoint, [both[1]], urgent=True) == [both[1]]  # on a second try it fails again, alone
    heard.wait_for_count(Failed, 3)
    assert heard.of(Failed)[2].reason == f"layers.1.attention.value: {reason}"


def test_a_parent_that_has_no_spectrum_is_named_before_anything_is_read(
    pair: Pair, engine: Engine, heard: Recorder, reads: list[str]
) -> None:
    checkpoint, (key, *_), (value, *_) = pair
    both = stacked(key, replace(value, problem="packed integers have no spectrum"))
    assert both.problem == "layers.0.attention.value: packed integers have no spectrum"
    assert engine.submit(checkpoint, [both]) == []
    heard.wait_for_count(Failed, 1)
    assert heard.of(Failed)[0].reason == both.problem
    assert reads == []


def test_a_formula_that_has_no_matrix_fails_alone(
    pair: Pair, engine: Engine, sink: MemorySink, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise WeightsError("the moments are of another width")

    monkeypatch.setitem(formulas.FORMULAS, "stack", refuse)
    checkpoint, (key, *_), (value, *_) = pair
    engine.submit(checkpoint, [key, stacked(key, value)])
    assert heard.wait_until_idle().failed == 1
    assert [f.reason for f in heard.of(Failed)] == ["the moments are of another width"]
    assert list(sink.kept) == [key.key]


def read(queue: JobQueue) -> Job:
    job = queue.next_to_read()
    assert job is not None
    return job


def named(job: Job) -> tuple[list[str], list[str]]:
    """The results that a job is to compute, and the tensors that it will read."""
    return [p.label for p in job.projections], [part.tensor.name for part in job.parts]


def test_tensors_that_a_stack_joins_are_one_job_and_the_rest_keeps_its_order(pair: Pair) -> None:
    checkpoint, keys, values = pair
    queue = JobQueue({"cpu": 10**9})
    wanted = [keys[1], values[0], values[2], stacked(keys[0], values[0]), keys[0], stacked(values[1], keys[1])]
    assert queue.add(checkpoint, wanted, urgent=False) == wanted
    jobs = [read(queue) for _ in range(3)]
    assert [named(job) for job in jobs] == [
        (["layers.1.attention.key", "layers.1.attention.value [K; V]"], [VALUES.format(1), KEYS.format(1)]),
        (
            ["layers.0.attention.value", "layers.0.attention.key_value [K; V]", "layers.0.attention.key"],
            [KEYS.format(0), VALUES.format(0)],
        ),
        (["layers.2.attention.value"], [VALUES.format(2)]),
    ]
    assert {part.device for job in jobs for part in job.parts} == {"cpu"}


def test_groups_that_one_more_stack_joins_become_one(pair: Pair) -> None:
    checkpoint, keys, values = pair
    queue = JobQueue({"cpu": 10**9})
    wanted = [stacked(keys[0], values[0]), stacked(keys[1], values[1]), stacked(values[1], values[0]), keys[2]]
    queue.add(checkpoint, wanted, urgent=False)
    jobs = [read(queue), read(queue)]
    assert sorted(len(job.projections) for job in jobs) == [1, 3]
    (large,) = [job for job in jobs if len(job.projections) == 3]
    assert {part.tensor.name for part in large.parts} == {name.format(n) for n in (0, 1) for name in (KEYS, VALUES)}


def test_an_urgent_stack_takes_its_tensors_and_leaves_the_others(pair: Pair) -> None:
    checkpoint, (key, *_), (value, *_) = pair
    both = stacked(key, value)
    queue = JobQueue({"cpu": 10**9})
    queue.add(checkpoint, [key, value, both], urgent=False)
    assert queue.add(checkpoint, [key, both], urgent=True) == []
    first, second = read(queue), read(queue)
    assert named(first) == ([key.address, both.label], [KEYS.format(0), VALUES.format(0)])
    assert named(second) == ([value.address], [VALUES.format(0)])  # the key's tensor is not read a second time


def test_a_job_takes_the_room_of_all_its_parents(pair: Pair) -> None:
    checkpoint, (key, other, _), (value, *_) = pair
    sizes = 4 * 3 * 9, 4 * 4 * 9
    queue = JobQueue({"cpu": sum(sizes) + sizes[0] - 1})
    queue.add(checkpoint, [stacked(key, value)], urgent=False)
    queue.add(checkpoint, [other], urgent=False)
    job = read(queue)
    assert job.room_on("cpu") == sum(sizes)
    assert not queue._can_read("cpu")  # one byte is missing
    queue.loaded(job, "weights", "digest")
    job.beside[0].weights = "more weights"
    assert queue.next_batch("cpu", lambda _side: 1) == [job]
    queue.solved(job)
    assert (job.weights, job.beside[0].weights) == (None, None)
    assert queue._can_read("cpu")


def test_a_job_that_is_withdrawn_while_it_is_read_lets_all_its_weights_go(pair: Pair) -> None:
    checkpoint, (key, *_), (value, *_) = pair
    both = stacked(key, value)
    queue = JobQueue({"cpu": 10**9})
    queue.add(checkpoint, [both], urgent=False)
    job = read(queue)
    job.beside[0].weights = "read already"
    assert queue.clear() == [both]
    assert job.withdrawn.is_set()
    assert queue.drop_faulty(job) == []
    queue.loaded(job, "weights", "digest")
    assert (job.weights, job.beside[0].weights) == (None, None)
    assert not queue.holds(both.key)


def test_a_parent_that_nobody_has_opened_is_an_error(pair: Pair) -> None:
    checkpoint, (key, *_), (value, *_) = pair
    elsewhere = replace(value, source=replace(value.source, identity="of another file"))
    with pytest.raises(KeyError, match="of another file"):
        JobQueue().add(checkpoint, [stacked(key, elsewhere)], urgent=False)


def test_a_twin_is_a_row_of_the_table(pair: Pair) -> None:
    _, (key, *_), _ = pair
    assert flipped(key).derived is FLIPPED
    assert Derived("flip", 1, "with random signs", is_further=True) == FLIPPED
    assert flipped(replace(key, transposed=True, problem="p")).transposed  # signs follow the matrix as it is stored
    assert flipped(replace(key, problem="p")).problem == "p"
