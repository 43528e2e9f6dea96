"""Fakes for tests of the engine: a sink in memory, a listener to wait for, a gate, small checkpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import devices
from rankscope.engine.compute.events import Event, Progress
from rankscope.engine.solvers import batch
from rankscope.engine.solvers.ladder import Rung, choose
from rankscope.engine.spectrum import Projection, Spectrum

PATIENCE = 60.0
"""Seconds after which a wait is a failure; a passing test never waits that long."""

T = TypeVar("T")


class MemorySink:
    """A sink that keeps spectra; with `holding` its futures wait for the test to resolve them.

    `others` are the keys that other processes have saved by the time the engine looks.
    """

    def __init__(self, *, holding: bool = False, error: BaseException | None = None) -> None:
        self.kept: dict[str, Spectrum] = {}
        self.futures: dict[str, Future[None]] = {}
        self.holding = holding
        self.error = error
        self.others: set[str] = set()
        self.tell: Callable[[str], None] = print

    def listen(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def look(self) -> bool:
        return bool(self.others)

    def has(self, key: str) -> bool:
        return key in self.kept or key in self.others

    def put(self, spectrum: Spectrum) -> Future[None]:
        future: Future[None] = Future()
        self.futures[spectrum.projection.address] = future
        self.kept[spectrum.projection.key] = spectrum
        if self.error is not None:
            future.set_exception(self.error)
        elif not self.holding:
            future.set_result(None)
        return future


class Recorder:
    """A listener that keeps every batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[Event, ...]] = []
        self._changed = threading.Condition()

    def __call__(self, batch: tuple[Event, ...]) -> None:
        with self._changed:
            self.batches.append(batch)
            self._changed.notify_all()

    def wait(self, ready: Callable[[Recorder], bool]) -> None:
        """Wait until `ready` is true of the events so far; fail if it never is."""
        with self._changed:
            assert self._changed.wait_for(lambda: ready(self), PATIENCE), f"never came; heard {self.events()}"

    def wait_for_count(self, kind: type[Event], count: int) -> None:
        self.wait(lambda r: len(r.of(kind)) == count)

    def wait_until_idle(self) -> Progress:
        """Wait until the engine says that nothing waits or runs; return that Progress."""
        self.wait(lambda r: bool(r.of(Progress)) and not r.of(Progress)[-1].busy)
        return self.of(Progress)[-1]

    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events() if isinstance(event, kind)]


class Gate:
    """A rung that waits before every matrix until it is opened; then the product's ladder solves."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self._first = choose("cpu")[0]

    def rungs(self, _device: str) -> list[Rung]:
        first = self._first
        return [replace(first, singular_values=self._singular_values), *choose("cpu")[1:]]

    def _singular_values(self, matrix: torch.Tensor, scale: float) -> torch.Tensor:
        self.reached.release()
        assert self._open.acquire(timeout=PATIENCE)
        return self._first.singular_values(matrix, scale)

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE)

    def open(self, matrices: int = 10_000) -> None:
        self._open.release(matrices)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, limit: int = 4, workers: int = 1, faster: bool = True) -> None:
    """Make engines work the CPU as they work a GPU: in batches of `limit`, by the two-stage solver's twins."""
    monkeypatch.setattr(devices, "workers", lambda *_: (workers, 1))
    monkeypatch.setattr(devices, "readers", lambda _found: 4)
    monkeypatch.setattr(devices, "is_gpu", lambda _name: True)
    monkeypatch.setattr(batch, "limits", lambda _device: lambda _side: limit)
    monkeypatch.setattr(batch, "faster_together", lambda _device, _small: faster)


def llama(folder: Path, layers: int, **tensors: torch.Tensor) -> tuple[Checkpoint, list[Projection]]:
    """A checkpoint of query projections, one a layer, 7 x 9; `tensors` replaces or adds some by layer, such as l3."""
    generator = torch.Generator().manual_seed(layers)
    weights = {f"l{i}": torch.randn(7, 9, generator=generator) for i in range(layers)} | tensors
    named = {f"model.layers.{name[1:]}.self_attn.q_proj.weight": tensor for name, tensor in weights.items()}
    return saved(folder, named, {"model_type": "llama"})


def saved(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[Checkpoint, list[Projection]]:
    """The checkpoint of these tensors, saved and opened, and the projections that a scan of it computes."""
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint).scanned()


def addresses(projections: list[Projection] | tuple[Projection, ...]) -> list[str]:
    return [p.address for p in projections]
