"""The second pass: which spectra are solved again for the sake of their smallest values, and how long that may take."""

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
"""The second pass may take this share of the seconds that a scan solves on a device."""


def is_ill_conditioned(spectrum: Spectrum) -> bool:
    """Return whether a GPU's Gram matrix gives only a bound for the smallest value, and so for rank and condition
    number, that the SVD can replace by a value. On a CPU the ladder has gone on to the SVD at once. Under second
    moments that are not diagonal it is always False: there the errors of the moments make it a bound."""
    if spectrum.projection.is_directions:
        return False
    made, values, derived = spectrum.provenance, spectrum.values, spectrum.projection.derived
    if derived is not None and derived.weighting and not derived.formula.endswith("diagonal"):
        return False
    is_bound = float(values[0]) > 0 and float(values[-1]) <= made.noise_floor
    return is_bound and made.solver != bounds.SVD and devices.is_gpu(made.device)


class Budget:
    """The seconds that the batches of a scan took, and how many the second pass may still take. Thread-safe.

    The second pass may take SHARE of the busiest device's seconds, but always solves one matrix. How long a matrix will
    take is estimated from those before it, by cost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: defaultdict[str, int] = defaultdict(int)
        self._since: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Begin another scan. The last batch of the previous one may still be inside `scanning`."""
        with self._lock:
            self._taken: defaultdict[str, float] = defaultdict(float)
            self._since = dict.fromkeys(self._since, time.monotonic())
            self._begun = 0
            self._spent = self._cost = 0.0

    @property
    def spent(self) -> float:
        """Seconds that the second pass has taken."""
        with self._lock:
            return self._spent

    @contextmanager
    def scanning(self, device: str) -> Iterator[None]:
        """Count the time in which a thread solves a batch on a device; if several do at once, it counts once."""
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
        """Count a batch that took `seconds` on a device of another process."""
        with self._lock:
            self._taken[device] += seconds

    def take(self, cost: float) -> bool:
        """Begin solving a matrix of this Projection.cost again if there is time, as there always is for the first;
        return whether there is."""
        with self._lock:
            expected = cost * self._spent / self._cost if self._cost else 0.0
            if self._begun and self._spent + expected > SHARE * max(self._taken.values(), default=0.0):
                return False
            self._begun += 1
            return True

    def spend(self, cost: float, seconds: float) -> None:
        """Count a matrix of this cost that was solved again, or could not be, in `seconds`."""
        with self._lock:
            self._spent += seconds
            self._cost += cost
