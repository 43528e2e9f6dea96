"""The stored spectra of an open model, for all states of its projections, and numbers computed from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.difference import DELTA, compares_with_noise, is_delta
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.gauge import weighting_label, what_is_fixed
from rankscope.engine.derive.weighting import is_weighted
from rankscope.engine.spectrum import Projection, Values

from .kept_energy import KeptEnergies
from .kept_ranks import KeptRanks
from .model import Model
from .null_ranks import NullRanks
from .number_columns import NumberColumns
from .participation import Participations

if TYPE_CHECKING:
    from rankscope.engine.calibration.said import Figures
    from rankscope.store.spectra import Entry, SpectraStore
    from rankscope.store.stored import Stored

Fact: TypeAlias = float | tuple[float, bool] | None
"""A number computed from a spectrum; paired with whether it is only a lower bound, if that can happen."""
FromValues: TypeAlias = Callable[[Values, Projection, float], Fact]
"""Computes a fact of a projection from its singular values, float64, shape (r,), descending, and their noise floor."""
_BATCH = 256
_MAX_VALUES = 1024
"""Spectra kept in memory: at 4096 values each 32 MB. A chart shows 8."""


class Known:
    """The stored spectra of one model, its numbers, and the state in which it is shown.

    `raw` is the model as it was opened, `model` what `show` has replaced it by: its projections under a weighting,
    whose name and label are `weighting`, or in the fixed gauge, of which `fixed` describes what was fixed, or both.
    `said` holds the facts that the file of the weighting has about them. `lost` are keys whose values turned out to be
    damaged and that are not computed again; `when_lost` is called with those that a read has found, in the reading
    thread. `participations`, `null_ranks` and `kept` are filled by load_participations, load_null_ranks and load_kept.
    """

    def __init__(self, model: Model, root: Path) -> None:
        self.raw = self.model = model
        self.root = root
        self._lock = threading.Lock()
        self._store: SpectraStore | None = None
        self.lost: set[str] = set()
        self.when_lost: Callable[[set[str]], None] = lambda _: None
        self._reported: list[tuple[Path, str]] = []
        self._index: Stored | None = None
        self._entries: dict[str, Entry | None] = {}  # None: the one in the index
        self._values: dict[str, Values] = {}
        self._ranks: dict[str, dict[float, int]] = {}
        self._facts: dict[str, dict[str, Fact]] = {}
        self._twins: dict[str, str] = {}  # key of a twin with random signs -> key of its projection
        self.participations = Participations(self.read, self._tell)
        self.null_ranks = NullRanks(self.read, self._tell)
        self.kept = KeptEnergies(self.read, self._tell)
        self._dependents: dict[str, set[str]] = {}  # key of a spectrum -> keys of projections whose numbers need it too
        self._further: tuple[Projection, ...] = ()
        self.show(model)

    def show(self, model: Model) -> None:
        """Show other states of the model's projections from now on: `model` is a result of `weighed`, or `raw`."""
        self.model = model
        self.said = model.said
        shown = next((p for p in model.tree.projections if p.rows), None)
        first = shown.derived if shown is not None else None
        self.weighting = ("", "")
        if shown is not None and first is not None and first.weighting:
            of_delta = first.label.removeprefix(f"{DELTA} under ")
            self.weighting = first.weighting, of_delta if is_delta(shown) else weighting_label(shown)
        self.gauge = first.gauge if first is not None else ""
        self.fixed = what_is_fixed(model.tree.projections) if self.gauge else ""
        self._dependents = self._dependents_of(model) if first is not None else {}
        self.columns = NumberColumns((*model.every, *self._further))

    def show_beside(self, further: Sequence[Projection]) -> None:
        """Provide numbers for these further rows too; they are no projections of the model, and not in its totals."""
        self._further = tuple(further)
        self.columns = NumberColumns((*self.model.every, *self._further))

    @property
    def shown_as(self) -> str:
        """The name of the weighting, of the gauge, or of both: `norm`, `fixed`, `imatrix fixed`; for differences from
        another model `delta`, `norm delta`; "" for unmodified matrices."""
        return " ".join(filter(None, (self.weighting[0], self.gauge, DELTA if self.model.against else "")))

    def figures(self, projection: Projection) -> Figures | None:
        """The facts that the file of the weighting has about a projection, or None."""
        return self.said.figures.get(projection.address) if self.said is not None else None

    def know(self, model: Model) -> None:
        """Compute everything that `show` needs for a model under a weighting, in a thread: for 45,000 projections this
        takes a second."""
        self._dependents_of(model)

    def _dependents_of(self, model: Model) -> dict[str, set[str]]:
        """The keys of noise and of unmodified matrices, with those of the projections that are compared with them."""
        found: dict[str, set[str]] = {}
        for p in model.tree.projections:
            if p.problem is None:
                plain = p.parents[:1] if is_state(p) else ()
                for other in ((self.null_ranks.noise(p),) if compares_with_noise(p) else ()) + plain:
                    found.setdefault(other.key, set()).add(p.key)
        return found

    @property
    def store(self) -> SpectraStore:
        """The store of the model's spectra. Importing it (numpy, h5py) takes 0.2 s, so the first screen does not use
        it."""
        with self._lock:
            if self._store is None:
                from rankscope.store.joined import JoinedStore
                from rankscope.store.spectra import SpectraStore

                parts = self.model.parts
                self._store = JoinedStore(self.root, parts) if parts else SpectraStore(self.root, self.model.folder)
            return self._store

    @cached_property
    def _by_address(self) -> dict[str, Projection]:
        return {p.address: p for p in self.raw.tree.projections}

    @cached_property
    def _raw_keys(self) -> Collection[str]:
        """The keys of the model's unmodified matrices, even if it was opened under a weighting."""
        return {q.key for p in self.raw.tree.projections for q in p.parents}

    def load(self) -> None:
        """Read the store's index: what is in it counts as stored. Imports h5py."""
        self._index = self.store.stored()
        ours, derived = self._raw_keys, self._index.derived()
        for key in self._index:
            if key in ours or key in derived:
                self._entries.setdefault(key)  # entries from `apply` are newer
        for key in self._index.twins():
            self._know_twin(self._index.projection(key))
        for key in self._index.directions():
            self.participations.know(self._index.projection(key))
        self.columns.changed(None)
        self.lost |= {entry.projection.key for entry in self.store.lost()} - self._entries.keys()

    def look(self) -> dict[str, Entry | None]:
        """Return what other processes have stored or removed since the last look, by key. Reads files."""
        self.store.look()
        found = {key: self.store.entry(key) for key in self.store.news()}
        ours = self._raw_keys
        return {k: e for k, e in found.items() if k in ours or e is None or e.projection.derived is not None}

    @property
    def saved(self) -> int:
        """Number of spectra that were computed here and are on the disk."""
        return self._store.saved if self._store is not None else 0

    def tidy(self) -> None:
        """Sweep files that killed processes left half written, and merge their small files; a full disk only postpones
        that."""
        with suppress(OSError):
            self.store.tidy()

    @property
    def has_spectra(self) -> bool:
        """Whether anything is known to be stored."""
        return bool(self._entries)

    @property
    def stored_keys(self) -> list[str]:
        """The keys of all stored spectra, including derived ones."""
        return list(self._entries)

    def weightings(self) -> Iterator[tuple[str, str]]:
        """Yield name and label of the weighting for every stored spectrum under one."""
        held = self._index.weightings() if self._index is not None else {}
        for key, entry in self._entries.copy().items():
            made = None if entry is None else entry.projection.derived
            if entry is None and key in held:
                yield held[key]
            elif made is not None and made.weighting and not made.is_further:
                yield made.weighting, made.label

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """Read the values of stored keys without keeping them in memory.

        A key without values counts as not computed from now on: it is damaged, or another process has removed it.
        """
        values = self.store.values(keys)
        lost = {key for key in keys if key not in values and self.store.entry(key) is None} & self._entries.keys()
        if lost:
            self._lose(lost)
            self.lost |= lost
            self._tell(lost)
            self.when_lost(lost)
        return values

    def _lose(self, keys: set[str]) -> None:
        """Remove these keys from everything that is known."""
        for key in keys:
            for known in (self._entries, self._ranks, self._facts):
                known.pop(key, None)
            for numbers in (self.null_ranks, self.participations, self.kept):
                numbers.forget(key)

    def verify(self, keys: Iterable[str]) -> None:
        """Read the values of those of these keys that are stored, to find damage."""
        wanted = [key for key in keys if key in self._entries]
        for start in range(0, len(wanted), _BATCH):
            self.read(wanted[start : start + _BATCH])

    def damage(self) -> list[tuple[Path, str]]:
        """Files of the store that are not served as they are, each with a sentence, except those returned before."""
        found = [damaged for damaged in self.store.damaged if damaged not in self._reported]
        self._reported += found
        return found

    def load_values(self, projections: Sequence[Projection]) -> None:
        """Load the singular values of stored projections, and of the noise they are compared with. Reads files."""
        if len(self._values) > _MAX_VALUES:
            self._values.clear()
        wanted = [*projections, *(self.null_ranks.noise(p) for p in projections if is_weighted(p))]
        missing = [p.key for p in wanted if p.key in self._entries and p.key not in self._values]
        if missing:
            self._values.update(self.read(missing))

    def load_ranks(self, projections: Sequence[Projection], threshold: float) -> None:
        """Compute the ranks of stored projections at a threshold that the stored table lacks. Reads files."""
        from rankscope.engine import metrics  # numpy: 0.17 s that the first screen need not wait for

        missing = [p.key for p in projections if p.key in self._entries and self.rank(p, threshold) is None]
        for start in range(0, len(missing), _BATCH):
            found = self.read(missing[start : start + _BATCH])
            for key, values in found.items():
                self._ranks.setdefault(key, {})[threshold] = metrics.threshold_rank(values, threshold)
            self._tell(found)

    def load_null_ranks(self, projections: Iterable[Projection], threshold: float) -> None:
        """Compute the null ranks of those projections that are under a weighting. Reads files."""
        self.null_ranks.load(projections, self._entries.keys(), threshold)

    def without_null_rank(self, threshold: float) -> set[str]:
        """The keys of projections under a weighting whose null rank is unknown but can be read."""
        return {p.key for p in self.null_ranks.unread(self.columns.projections, self._entries.keys(), threshold)}

    def without_raw_rank(self, threshold: float) -> set[str]:
        """The keys of projections in another state whose unmodified matrix has a rank that is unknown but can be
        read."""
        every = ((p, p.parents[0]) for p in self.columns.projections if is_state(p))
        return {p.key for p, raw in every if raw.key in self._entries and self.rank(raw, threshold) is None}

    def load_facts(self, projections: Sequence[Projection], wanted: Mapping[str, FromValues]) -> None:
        """Compute these facts of stored projections, by name; all facts of a spectrum together. Reads files."""
        missing = [p for p in projections if p.key in self._entries and p.key not in self._facts]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            values = self.read([p.key for p in batch])
            for p in (p for p in batch if p.key in values):
                if (entry := self.entry(p)) is not None:
                    floor = entry.provenance.noise_floor
                    self._facts[p.key] = {name: of(values[p.key], p, floor) for name, of in wanted.items()}
            self.columns.changed(values)

    @property
    def has_directions(self) -> bool:
        """Whether leading directions are stored for any matrix."""
        return bool(self.participations.matrices(self._entries))

    def load_participations(self, projections: Sequence[Projection]) -> None:
        """Compute the participations of those projections whose directions are stored. Reads files."""
        self.participations.load(projections, self._entries.keys())

    def without_participation(self) -> set[str]:
        """The keys of projections whose participation can be read and was not."""
        return self.with_weighted(set(self.participations.unread(self._entries.keys())))

    def load_kept(self, projections: Sequence[Projection], ranks: KeptRanks) -> None:
        """Compute the energy that ranks keep of stored projections. Reads files."""
        self.kept.load(projections, self._entries.keys(), ranks)

    def without_kept(self, ranks: KeptRanks) -> set[str]:
        """The keys of stored projections whose energy at these ranks is unknown."""
        return self.kept.unread(self.columns.projections, self._entries.keys(), ranks)

    def entry(self, projection: Projection) -> Entry | None:
        """The entry of a projection, None if it is not stored."""
        return self._entry(projection.key)

    def has(self, projection: Projection) -> bool:
        """Whether the spectrum of a projection is stored."""
        return projection.key in self._entries

    def stored(self, projections: Iterable[Projection]) -> int:
        """The number of these projections that are stored."""
        return sum(p.key in self._entries for p in projections)

    def twin(self, projection: Projection) -> Projection:
        """The twin of a projection with random signs, itself a projection whose numbers can be read."""
        return flipped(projection)

    def values(self, projection: Projection) -> Values | None:
        """The singular values of a projection if they are in memory (see load_values)."""
        return self._values.get(projection.key)

    def facts(self, projection: Projection) -> Mapping[str, Fact] | None:
        """The facts that load_facts has computed, by name."""
        return self._facts.get(projection.key)

    def number(self, projection: Projection, name: str) -> float | None:
        """A number of the stored table by its name: effective_rank, stable_rank, sigma_max, sigma_min."""
        key = projection.key
        entry = self._entries.get(key)
        if entry is None and self._index is not None and key in self._entries:
            return self._index.number(key, name)
        found: float | None = getattr(entry, name, None)
        return found

    def all_numbers(self, name: str) -> dict[str, float | None]:
        """`number` for all that is stored, by key."""
        known = self._entries.copy().items()  # before the index, which `load` sets first
        held = self._index.numbers(name) if self._index is not None else {}
        return {key: held[key] if entry is None else getattr(entry, name) for key, entry in known}

    def rank(self, projection: Projection, threshold: float) -> int | None:
        """The threshold rank from the stored table or, after load_ranks, computed; else None."""
        key = projection.key
        entry = self._entries.get(key)
        if entry is not None:
            found = entry.ranks.get(threshold)
        else:
            found = self._index.rank(key, threshold) if self._index is not None and key in self._entries else None
        return self._ranks.get(key, {}).get(threshold) if found is None else found

    def all_ranks(self, threshold: float) -> dict[str, int | None]:
        """`rank` for all that is stored, by key."""
        known = self._entries.copy().items()  # before the index, which `load` sets first
        held = self._index.ranks(threshold) if self._index is not None else {}
        found = {key: held[key] if entry is None else entry.ranks.get(threshold) for key, entry in known}
        return found | {key: ranks[threshold] for key, ranks in self._ranks.copy().items() if threshold in ranks}

    def ranks_of_twins(self, threshold: float) -> dict[str, int | None]:
        """The ranks of twins with random signs, by the keys of their projections."""
        found = self.all_ranks(threshold) if self._twins else {}
        return {self._twins[key]: found[key] for key in found.keys() & self._twins.keys()}

    def twins_without_rank(self, threshold: float) -> set[str]:
        """The keys of projections whose twins are stored but whose twins' ranks are unknown."""
        return {key for key, rank in self.ranks_of_twins(threshold).items() if rank is None}

    def all_facts(self) -> dict[str, dict[str, Fact]]:
        """The facts that load_facts has computed, by key."""
        return self._facts.copy()

    def without_facts(self) -> set[str]:
        """The stored keys without facts, including derived spectra, which get none."""
        return self._entries.keys() - self._facts.keys()

    def with_weighted(self, keys: set[str]) -> set[str]:
        """These keys, and those of shown projections that are compared with one of them."""
        return keys.union(*(self._dependents[key] for key in keys & self._dependents.keys()))

    def with_parents(self, keys: set[str]) -> set[str]:
        """These keys, and those of the projections whose twins with random signs are among them."""
        return keys | {self._twins[key] for key in keys & self._twins.keys()}

    def _entry(self, key: str) -> Entry | None:
        """The entry of a key, made from the index on demand: a screen shows fifty of 45,000."""
        if key not in self._entries:
            return None
        return self._entries.get(key) or (self._index[key] if self._index is not None else None)

    def _forget_numbers(self, key: str) -> None:
        """Drop the numbers of a key whose stored spectrum was replaced."""
        for known in (self._values, self._ranks, self._facts):
            known.pop(key, None)
        for numbers in (self.null_ranks, self.participations, self.kept):
            numbers.forget(key)
        self._tell((key,))

    def _tell(self, keys: Iterable[str]) -> None:
        """Report that the numbers of these keys have changed, and so those computed with them."""
        told = set(keys)
        self.columns.changed(self.with_weighted(told | self.participations.matrices(told)))

    def _know_further(self, p: Projection) -> None:
        """Record a stored spectrum if it is a twin or holds directions."""
        self.participations.know(p)
        self._know_twin(p)

    def _know_twin(self, p: Projection) -> None:
        """Record a twin of one of the model's projections. Naming every twin of 45,000 takes 0.4 s."""
        parent = self._by_address.get(p.address) if p.null else None
        if parent is not None and flipped(parent).key == p.key:
            self._twins[p.key] = parent.key
