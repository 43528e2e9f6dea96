"""A snapshot of what is stored for a model, by content key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rankscope.engine.spectrum import Projection

from .entries import Entries
from .entry import Entry

ROW_BITS = 32
"""A row is numbered across files: the lowest 32 bits are the row in its file, those above the number of the file."""
_MASK = (1 << ROW_BITS) - 1


class Stored(Mapping[str, Entry]):
    """The entries that count, one per key. An entry is made from its row when it is first read.

    Numbers of all rows are available without making entries: 45,000 entries take a second, one number of each some 10
    ms. What is saved or removed later changes nothing here. From any thread.
    """

    def __init__(self, rows: Mapping[str, int], files: Sequence[Entries]) -> None:
        """`rows` maps each key to its file and row, numbered as at ROW_BITS."""
        self._rows = dict(rows)
        self._files = files
        self._made: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Entry:
        made = self._made.get(key)
        if made is None:
            entries, row = self._place(key)
            made = self._made[key] = entries[row]
        return made

    def projection(self, key: str) -> Projection:
        """The projection of a row without the rest of its entry.

        Raises:
            KeyError: nothing is stored under the key.
        """
        entries, row = self._place(key)
        return entries.projection(row)

    def computed_at(self, key: str) -> str:
        """The time at which an entry was computed.

        Raises:
            KeyError: nothing is stored under the key.
        """
        entries, row = self._place(key)
        return entries.computed_at[row]

    def rank(self, key: str, threshold: float) -> int | None:
        """A threshold rank; None if ranks at this threshold are not stored.

        Raises:
            KeyError: nothing is stored under the key.
        """
        entries, row = self._place(key)
        return entries.ranks(threshold)[row]

    def number(self, key: str, name: str) -> float | None:
        """A number of an entry by its name: effective_rank, stable_rank, sigma_max, sigma_min.

        Raises:
            KeyError: nothing is stored under the key, or there is no such number.
        """
        entries, row = self._place(key)
        return entries.numbers(name)[row]

    def ranks(self, threshold: float) -> dict[str, int | None]:
        """`rank` for every key."""
        columns = [entries.ranks(threshold) for entries in self._files]
        return {key: columns[at >> ROW_BITS][at & _MASK] for key, at in self._rows.items()}

    def numbers(self, name: str) -> dict[str, float | None]:
        """`number` for every key."""
        columns = [entries.numbers(name) for entries in self._files]
        return {key: columns[at >> ROW_BITS][at & _MASK] for key, at in self._rows.items()}

    def derived(self) -> set[str]:
        """The keys of all derived matrices: sign-flipped twins and everything else that is made from other matrices."""
        return {key for key, _, _ in self._counting(entries.derived for entries in self._files)}

    def twins(self) -> set[str]:
        """The keys of sign-flipped twins."""
        return {key for key, _, _ in self._counting(entries.twins for entries in self._files)}

    def directions(self) -> set[str]:
        """The keys of leading directions."""
        return {key for key, _, _ in self._counting(entries.directions for entries in self._files)}

    def products(self) -> set[str]:
        """The keys of matrices that their model stores as two factors."""
        return {key for key, _, _ in self._counting(entries.products for entries in self._files)}

    def weightings(self) -> dict[str, tuple[str, str]]:
        """Name and label of the weighting, by the keys of projections under one."""
        found = self._counting(entries.weightings for entries in self._files)
        return {key: entries.weightings[row] for key, entries, row in found}

    def gauges(self) -> dict[str, str]:
        """The name of the gauge, by the keys of projections in a gauge other than the raw one, weighted or not."""
        found = self._counting(entries.gauges for entries in self._files)
        return {key: entries.gauges[row] for key, entries, row in found}

    def _counting(self, rows: Iterable[Iterable[int]]) -> Iterator[tuple[str, Entries, int]]:
        """Yield key, entries and row number for those of the given rows (one iterable per file) that count."""
        for number, (entries, of_file) in enumerate(zip(self._files, rows, strict=True)):
            for row in of_file:
                if self._rows.get(entries.keys[row]) == number << ROW_BITS | row:
                    yield entries.keys[row], entries, row

    def _place(self, key: str) -> tuple[Entries, int]:
        at = self._rows[key]
        return self._files[at >> ROW_BITS], at & _MASK
