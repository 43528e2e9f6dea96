"""What happens to each solved projection, wherever it was solved: saved, queued for a second pass, or failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from ..spectrum import Projection, Spectrum
from .events import AlreadyStored, Computed, Failed, Notice, Saved, SavedAgain, StayBounds
from .job import Job
from .queue import JobQueue
from .reporter import Reporter
from .second_pass import Budget, is_ill_conditioned

_BESIDE_VALUES = 2048
"""How many bytes a spectrum takes in memory in addition to its values."""


class Sink(Protocol):
    """Where spectra go. `put` resolves once the spectrum is safe on disk."""

    def has(self, key: str) -> bool:
        """Return whether a valid spectrum with this content key is saved."""
        ...

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Save a spectrum; the future resolves after fsync, with an OSError if that failed."""
        ...

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called with a line that says why nothing can be saved for now, and with "" once saving works."""
        ...

    def look(self) -> bool:
        """Look for what other processes have saved; return whether any has while this sink was open."""
        ...


class Outcomes:
    """Hands spectra to the sink and reports what became of each projection. Any thread may call.

    `again`: the keys to recompute although they are saved. With `solves_again`, ill-conditioned projections are queued
    to be solved a second time.
    """

    def __init__(self, sink: Sink, queue: JobQueue, reporter: Reporter, solves_again: bool) -> None:
        self.budget = Budget()
        self.again: set[str] = set()
        self._sink, self._queue, self._reporter = sink, queue, reporter
        self._solves_again = solves_again
        self._lock = threading.Lock()
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Report a line to the user, but only once: several workers of a device find the same."""
        with self._lock:
            new = text not in self._noted
            self._noted.add(text)
        if new:
            self._reporter.tell(Notice(text))

    def is_found(self, projection: Projection) -> bool:
        """Return whether another process has saved it since it was submitted."""
        return projection.key not in self.again and self._sink.has(projection.key)

    def look(self, jobs: list[Job]) -> None:
        """Remove from `jobs` what other processes have saved; if there are any, go on in another order than they do."""
        if self._sink.look():
            self._queue.scatter()
        for job in jobs:
            found = [p for p in job.projections if self.is_found(p)]
            job.projections = [p for p in job.projections if p not in found]
            for projection in found:
                self._reporter.tell(AlreadyStored(projection))

    def keep(self, spectrum: Spectrum, job: Job) -> None:
        """Save a spectrum that was solved for a job."""
        projection = spectrum.projection
        self._reporter.tell(Computed(spectrum))
        self.again.discard(projection.key)

        def saved() -> None:
            again = self._solves_again and is_ill_conditioned(spectrum)
            self._reporter.tell(Saved(spectrum, again))
            if again and not self._queue.add_second(job, projection):
                self._reporter.tell(StayBounds((projection,)))

        self._put(spectrum, saved, lambda error: self.fail([projection], _unsaved(error)))

    def keep_again(self, projection: Projection, found: Spectrum | None, cost: float, seconds: float) -> None:
        """Save the result of a second pass that took `seconds`; None if there was none."""
        self.budget.spend(cost, seconds)
        self._reporter.seconds_again = self.budget.spent
        if found is None:
            self._reporter.tell(StayBounds((projection,)))
            return
        self._put(
            found,
            lambda: self._reporter.tell(SavedAgain(found)),
            lambda _error: self._reporter.tell(StayBounds((projection,))),
        )

    def fail(self, projections: Iterable[Projection], reason: str) -> None:
        """Report that these have no spectrum, and why."""
        for projection in projections:
            self._reporter.tell(Failed(projection, reason))

    def _put(self, spectrum: Spectrum, saved: Callable[[], None], unsaved: Callable[[BaseException], None]) -> None:
        """Hand a spectrum to the sink; call `saved` once it is on the disk, `unsaved` if it cannot be saved."""
        size = spectrum.values.nbytes + _BESIDE_VALUES

        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                saved()
            else:
                unsaved(error)
            self._queue.count_unsaved(-size)

        self._queue.count_unsaved(size)
        try:
            future = self._sink.put(spectrum)
        except Exception as error:  # noqa: BLE001 - a sink that refuses must not end the scan
            self._queue.count_unsaved(-size)
            unsaved(error)
        else:
            future.add_done_callback(done)


def _unsaved(error: BaseException) -> str:
    """Why a spectrum cannot be saved, in the same words for all that share the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be saved: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
    return f"cannot be saved: {error}"
