"""Helpers for tests of remote models: a small Llama as the files of a repo, a clock, and a scan in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import save

from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Event, Failed, Progress
from rankscope.engine.formats.safetensors import INDEX
from rankscope.engine.spectrum import Projection, Spectrum

NAME = "org/tiny"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PATIENCE = 60.0
END = 4000
"""The size of the first request for either end of a PyTorch file, in tests."""
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96,
}  # fmt: skip


def tensors(layer: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(layer)
    return {
        f"model.layers.{layer}.{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


FIRST, SECOND = tensors(0), tensors(1)
WEIGHT_MAP = dict.fromkeys(FIRST, SHARD_1) | dict.fromkeys(SECOND, SHARD_2)
SHARDED = {
    "config.json": json.dumps(CONFIG).encode(),
    INDEX: json.dumps({"metadata": {}, "weight_map": WEIGHT_MAP}).encode(),
    SHARD_1: save(FIRST),
    SHARD_2: save(SECOND),
}
ONE_FILE = {"config.json": SHARDED["config.json"], "model.safetensors": save(FIRST | SECOND)}
QUERY = "model.layers.0.self_attn.q_proj.weight"


def read(checkpoint: Checkpoint, name: str = QUERY) -> np.ndarray:
    """One tensor's weights."""
    found: np.ndarray = np.asarray(checkpoint.read(next(t for t in checkpoint.tensors if t.name == name))[0])
    return found


@dataclass
class Clock:
    """Time that passes only by waiting; `waits` are the seconds of each wait."""

    now: float = 1000.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def pause(self, _: threading.Event, seconds: float) -> None:
        self.waits.append(round(seconds, 3))
        self.now += seconds


class Sink:
    """Keeps spectra by content key."""

    def __init__(self) -> None:
        self.kept: dict[str, Spectrum] = {}

    def has(self, key: str) -> bool:
        return key in self.kept

    def listen(self, tell: Callable[[str], None]) -> None:
        """Ignore the reports: this sink's disk is never full."""

    def look(self) -> bool:
        return False

    def put(self, spectrum: Spectrum) -> Future[None]:
        self.kept[spectrum.projection.key] = spectrum
        done: Future[None] = Future()
        done.set_result(None)
        return done


@dataclass
class Scan:
    """A finished scan: what it saved, what failed, and all its events."""

    sink: Sink
    accepted: list[Projection]
    failed: dict[str, str]
    events: list[Event]

    @property
    def progress(self) -> Progress:
        return [event for event in self.events if isinstance(event, Progress)][-1]


def scan(checkpoint: Checkpoint, projections: Sequence[Projection], sink: Sink | None = None) -> Scan:
    sink = sink or Sink()
    events: list[Event] = []
    ended = threading.Event()

    def listen(batch: tuple[Event, ...]) -> None:
        events.extend(batch)
        if any(isinstance(event, Progress) and not event.busy for event in batch):
            ended.set()

    engine = Engine(sink, listen, ComputeSettings("cpu", 1))
    accepted = engine.submit(checkpoint, projections)
    assert not accepted or ended.wait(PATIENCE)
    engine.close()
    return Scan(sink, accepted, dict(_failures(events)), events)


def _failures(events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    for event in events:
        if isinstance(event, Failed):
            yield event.projection.address, event.reason
