"""What is stored of an open model, and the numbers that were worked out from it: for all states of its projections."""

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
from rankscope.engine.derive.weighting import is_weighted, noise_of
from rankscope.engine.spectrum import THRESHOLDS, Projection, Values

from .kept_energy import KeptEnergies
from .kept_ranks import KeptRanks
from .model import Model
from .number_columns import NumberColumns
from .participation import Participations

if TYPE_CHECKING:
    from rankscope.engine.calibration.said import Figures
    from rankscope.store.spectra import Entry, SpectraStore
    from rankscope.store.stored import Stored

Fact: TypeAlias = float | tuple[float, bool] | None
"""A number that is worked out from a spectrum: with whether it is only a lower bound, where that can be."""
FromValues: TypeAlias = Callable[[Values, Projection, float], Fact]
"""Works one out from the singular values, float64, shape (r,), descending, of a projection, and their noise floor."""
_BATCH = 256
_MAX_VALUES = 1024
"""Spectra kept in memory: at 4096 values each 32 MB. A chart shows 8."""


def _nobody(_: set[str]) -> None:
    """Where no screen shows what is stored."""


class Known:
    """The stored spectra of one model, its numbers, and which of the model's states are shown.

    `raw` is the model as it was opened, `model` the same or what `show` has put in its place: its projections under a
    weighting, whose name and label are `weighting`, or in the fixed gauge, of which `fixed` says what was, or both.
    `said` is what the file of the weighting says of them beside their spectra.
    `lost` are keys whose values turned out to be damaged and that are not computed again; `when_lost` is called with
    those that reading has found, in the thread that read. `participations` are known since load_participations, `kept`
    since load_kept.
    """

    def __init__(self, model: Model, root: Path) -> None:
        self.raw = self.model = model
        self.root = root
        self._lock = threading.Lock()
        self._store: SpectraStore | None = None
        self.lost: set[str] = set()
        self.when_lost: Callable[[set[str]], None] = _nobody
        self._named: list[tuple[Path, str]] = []
        self._index: Stored | None = None
        self._entries: dict[str, Entry | None] = {}  # None: the one of the index
        self._values: dict[str, Values] = {}
        self._ranks: dict[str, dict[float, int]] = {}
        self._null_ranks: dict[str, dict[float, float]] = {}
        self._facts: dict[str, dict[str, Fact]] = {}
        self._twins: dict[str, str] = {}  # key of a twin with random signs -> that of its projection
        self._noises: dict[str, Projection] = {}  # by the key of a projection under a weighting
        self.participations = Participations()
        self.kept = KeptEnergies(self.read, self._tell)
        self._beside: dict[str, set[str]] = {}  # by the key of what numbers need beside their own: theirs
        self._further: tuple[Projection, ...] = ()
        self.show(model)

    def show(self, model: Model) -> None:
        """Show other states of the model's projections from now on: those of `weighed`, or `raw`."""
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
        self._beside = self._needed_beside(model) if first is not None else {}
        self.columns = NumberColumns((*model.every, *self._further))

    def show_beside(self, further: Sequence[Projection]) -> None:
        """Have numbers of further rows too, in the place of those that were given before. They are none of the model's
        projections, and count in none of its totals."""
        self._further = tuple(further)
        self.columns = NumberColumns((*self.model.every, *self._further))

    @property
    def shown_as(self) -> str:
        """The name of the weighting, of the gauge, or of both: `norm`, `fixed`, `imatrix fixed`; of differences to
        another model `delta`, `norm delta`; "" for none of these."""
        return " ".join(filter(None, (self.weighting[0], self.gauge, DELTA if self.model.against else "")))

    def figures(self, projection: Projection) -> Figures | None:
        """What the file of the weighting says of a projection beside its spectrum, None where it says nothing."""
        return self.said.figures.get(projection.address) if self.said is not None else None

    def know(self, model: Model) -> None:
        """Have all that `show` needs of a model under a weighting worked out: of 45,000 projections it takes a second.
        For a thread."""
        self._needed_beside(model)

    def _needed_beside(self, model: Model) -> dict[str, set[str]]:
        """By the keys of noise and of matrices as they are, the keys of the projections that compare with them."""
        found: dict[str, set[str]] = {}
        for p in model.tree.projections:
            if p.problem is None:
                plain = p.parents[:1] if is_state(p) else ()
                for other in ((self.noise(p),) if compares_with_noise(p) else ()) + plain:
                    found.setdefault(other.key, set()).add(p.key)
        return found

    def noise(self, projection: Projection) -> Projection:
        """What a projection under a weighting compares with (see noise_of), made once."""
        found = self._noises.get(projection.key)
        if found is None:
            found = self._noises[projection.key] = noise_of(projection)
        return found

    @property
    def store(self) -> SpectraStore:
        """The store of the model's spectra. Its modules (numpy, h5py) cost 0.2 s: the first screen does without."""
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
        """Of the model's matrices as they are, also where it was opened under a weighting."""
        return {q.key for p in self.raw.tree.projections for q in p.parents}

    def load(self) -> None:
        """Read the store's index: what is there counts as stored. Imports h5py."""
        self._index = self.store.stored()
        ours, derived = self._raw_keys, self._index.derived()
        for key in self._index:
            if key in ours or key in derived:
                self._entries.setdefault(key)  # what `apply` has put there is newer
        for key in self._index.twins():
            self._know_twin(self._index.projection(key))
        for key in self._index.directions():
            self.participations.know(self._index.projection(key))
        self.columns.changed(None)
        self.lost |= {entry.projection.key for entry in self.store.lost()} - self._entries.keys()

    def look(self) -> dict[str, Entry | None]:
        """What other processes have stored, or removed, since the last look, by key. Reads files."""
        self.store.look()
        found = {key: self.store.entry(key) for key in self.store.news()}
        ours = self._raw_keys
        return {k: e for k, e in found.items() if k in ours or e is None or e.projection.derived is not None}

    @property
    def saved(self) -> int:
        """Spectra that were computed here and are on the disk."""
        return self._store.saved if self._store is not None else 0

    def tidy(self) -> None:
        """Sweep what killed processes left half written, and merge what they left as many small files; a full disk only
        postpones that."""
        with suppress(OSError):
            self.store.tidy()

    @property
    def has_spectra(self) -> bool:
        """Whether anything is stored, as far as is known."""
        return bool(self._entries)

    @property
    def stored_keys(self) -> list[str]:
        """The keys of what is stored, derived spectra among them."""
        return list(self._entries)

    def weightings(self) -> Iterator[tuple[str, str]]:
        """Name and label of the weighting of every stored spectrum that is under one."""
        held = self._index.weightings() if self._index is not None else {}
        for key, entry in self._entries.copy().items():
            made = None if entry is None else entry.projection.derived
            if entry is None and key in held:
                yield held[key]
            elif made is not None and made.weighting and not made.is_further:
                yield made.weighting, made.label

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """The values of stored keys, which are not kept in memory. Reads files.

        One that has none counts as not computed from now on: it is damaged, or another process has removed it.
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
        """Nothing is stored of these any more."""
        for key in keys:
            for known in (self._entries, self._ranks, self._null_ranks, self._facts):
                known.pop(key, None)
            self.participations.forget(key)
            self.kept.forget(key)

    def verify(self, keys: Iterable[str]) -> None:
        """Read the values of the stored ones among these keys, to find what is damaged."""
        wanted = [key for key in keys if key in self._entries]
        for start in range(0, len(wanted), _BATCH):
            self.read(wanted[start : start + _BATCH])

    def damage(self) -> list[tuple[Path, str]]:
        """Files of the store that are not served as they stand and were not named by this before, with a sentence."""
        found = [named for named in self.store.damaged if named not in self._named]
        self._named += found
        return found

    def load_values(self, projections: Sequence[Projection]) -> None:
        """Bring the singular values of some stored projections into memory, and of the noise under their weighting.
        Reads files."""
        if len(self._values) > _MAX_VALUES:
            self._values.clear()
        wanted = [*projections, *(self.noise(p) for p in projections if is_weighted(p))]
        missing = [p.key for p in wanted if p.key in self._entries and p.key not in self._values]
        if missing:
            self._values.update(self.read(missing))

    def load_ranks(self, projections: Sequence[Projection], threshold: float) -> None:
        """Know the ranks of stored projections at a threshold that is not in the stored table. Reads files."""
        from rankscope.engine import metrics  # numpy: 0.17 s that the first screen need not wait for

        missing = [p.key for p in projections if p.key in self._entries and self.rank(p, threshold) is None]
        for start in range(0, len(missing), _BATCH):
            found = self.read(missing[start : start + _BATCH])
            for key, values in found.items():
                self._ranks.setdefault(key, {})[threshold] = metrics.threshold_rank(values, threshold)
            self._tell(found)

    def load_null_ranks(self, projections: Iterable[Projection], threshold: float) -> None:
        """Know the null ranks of those of the projections that are under a weighting, at this threshold and at those of
        the stored table. Reads files."""
        missing = list(dict.fromkeys(self.noise(p).key for p in projections if self._lacks_null_rank(p, threshold)))
        if not missing:
            return
        from rankscope.engine.null import null_rank_of  # numpy

        for start in range(0, len(missing), _BATCH):
            found = self.read(missing[start : start + _BATCH])
            for key, values in found.items():
                wanted = {threshold, *THRESHOLDS} - self._null_ranks.setdefault(key, {}).keys()
                self._null_ranks[key] |= {t: null_rank_of(values, t) for t in wanted}
            self._tell(found)

    def without_null_rank(self, threshold: float) -> set[str]:
        """The keys of projections under a weighting whose null rank is not known and can be read."""
        return {p.key for p in self.columns.projections if self._lacks_null_rank(p, threshold)}

    def without_raw_rank(self, threshold: float) -> set[str]:
        """The same where it is the rank of the matrix as it is."""
        every = ((p, p.parents[0]) for p in self.columns.projections if is_state(p))
        return {p.key for p, raw in every if raw.key in self._entries and self.rank(raw, threshold) is None}

    def _lacks_null_rank(self, p: Projection, threshold: float) -> bool:
        if p.problem is not None or not is_weighted(p):
            return False
        key = self.noise(p).key
        return key in self._entries and threshold not in self._null_ranks.get(key, ())

    def load_facts(self, projections: Sequence[Projection], wanted: Mapping[str, FromValues]) -> None:
        """Know these facts of stored projections, by name; all those of a spectrum come together. Reads files."""
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
        """Whether the leading directions of anything are stored."""
        return bool(self.participations.matrices(self._entries))

    def load_participations(self, projections: Sequence[Projection]) -> None:
        """Know it of those of the projections whose directions are stored. Reads files."""
        unread = self.participations.unread(self._entries.keys())
        wanted = [p for p in projections if p.parents[0].key in unread]
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            self.participations.take(batch, unread, self.read([unread[p.parents[0].key] for p in batch]))
            self._tell(p.parents[0].key for p in batch)

    def without_participation(self) -> set[str]:
        """The keys of projections of which it can be read and was not."""
        return self.with_weighted(set(self.participations.unread(self._entries.keys())))

    def load_kept(self, projections: Sequence[Projection], ranks: KeptRanks) -> None:
        """Know the energy that ranks keep of stored projections. Reads files."""
        self.kept.load(projections, self._entries.keys(), ranks)

    def without_kept(self, ranks: KeptRanks) -> set[str]:
        """The keys of stored projections of which it is not known."""
        return self.kept.unread(self.columns.projections, self._entries.keys(), ranks)

    def entry(self, projection: Projection) -> Entry | None:
        """What is stored of a projection."""
        return self._entry(projection.key)

    def has(self, projection: Projection) -> bool:
        """Whether anything is stored of a projection."""
        return projection.key in self._entries

    def stored(self, projections: Iterable[Projection]) -> int:
        """How many of them are stored."""
        return sum(p.key in self._entries for p in projections)

    def twin(self, projection: Projection) -> Projection:
        """Its twin with random signs, of which everything can be asked that can be asked of a projection."""
        return flipped(projection)

    def values(self, projection: Projection) -> Values | None:
        """Its singular values, where they are in memory (see load_values)."""
        return self._values.get(projection.key)

    def facts(self, projection: Projection) -> Mapping[str, Fact] | None:
        """What load_facts has found, by name."""
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
        """`number` of all that is stored, by key."""
        known = self._entries.copy().items()  # before the index, which `load` sets first
        held = self._index.numbers(name) if self._index is not None else {}
        return {key: held[key] if entry is None else getattr(entry, name) for key, entry in known}

    def rank(self, projection: Projection, threshold: float) -> int | None:
        """Its threshold rank: from the stored table, or as known since load_ranks; else None."""
        key = projection.key
        entry = self._entries.get(key)
        if entry is not None:
            found = entry.ranks.get(threshold)
        else:
            found = self._index.rank(key, threshold) if self._index is not None and key in self._entries else None
        return self._ranks.get(key, {}).get(threshold) if found is None else found

    def null_rank(self, projection: Projection, threshold: float) -> float | None:
        """The null rank of a projection under a weighting, as known since load_null_ranks."""
        return self._null_ranks.get(self.noise(projection).key, {}).get(threshold)

    def all_ranks(self, threshold: float) -> dict[str, int | None]:
        """`rank` of all that is stored, by key."""
        known = self._entries.copy().items()  # before the index, which `load` sets first
        held = self._index.ranks(threshold) if self._index is not None else {}
        found = {key: held[key] if entry is None else entry.ranks.get(threshold) for key, entry in known}
        return found | {key: ranks[threshold] for key, ranks in self._ranks.copy().items() if threshold in ranks}

    def ranks_of_twins(self, threshold: float) -> dict[str, int | None]:
        """The same of the twins with random signs, by the keys of their projections."""
        found = self.all_ranks(threshold) if self._twins else {}
        return {self._twins[key]: found[key] for key in found.keys() & self._twins.keys()}

    def twins_without_rank(self, threshold: float) -> set[str]:
        """The keys of projections whose twins are stored, and their ranks not known."""
        return {key for key, rank in self.ranks_of_twins(threshold).items() if rank is None}

    def all_facts(self) -> dict[str, dict[str, Fact]]:
        """What load_facts has found, by key."""
        return self._facts.copy()

    def without_facts(self) -> set[str]:
        """The keys of what is stored and has no facts yet, derived spectra among them, which get none."""
        return self._entries.keys() - self._facts.keys()

    def with_weighted(self, keys: set[str]) -> set[str]:
        """These keys, and those of the projections under the weighting shown that compare with what is among them."""
        return keys.union(*(self._beside[key] for key in keys & self._beside.keys()))

    def with_parents(self, keys: set[str]) -> set[str]:
        """These keys, and those of the projections whose twins with random signs are among them."""
        return keys | {self._twins[key] for key in keys & self._twins.keys()}

    def _entry(self, key: str) -> Entry | None:
        """What is stored of a key. That of the index is made when it is asked for: a screen shows fifty of 45,000."""
        if key not in self._entries:
            return None
        return self._entries.get(key) or (self._index[key] if self._index is not None else None)

    def _forget_numbers(self, key: str) -> None:
        """Another spectrum is stored of a key."""
        for known in (self._values, self._ranks, self._null_ranks, self._facts):
            known.pop(key, None)
        self.participations.forget(key)
        self.kept.forget(key)
        self._tell((key,))

    def _tell(self, keys: Iterable[str]) -> None:
        """Something else is known of these keys: so it may be of the numbers that they are in."""
        told = set(keys)
        self.columns.changed(self.with_weighted(told | self.participations.matrices(told)))

    def _know_further(self, p: Projection) -> None:
        """Take in whose twin or whose directions a stored one is."""
        self.participations.know(p)
        self._know_twin(p)

    def _know_twin(self, p: Projection) -> None:
        """Where this is the twin of one of the model's projections: whose. Naming every twin of 45,000 takes 0.4 s."""
        parent = self._by_address.get(p.address) if p.null else None
        if parent is not None and flipped(parent).key == p.key:
            self._twins[p.key] = parent.key
