"""One open model: checkpoint, tree, store, engine, and the state of every projection. No widgets."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.experts import sample
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import (
    AlreadyStored,
    Event,
    Failed,
    Listener,
    Progress,
    Saved,
    SavedAgain,
    Started,
    Stopped,
)
from rankscope.engine.derive.gauge import as_stored
from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from .known import Known
from .model import Model

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.store.spectra import Entry

CLOSE_SECONDS = 0.6
"""How long closing waits for the running projection before it is abandoned."""


class State(StrEnum):
    """The state of a projection's computation; the texts are those of the JSON rows."""

    NOT_COMPUTED = "not computed"
    QUEUED = "queued"
    RUNNING = "running"
    STORED = "stored"
    DONE = "done"
    FAILED = "failed"


class Session(Known):
    """The states of one model's projections, their stored spectra, and the engine that computes them.

    `apply` takes the engine's events; the caller decides on which thread, and it must be only one. `experts` is the
    number of experts per layer that are computed, None: all. `others` are further checkpoints that hold parents of
    derived projections.
    """

    def __init__(
        self, model: Model, root: Path, listener: Listener, settings: ComputeSettings, experts: int | None = None
    ) -> None:
        super().__init__(model, root)
        self.experts = experts
        self.others: tuple[Checkpoint, ...] = ()
        self._listener = listener
        self.settings = settings
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()
        self._is_closed = False
        self.progress: Progress | None = None
        self.failures: dict[str, str] = {}
        self.unsaved = 0
        self._states: dict[str, State] = {}

    @property
    def size(self) -> int:
        """Bytes of all weights, 0 if they could not be opened."""
        return self.model.checkpoint.bytes if self.model.checkpoint else 0

    def to_fetch(self, projections: Iterable[Projection]) -> int:
        """Bytes that have to be fetched from a server to compute these."""
        if self.model.checkpoint is None:
            return 0
        needed: dict[str, set[str]] = {}
        for parent in (q for p in projections for q in p.parents):
            needed.setdefault(parent.source.repo, set()).add(parent.tensor)
        return sum(
            held.bytes_to_fetch(needed.get(held.tensors[0].source.repo, ()))
            for held in (self.model.checkpoint, *self.others)
            if held.tensors
        )

    def sampled(self, projections: Iterable[Projection]) -> list[Projection]:
        """The projections among these that are to be computed: possibly only some experts of each layer."""
        return sample(projections, self.experts)

    def state(self, projection: Projection) -> State:
        """The state of a projection."""
        known = self._states.get(projection.key)
        if known is None:
            return State.STORED if projection.key in self._entries else State.NOT_COMPUTED
        return known

    def compute(
        self, projections: Iterable[Projection], *, urgent: bool = False, recompute: bool = False
    ) -> list[Projection]:
        """Hand the engine those that are not stored; return what it accepted.

        Raises:
            InputError: the weights could not be opened.
        """
        if self.model.checkpoint is None:
            raise InputError(f"only what is stored can be shown: {self.model.reason}")
        wanted = map(as_stored, projections)
        accepted = self._own_engine().submit(
            self.model.checkpoint, wanted, others=self.others, urgent=urgent, recompute=recompute
        )
        for projection in accepted:
            self._know_twin(projection)
            self._states[projection.key] = State.QUEUED
            self.failures.pop(projection.key, None)
        return accepted

    def warm(self, projections: Iterable[Projection]) -> None:
        """Prepare a GPU if one of these can be computed and is not: GPUs stay unused for a computed model. Returns at
        once."""
        missing = (p for p in projections if p.problem is None and self.state(p) is State.NOT_COMPUTED)
        if self.model.checkpoint is not None and (first := next(missing, None)) is not None:
            self._own_engine().warm(chain([first], missing))

    def _own_engine(self) -> Engine:
        """The session's engine, made by the first call; after `close` one that starts nothing."""
        with self._engine_lock:
            if self._engine is None:
                self._engine = Engine(self.store, self._listener, self.settings)
                if self._is_closed:
                    self._engine.close()
            return self._engine

    def apply(self, events: Iterable[Event]) -> list[str]:
        """Apply the engine's events to the states; return the keys that changed, in order."""
        from rankscope.store.spectra import entry_of

        changed: list[str] = []
        for event in events:
            match event:
                case Progress():
                    self.progress = event
                    continue
                case Started(projection):
                    self._states[projection.key] = State.RUNNING
                    changed.append(projection.key)
                case Saved(spectrum) | SavedAgain(spectrum):
                    key = spectrum.projection.key
                    self._states[key] = State.DONE
                    self._entries[key] = entry_of(spectrum)
                    self._know_further(spectrum.projection)
                    self.lost.discard(key)
                    self._forget_numbers(key)
                    changed.append(key)
                case AlreadyStored(projection):
                    self._take(projection.key, self.store.entry(projection.key))
                    self._states.pop(projection.key, None)
                    changed.append(projection.key)
                case Failed(projection, reason):
                    self._states[projection.key] = State.FAILED
                    self.failures[projection.key] = reason
                    changed.append(projection.key)
                case Stopped(projections):
                    for projection in projections:
                        self._states.pop(projection.key, None)
                        changed.append(projection.key)
        return list(dict.fromkeys(changed))

    def take(self, found: Mapping[str, Entry | None]) -> set[str]:
        """Apply the result of `look`; return the keys whose stored spectrum has changed."""
        return {key for key, entry in found.items() if self._take(key, entry)}

    def _take(self, key: str, entry: Entry | None) -> bool:
        """Apply what another process has left for a key; return whether that is a change."""
        held = self._entry(key)
        self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
            self._know_further(entry.projection)
            self.lost.discard(key)
        if entry is held or (entry and held and (entry.computed_at, entry.run) == (held.computed_at, held.run)):
            return False
        self._forget_numbers(key)
        if self._states.get(key) in (State.DONE, State.FAILED):
            del self._states[key]
            self.failures.pop(key, None)
        return True

    def _lose(self, keys: set[str]) -> None:
        super()._lose(keys)
        for key in keys:
            self._states.pop(key, None)

    def stop(self) -> None:
        """Drop what waits; what runs is finished and saved."""
        if self._engine is not None:
            self._engine.stop()

    def pause(self, is_paused: bool) -> None:
        """Suspend the worker processes of this session, or resume them."""
        if self._engine is not None:
            self._engine.pause(is_paused)

    def close(self, timeout: float | None = None) -> bool:
        """Stop the engine and save what is finished; True if no thread is left running. Afterwards `unsaved` is the
        number of computed spectra that found no room on a full disk."""
        with self._engine_lock:  # another thread may be making the engine
            self._is_closed, engine = True, self._engine
        ended = engine is None or engine.close(timeout)
        if self._store is not None:
            self.unsaved = self._store.close()
        return ended
