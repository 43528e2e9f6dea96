"""The events of an engine. They are frozen, and its listener gets them in batches, at most ten a second."""

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
    """A spectrum is computed but not yet on the disk."""

    spectrum: Spectrum


@dataclass(frozen=True, slots=True)
class Saved:
    """A spectrum is on the disk: done. With `again`, it is ill-conditioned and will be solved a second time."""

    spectrum: Spectrum
    again: bool = False


@dataclass(frozen=True, slots=True)
class SolvingAgain:
    """A device began to solve a projection a second time; its first spectrum is saved."""

    projection: Projection
    device: str


@dataclass(frozen=True, slots=True)
class SavedAgain:
    """The second spectrum of a projection is on the disk and has replaced the first."""

    spectrum: Spectrum


@dataclass(frozen=True, slots=True)
class StayBounds:
    """These will not be solved a second time after all: no time is left, or it gave no result. The first result counts,
    and its smallest values are bounds."""

    projections: tuple[Projection, ...]


@dataclass(frozen=True, slots=True)
class AlreadyStored:
    """Another process has meanwhile computed and saved this projection."""

    projection: Projection


@dataclass(frozen=True, slots=True)
class Failed:
    """A projection could not be computed or saved; `reason` is one sentence."""

    projection: Projection
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """These projections waited and will not be computed."""

    projections: tuple[Projection, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the user, about devices or servers; with `fatal` nothing can be computed."""

    text: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """The second pass over ill-conditioned projections: how many were `found`, `begun` and `solved` (saved anew), and
    the `seconds` that it took, which are in no other number.
    """

    found: int = 0
    begun: int = 0
    solved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The whole job: the number of projections done (saved), failed and in all; `rate` in projections per second.

    `done` includes what other processes have saved meanwhile. `eta` is in seconds, None while unknown: by cost
    (floating-point operations) or by bytes to fetch, whichever is later. `busy` is False once nothing waits or runs.
    `fetched` of `to_fetch` bytes have come from a server. `waiting` is a line that says why nothing can be saved for
    now, "" if it can; what is computed meanwhile is kept. `starting` says what has to be done before anything can be
    solved.
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
