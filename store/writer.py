"""The one thread that writes: everything that is pending goes into the next file."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from rankscope.engine.spectrum import Spectrum

from .layout import version_of

BATCH = 64
"""Spectra a file at most: 0.24 ms each in batches of 64, 3.2 ms alone; a slow disk makes larger batches."""

_Pending = tuple[Spectrum, "Future[None]"]


class Writer:
    """Calls `save` with up to BATCH spectra of one format version, on a thread that the first `put` starts."""

    def __init__(self, save: Callable[[list[Spectrum]], None]) -> None:
        self._save = save
        self._pending: deque[_Pending] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Have `save` called with this spectrum; the future is done when it has returned.

        Raises:
            RuntimeError: the writer is closed.
        """
        future: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the store is closed")
            self._pending.append((spectrum, future))
            if self._thread is None:
                # A daemon: a program that ends without close() must not hang on this thread.
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what is pending and end the thread; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while taken := self._take():
            batches: dict[int, list[_Pending]] = {}
            for item in taken:
                batches.setdefault(version_of(item[0].projection), []).append(item)
            for batch in batches.values():
                self._write(batch)

    def _write(self, batch: list[_Pending]) -> None:
        try:
            self._save([spectrum for spectrum, _ in batch])
        except Exception as error:  # noqa: BLE001 - told to whoever waits for it; the next batch goes on
            for _, future in batch:
                future.set_exception(error)
        else:
            for _, future in batch:
                future.set_result(None)

    def _take(self) -> list[_Pending]:
        """Wait for work; empty only when closed and finished."""
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                taken = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            batch = [item for item in taken if item[1].set_running_or_notify_cancel()]
            if batch or not taken:
                return batch
