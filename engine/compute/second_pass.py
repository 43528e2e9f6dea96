"""What is solved a second time: spectra whose smallest values the first solver only knew to be small, and how long."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from .. import bounds
from ..spectrum import Spectrum
from . import devices

SHARE = 0.1
"""Of the seconds that a scan solves on a device, how many may go into solving again."""


def is_ill_conditioned(spectrum: Spectrum) -> bool:
    """Whether a GPU's Gram matrix left its smallest value, and so rank and condition number, as a bound that the SVD
    can replace. On a CPU the ladder has gone on to the SVD at once. Not so under second moments that are not diagonal:
    their own errors make it one."""
    if spectrum.projection.is_directions:
        return False
    made, values, derived = spectrum.provenance, spectrum.values, spectrum.projection.derived
    if derived is not None and derived.weighting and not derived.formula.endswith("diagonal"):
        return False
    is_bound = float(values[0]) > 0 and float(values[-1]) <= made.noise_floor
    return is_bound and made.solver != bounds.SVD and devices.is_gpu(made.device)


class Budget:
    """The seconds of a scan: what its batches took, and what may still go into solving again. Thread-safe.

    At most SHARE of what the busiest device took, by what those before took for their size; but always one matrix.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: defaultdict[str, int] = defaultdict(int)
        self._since: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Another scan begins. The last batch of the one before may have been told of and not have left `scanning`."""
        with self._lock:
            self._taken: defaultdict[str, float] = defaultdict(float)
            self._since = dict.fromkeys(self._since, time.monotonic())
            self._begun = 0
            self._spent = self._cost = 0.0

    @property
    def spent(self) -> float:
        """Seconds that went into solving again."""
        with self._lock:
            return self._spent

    @contextmanager
    def scanning(self, device: str) -> Iterator[None]:
        """While a thread solves a batch on a device; of threads that do so at once the time counts once."""
        with self._lock:
            self._since[device] = self._since[device] if self._running[device] else time.monotonic()
            self._running[device] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[device] -= 1
                if not self._running[device]:
                    self._taken[device] += time.monotonic() - self._since[device]

    def took(self, device: str, seconds: float) -> None:
        """A batch took so many seconds of a device in another process."""
        with self._lock:
            self._taken[device] += seconds

    def take(self, cost: float) -> bool:
        """Whether there is time to solve a matrix of this Projection.cost again; for the first there always is."""
        with self._lock:
            expected = cost * self._spent / self._cost if self._cost else 0.0
            if self._begun and self._spent + expected > SHARE * max(self._taken.values(), default=0.0):
                return False
            self._begun += 1
            return True

    def spend(self, cost: float, seconds: float) -> None:
        """A matrix of this cost was solved again, or could not be, in so many seconds."""
        with self._lock:
            self._spent += seconds
            self._cost += cost
