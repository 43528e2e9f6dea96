"""What is sent to a worker process and what it answers: names, keys and spectra, never weights or second moments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Protocol

from ..moment import FewNumbers
from ..spectrum import Projection, Spectrum

SOFTWARE = f"rankscope-tui {version('rankscope-tui')}"

SERVICE = "rankscope"
"""The attribute of a Dask worker that holds its Service."""


class Solves(Protocol):
    """Something that solves batches in a worker process: worker_process.Service."""

    def solve(self, batch: Batch) -> BatchResult: ...

    def warm(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Projections to solve. The worker opens their checkpoints by the names `models`, and finds their operands by
    digest and, if they come from a file of second moments, by its name.

    `software` must be the same on both sides. `command` goes into the record of the run. `is_again`: these are solved a
    second time. `is_last`: no other worker had room for them, so this one solves them on its CPU.
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
    """The answer to a batch: spectra, (key, sentence) of what failed, lines for the user, and the seconds it took.

    `refused` says why the worker could do none of it and can take no batch that needs these files.
    """

    spectra: tuple[Spectrum, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    seconds: float = 0.0
    refused: str = ""


def light(projection: Projection) -> Projection:
    """A projection as it is sent: its operands without their loaders, which hold numbers or an open file. FewNumbers
    are kept, as the other side could get them from nowhere else."""
    made = projection.derived
    if made is None or not made.operands:
        return projection
    operands = (o if isinstance(o.load, FewNumbers) else replace(o, load=None) for o in made.operands)
    return replace(projection, derived=replace(made, operands=tuple(operands)))


def returned_to(projection: Projection, spectrum: Spectrum) -> Spectrum:
    """The spectrum that a worker sent, with `projection` in place of its `light` copy, but the worker's label."""
    made, ours = spectrum.projection.derived, projection.derived
    if made is None or ours is None:
        return replace(spectrum, projection=projection)
    return replace(spectrum, projection=replace(projection, derived=replace(ours, label=made.label)))


def had_no_room(failure: str) -> bool:
    """Return whether the sentence of a failure says that memory ran out; on another machine it may not."""
    return "out of memory" in failure.lower() or "MemoryError" in failure


def warm() -> None:
    """Make a worker process ready for its first batch; runs in that process."""
    from distributed import get_worker

    service: Solves | None = getattr(get_worker(), SERVICE, None)
    if service is not None:
        service.warm()


def solve(batch: Batch) -> BatchResult:
    """Solve a batch; runs in the worker process."""
    from distributed import get_worker

    service: Solves | None = getattr(get_worker(), SERVICE, None)
    if service is None:
        return BatchResult(refused="it was not started by  rankscope worker")
    return service.solve(batch)
