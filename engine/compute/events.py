"""What the engine tells: frozen events, handed over in batches, at most ten a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..spectrum import Projection, Spectrum


@dataclass(frozen=True, slots=True)
class Started:
    """A device began to solve a projection."""

    projection: Projection
    device: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A spectrum is known, and not yet safe."""

    spectrum: Spectrum


@dataclass(frozen=True, slots=True)
class Saved:
    """A spectrum is on the disk: done. With `again` it is ill-conditioned, and will be solved a second time."""

    spectrum: Spectrum
    again: bool = False


@dataclass(frozen=True, slots=True)
class SolvingAgain:
    """A device began to solve a projection a second time, whose spectrum is saved."""

    projection: Projection
    device: str


@dataclass(frozen=True, slots=True)
class SavedAgain:
    """The result of the second time is on the disk: it has replaced the first."""

    spectrum: Spectrum


@dataclass(frozen=True, slots=True)
class StayBounds:
    """These were to be solved a second time and are not: there is no time left, or no result. The first result counts,
    whose smallest values are bounds."""

    projections: tuple[Projection, ...]


@dataclass(frozen=True, slots=True)
class AlreadyStored:
    """A spectrum that was asked for is on the disk: another process has computed it meanwhile."""

    projection: Projection


@dataclass(frozen=True, slots=True)
class Failed:
    """A projection has no spectrum; `reason` is one sentence."""

    projection: Projection
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """These were waiting and will not be computed."""

    projections: tuple[Projection, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the user about the devices; with `fatal` nothing can be computed."""

    text: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Of the projections that are done: `found` were ill-conditioned, the solving of `begun` of them has begun a second
    time, and `solved` are saved anew. `seconds` went into that, and are in no other number.
    """

    found: int = 0
    begun: int = 0
    solved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The job as a whole: projections done (saved), failed and in all; `rate` in projections per second.

    `eta` is in seconds, by cost (floating-point operations) or by bytes to fetch, whichever is later, None while
    unknown. What other processes have saved meanwhile is done, too. `busy` is False once nothing waits or runs. Of
    `to_fetch` bytes from a server `fetched` have come. `waiting` is the line that says why nothing can be saved for
    now, "" where it can: what is computed is kept. `starting` is what is done before anything can be solved.
    """

    done: int
    failed: int
    total: int
    rate: float
    eta: float | None
    devices: tuple[str, ...]
    busy: bool
    fetched: int = 0
    to_fetch: int = 0
    waiting: str = ""
    again: Again = Again()
    starting: str = ""


Event: TypeAlias = (
    Started
    | Computed
    | Saved
    | AlreadyStored
    | Failed
    | Stopped
    | SolvingAgain
    | SavedAgain
    | StayBounds
    | Notice
    | Progress
)
Listener: TypeAlias = Callable[[tuple[Event, ...]], None]
