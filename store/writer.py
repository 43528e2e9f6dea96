"""The one thread that writes: everything that is pending goes into the next file."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

from rankscope.engine.spectrum import Spectrum

from .layout import version_of
from .room import is_full

BATCH = 64
"""Maximal number of spectra in a segment: 0.24 ms each in batches of 64, 3.2 ms one by one. A slow disk leads to larger
batches."""
RETRY_SECONDS = 1.0
"""Seconds between two attempts to write to a full disk."""

_Pending: TypeAlias = tuple[Spectrum, "Future[None]"]


class Writer:
    """Calls `save` with up to BATCH spectra of one format version, on a thread that the first `put` starts.

    If `save` finds the disk full, it is called with fewer spectra, and if not even one fits, again every RETRY_SECONDS:
    until then everything stays pending. `on_full` is called before each such pause with the pending spectra, and with
    none once there is room again.
    """

    def __init__(self, save: Callable[[list[Spectrum]], None], on_full: Callable[[list[Spectrum]], None]) -> None:
        self._save = save
        self._on_full = on_full
        self._pending: dict[int, deque[_Pending]] = {}  # by format version: a file holds one
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lost = 0

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Queue a spectrum for `save`; the future is done when `save` has returned.

        Raises:
            RuntimeError: the writer is closed.
        """
        future: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the store is closed")
            self._queue(spectrum).append((spectrum, future))
            if self._thread is None:
                # A daemon: a program that ends without close() must not hang on this thread.
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def close(self) -> int:
        """Finish what is pending and end the thread; may be called again.

        Returns the number of spectra that found no room on a full disk: their futures hold the error.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        return self._lost

    def _queue(self, spectrum: Spectrum) -> deque[_Pending]:
        return self._pending.setdefault(version_of(spectrum.projection), deque())

    def _run(self) -> None:
        most, is_waiting = BATCH, False
        while batch := self._take(most):
            full = self._write(batch)
            if full is None:
                most = BATCH
                if is_waiting:
                    is_waiting = False
                    self._on_full([])
                continue
            with self._changed:
                self._queue(batch[0][0]).extendleft(reversed(batch))
            most = max(1, len(batch) // 2)
            if len(batch) == 1:
                is_waiting = True
                self._wait(full)

    def _write(self, batch: list[_Pending]) -> Exception | None:
        """Save a batch; return the error if the disk is full and the batch is still to be saved."""
        try:
            self._save([spectrum for spectrum, _ in batch])
        except Exception as error:  # noqa: BLE001 - the futures hold it; the next batch goes on
            if is_full(error):
                return error
            for _, future in batch:
                future.set_exception(error)
        else:
            for _, future in batch:
                future.set_result(None)
        return None

    def _wait(self, full: Exception) -> None:
        """Wait until the next attempt to write to a full disk; once closed, give up what is pending."""
        with self._changed:
            closed, pending = self._closed, [item for queue in self._pending.values() for item in queue]
            if closed:
                self._pending.clear()
        if closed:
            lost = [future for _, future in pending if _is_wanted(future)]
            self._lost = len(lost)
            for future in lost:
                future.set_exception(full)
            return
        self._on_full([spectrum for spectrum, _ in pending])
        with self._changed:
            self._changed.wait_for(lambda: self._closed, RETRY_SECONDS)

    def _take(self, most: int) -> list[_Pending]:
        """Wait for work: at most `most` spectra of one format version; empty only when closed and finished."""
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if not self._pending:
                    return []
                version = next(iter(self._pending))
                queue = self._pending.pop(version)
                taken = [queue.popleft() for _ in range(min(most, len(queue)))]
                if queue:
                    self._pending[version] = queue  # behind the other versions
            if batch := [item for item in taken if _is_wanted(item[1])]:
                return batch


def _is_wanted(future: Future[None]) -> bool:
    """Whether the future was not cancelled; one that comes back from a full disk is already running."""
    return future.running() or future.set_running_or_notify_cancel()
