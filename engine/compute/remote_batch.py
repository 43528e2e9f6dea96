"""What goes to a worker process and what comes back: names, keys and spectra, never weights or second moments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Protocol

from ..moment import FewNumbers
from ..spectrum import Projection, Spectrum

SOFTWARE = f"rankscope-tui {version('rankscope-tui')}"

SERVICE = "rankscope"
"""The attribute of a Dask worker that holds what solves there."""


class Solves(Protocol):
    """What solves batches in a worker process."""

    def solve(self, batch: Batch) -> BatchResult: ...

    def warm(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Projections of the checkpoints that other processes open by the names `models`; their operands are known by their
    digests and, those of a file of second moments, by its name.

    `software` must be the same on both sides. `command` goes into the record of the run. `is_again`: these are solved a
    second time. `is_last`: no other worker had room for them, and the CPU of this one is what is left.
    """

    models: tuple[str, ...]
    projections: tuple[Projection, ...]
    command: tuple[str, ...] = ()
    is_urgent: bool = False
    is_again: bool = False
    is_last: bool = False
    software: str = SOFTWARE


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Of a batch: spectra, sentences of those that failed by key, lines for the user, and the seconds it took.

    With `refused` the worker could do nothing of it: why it can use these files for no batch.
    """

    spectra: tuple[Spectrum, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    seconds: float = 0.0
    refused: str = ""


def light(projection: Projection) -> Projection:
    """A projection as it travels: its operands without what loads them, which holds their numbers or an open file; but
    few numbers, which nothing there would tell, travel."""
    made = projection.derived
    if made is None or not made.operands:
        return projection
    operands = (o if isinstance(o.load, FewNumbers) else replace(o, load=None) for o in made.operands)
    return replace(projection, derived=replace(made, operands=tuple(operands)))


def as_asked(spectrum: Spectrum, asked: Projection) -> Spectrum:
    """A spectrum that a worker sent, of the projection that was asked for: with what the worker found out of it."""
    made, ours = spectrum.projection.derived, asked.derived
    if made is None or ours is None:
        return replace(spectrum, projection=asked)
    return replace(spectrum, projection=replace(asked, derived=replace(ours, label=made.label)))


def had_no_room(failure: str) -> bool:
    """Whether the sentence of a failure says that memory ran out: on another machine it may not."""
    return "out of memory" in failure.lower() or "MemoryError" in failure


def warm() -> None:
    """Make a worker process ready for its first batch; called there."""
    from distributed import get_worker

    service: Solves | None = getattr(get_worker(), SERVICE, None)
    if service is not None:
        service.warm()


def solve(batch: Batch) -> BatchResult:
    """What a worker process makes of a batch; called there."""
    from distributed import get_worker

    service: Solves | None = getattr(get_worker(), SERVICE, None)
    if service is None:
        return BatchResult(refused="it was not started by  rankscope worker")
    return service.solve(batch)
