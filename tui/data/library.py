"""RankScope as a library, for notebooks and scripts: open a model, compute its spectra, get them as numpy arrays.

    from rankscope.tui.data.library import open_model

docs/LIBRARY.md shows all of it. Nothing of a terminal is imported. The commands, the explorer and the library share one
store, so each finds what another has computed.
"""

from __future__ import annotations

import queue
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankscope.engine.atomic import is_writable
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.devices import check_spec
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event, Notice, Progress
from rankscope.engine.derive.gauge import FIXED
from rankscope.engine.derive.weighting import is_weighted, noise_of
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection, Spectrum, Values
from rankscope.store.entry import spectrum_of
from rankscope.store.folders import default_root

from . import model as models
from . import records, table_rows
from .chosen_weighting import NONE, choose, in_state, weighted_by
from .gauged_model import RAW
from .html_heatmap import HtmlHeatmap, heatmap_of
from .lens import Lens
from .measures import BY_NAME
from .pair import Pair
from .session import CLOSE_SECONDS, Session, State

_SECONDS = 5.0
"""Seconds to wait for messages of the engine, if there may be any."""
Told = Callable[[Progress], object]
"""Called with the progress of a scan a few times a second, in the calling thread: `done`, `failed`, `total`, `eta`
..."""


def open_model(
    name: str | Path,
    *,
    store: str | Path | None = None,
    weight: str | Path = NONE,
    gauge: str = RAW,
    experts: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    download: bool = False,
) -> OpenModel:
    """Open a model by any name that `rankscope scan` takes; only headers are read. If its weights are gone, its stored
    spectra are opened.

    `store`, `weight`, `gauge`, `experts`, `device`, `threads` and `download` are the options of the command line. What
    a user should know about the model is reported by Python's `warnings`.

    Raises:
        InputError: there is no such model, weighting, gauge or device; the message is one line.
    """
    if gauge not in (RAW, FIXED):
        raise InputError(f"gauge is {RAW} or {FIXED}, not {printable(repr(gauge))}")
    for what, count in (("experts", experts), ("threads", threads)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise InputError(f"{what} must be a whole number above 0, not {printable(repr(count))}")
    for what, text in (("name", name), ("weight", weight), ("store", store)):
        if "\0" in str(text):
            raise InputError(f"{what} {printable(repr(str(text)))} holds a zero byte: no file is named so")
    root = Path(store).expanduser() if store is not None else default_root()
    settings = ComputeSettings(check_spec(device), threads)
    opened = models.open_model(str(name), root, Access.DOWNLOAD if download else Access.RANGES)
    shown = in_state(opened, root, choose(str(weight), opened, root, _tell), gauge)
    return OpenModel(shown, root, settings, experts)


class OpenModel:
    """A model with its spectra, to be used from one thread; returned by `open_model`. `with` closes it; a notebook
    shows it as the heatmap of k90/k0."""

    def __init__(self, model: models.Model, root: Path, settings: ComputeSettings, experts: int | None) -> None:
        self._events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
        self._batch: tuple[Event, ...] = ()
        self._wanted: Sequence[Projection] = ()
        self._session = Session(model, root, self._events.put, settings, experts)
        self._by_address = {p.address: p for p in model.tree.projections}
        self._is_closed = False
        self._said: set[str] = set()
        self._session.load()
        gone = (f"{model.reason}; shown is what is stored of it, which may be a part",) if model.reason else ()
        self._say((*model.warnings, *gone, *(model.said.lines if model.said is not None else ())))
        self._say_damage()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._session.model.name

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that a scan computes, in the order of the model, each with its address, shape and role."""
        return tuple(self._chosen(None))

    def scan(
        self, filter: str | None = None, *, progress: Told | None = None, recompute: bool = False
    ) -> dict[str, str]:
        """Compute and save those of the matrices matched by a filter (None: all projections) that are not stored.

        Returns the reason of each failure by address: {} if all are stored. Ctrl+c, or an error of `progress`, stops
        it: what is finished is kept, and the next scan goes on from there.

        Raises:
            InputError: no address matches; nothing can be computed here; the model is closed.
        """
        wanted = self._chosen(filter)
        self._look()
        if not recompute:
            self._session.verify([p.key for p in wanted])
            self._say_damage()
        noise = [noise_of(p) for p in wanted if p.problem is None and is_weighted(p)]
        self._compute([*wanted, *noise], progress, recompute)
        return {p.address: reason for p in wanted if (reason := self._why_not(p))}

    def spectrum(self, address: str) -> Spectrum:
        """The spectrum of one matrix: `values` are its singular values, float64, descending; `provenance` has the error
        bound and the noise floor. It is computed and stored if it is not yet.

        Raises:
            InputError: there is no such address, or its spectrum cannot be computed.
        """
        p = self._by_address.get(address)
        if p is None:
            raise InputError(f"no projection {printable(repr(address))} in {printable(self.name)}: see .projections")
        self._look()
        values = self._session.read([p.key]) if self._session.has(p) else {}
        if p.key not in values:
            self._compute([p], None, False)
            if reason := self._why_not(p):
                raise InputError(f"{address}: {reason.removeprefix(f'{address}: ')}")
            values = self._session.read([p.key])
        self._say_damage()
        entry = self._session.entry(p)
        if entry is None or p.key not in values:
            raise InputError(f"{address}: its spectrum cannot be read from the store")
        return spectrum_of(replace(entry, projection=p), values[p.key])  # tied tensors share an entry

    def numbers(self, unit: str = "k/k0", threshold: float = 0.9, filter: str | None = None) -> Values:
        """One number for each of the matrices that a filter matches (None: all of `projections`), in their order:
        float64, NaN if unknown. `unit` is a column of the table: k, percent, k/k0, effective_rank, stable_rank ...

        Raises:
            InputError: no such unit or threshold; no address matches.
        """
        wanted = self._chosen(filter)
        lens = self._loaded(unit, threshold, wanted)
        return lens.numbers(lens.pair.group(wanted)).copy()

    def table(self, threshold: float = 0.9, filter: str | None = None) -> dict[str, NDArray[Any]]:
        """The columns of `rankscope show --view table --csv`, with a row for each matrix that a filter matches:
        numbers, NaN if unknown, and texts as objects, None if missing.

        Raises:
            InputError: no such threshold; no address matches.
        """
        wanted = self._chosen(filter)
        lens = self._loaded("k", threshold, wanted)
        fields = table_rows.fields_of(lens, table_rows.has_twins(lens, wanted))
        table_rows.load(fields, wanted)
        rows = list(records.of_rows(fields, wanted))
        self._say_damage()
        return {
            name: _column([row.get(name) for row in rows]) for name in dict.fromkeys(n for row in rows for n in row)
        }

    def frame(self, threshold: float = 0.9, filter: str | None = None) -> Any:
        """`table` as a pandas.DataFrame.

        Raises:
            InputError: as `table`; pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise InputError("pandas is not installed: pip install pandas, or take .table()") from None
        return pandas.DataFrame(self.table(threshold, filter))

    def heatmap(self, unit: str = "k/k0", threshold: float = 0.9, filter: str | None = None) -> HtmlHeatmap:
        """Layers x roles of one number, see `numbers`: an array, which a notebook shows as a table."""
        wanted = self._chosen(filter)
        lens = self._loaded(unit, threshold, wanted)
        under = weighted_by(wanted)
        stored = f"{self._session.stored(wanted)} of {len(wanted)} stored"
        parts = (f"{self.name}: {lens.title}", lens.formula, under, stored)
        return heatmap_of(lens, wanted, "; ".join(part for part in parts if part))

    def close(self) -> None:
        """Stop computing, and end the threads. What is stored can still be read."""
        self._is_closed = True
        self._session.close(CLOSE_SECONDS)
        if count := self._session.unsaved:
            self._say((f"computed and not saved, for the disk is full: {count} spectra",))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        wanted = self._chosen(None)
        return f"<{printable(self.name)}: {len(wanted)} projections, {self._session.stored(wanted)} stored>"

    def _repr_html_(self) -> str:
        return self.heatmap()._repr_html_()

    def _chosen(self, pattern: str | None) -> list[Projection]:
        """The projections that a filter matches; of the experts of a layer only the number given to `open_model`."""
        found = self._session.sampled(self._session.model.tree.scanned(pattern))
        if not found and pattern:
            raise InputError(f"no address matches {printable(repr(pattern))}: see .projections")
        return found

    def _loaded(self, unit: str, threshold: float, wanted: Sequence[Projection]) -> Lens:
        """A lens that has loaded what its numbers need."""
        units = {name: measure for name, measure in BY_NAME.items() if not measure.needs_ranks}
        if unit not in units:
            raise InputError(f"no unit {printable(repr(unit))}: {' '.join(units)}")
        if not isinstance(threshold, float | int) or not 0 < threshold <= 1:
            given = printable(repr(threshold))
            raise InputError(f"threshold is a share of the energy above 0 and up to 1, as 0.9, not {given}")
        self._look()
        lens = Lens(Pair(self._session), threshold, units[unit])
        lens.load(wanted)
        self._say_damage()
        return lens

    def _look(self) -> None:
        """Apply the messages of this model's engine, and what other processes have stored meanwhile."""
        while self._batch or not self._events.empty():
            self._next_batch()
        self._session.take(self._session.look())

    def _next_batch(self, timeout: float | None = None) -> tuple[Event, ...]:
        """Wait for the next messages of the engine, and apply them; if ctrl+c came in between, start again.

        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        self._batch = self._batch or self._events.get(timeout=timeout)
        self._session.apply(self._batch)
        batch, self._batch = self._batch, ()
        return batch

    def _settle(self) -> None:
        """Wait until the engine has reported all matrices that a stopped scan will not compute: a late report would
        seem to belong to the next scan."""
        with suppress(queue.Empty):
            while any(self._session.state(p) is State.QUEUED for p in self._wanted):
                self._next_batch(_SECONDS)

    def _compute(self, wanted: Sequence[Projection], progress: Told | None, recompute: bool) -> None:
        """Have the engine compute what is not stored and can be, and wait for it."""
        session = self._session
        missing = [p for p in wanted if p.problem is None and (recompute or not session.has(p))]
        if not missing:
            return
        if self._is_closed:
            raise InputError(f"{printable(self.name)} is closed: open it again")
        if not is_writable(session.store.folder):
            raise InputError(f"cannot write to the store {session.store.folder}: name another with store=DIR")
        session.tidy()
        self._settle()
        session.progress = None  # drop the progress of an earlier scan
        self._wanted = missing
        try:
            session.compute(missing, recompute=recompute)
            while self._is_busy():
                self._pass_on(self._next_batch(), progress)
        except BaseException:
            session.stop()
            raise

    def _why_not(self, p: Projection) -> str:
        """Why there is no spectrum of a matrix, "" if the reason is unknown."""
        return self._session.failures.get(p.key) or (not self._session.has(p) and p.problem) or ""

    def _is_busy(self) -> bool:
        """Whether any matrix of a scan, including a stopped one, waits, runs or is being solved again."""
        progress = self._session.progress
        is_again = progress is not None and progress.busy
        return is_again or any(self._session.state(p) in (State.QUEUED, State.RUNNING) for p in self._wanted)

    def _pass_on(self, batch: tuple[Event, ...], progress: Told | None) -> None:
        """Pass on what the engine reports."""
        for notice in (event for event in batch if isinstance(event, Notice)):
            if notice.fatal:
                raise InputError(notice.text)
            self._say((notice.text,))
        now = self._session.progress
        if now is not None and now.waiting:
            self._say((f"{now.waiting}; what is computed is kept until there is room",))
        if progress is not None and now is not None:
            progress(now)

    def _say_damage(self) -> None:
        self._say(f"{path}: {sentence}" for path, sentence in self._session.damage())

    def _say(self, lines: Iterable[str]) -> None:
        """Warn with each line once for this model."""
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                _tell(line)


def _column(values: Sequence[object]) -> NDArray[Any]:
    """A column as an array: texts as objects; whole numbers and booleans if none is missing; else float64 with NaN for
    None."""
    if any(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    return np.array(values) if None not in values and values else np.array(values, dtype=np.float64)


def _tell(line: str) -> None:
    warnings.warn(line, stacklevel=4)
