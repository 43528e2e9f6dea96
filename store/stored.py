"""What is stored of a model, by content key, as it was when the store was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rankscope.engine.spectrum import Projection

from .entries import Entries
from .entry import Entry

ROW_BITS = 32
"""A row of a list of files is one number: that of the file, and in its lowest 32 bits that of the row in the file."""
_MASK = (1 << ROW_BITS) - 1


class Stored(Mapping[str, Entry]):
    """The entries that count, one a key. An entry is made of its row when it is asked for first.

    Numbers of all of them come without: 45,000 entries take a second to make, a number of each some 10 ms. What is
    saved or removed later changes nothing here. From any thread.
    """

    def __init__(self, rows: Mapping[str, int], files: Sequence[Entries]) -> None:
        """`rows`: key -> file and row, as ROW_BITS says."""
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
        """The projection of an entry alone.

        Raises:
            KeyError: nothing is stored of the key.
        """
        entries, row = self._place(key)
        return entries.projection(row)

    def computed_at(self, key: str) -> str:
        """When an entry was computed.

        Raises:
            KeyError: nothing is stored of the key.
        """
        entries, row = self._place(key)
        return entries.computed_at[row]

    def rank(self, key: str, threshold: float) -> int | None:
        """A threshold rank; None where those at this threshold are not stored.

        Raises:
            KeyError: nothing is stored of the key.
        """
        entries, row = self._place(key)
        return entries.ranks(threshold)[row]

    def number(self, key: str, name: str) -> float | None:
        """A number of an entry by its name: effective_rank, stable_rank, sigma_max, sigma_min.

        Raises:
            KeyError: nothing is stored of the key, or there is no such number.
        """
        entries, row = self._place(key)
        return entries.numbers(name)[row]

    def ranks(self, threshold: float) -> dict[str, int | None]:
        """`rank` of every key."""
        columns = [entries.ranks(threshold) for entries in self._files]
        return {key: columns[at >> ROW_BITS][at & _MASK] for key, at in self._rows.items()}

    def numbers(self, name: str) -> dict[str, float | None]:
        """`number` of every key."""
        columns = [entries.numbers(name) for entries in self._files]
        return {key: columns[at >> ROW_BITS][at & _MASK] for key, at in self._rows.items()}

    def derived(self) -> set[str]:
        """The keys of what is no matrix of a checkpoint: sign-flipped twins, and whatever else is made of others."""
        return {key for key, _, _ in self._counting(entries.derived for entries in self._files)}

    def twins(self) -> set[str]:
        """The keys of sign-flipped twins."""
        return {key for key, _, _ in self._counting(entries.twins for entries in self._files)}

    def directions(self) -> set[str]:
        """The keys of leading directions."""
        return {key for key, _, _ in self._counting(entries.directions for entries in self._files)}

    def products(self) -> set[str]:
        """The keys of matrices that their model holds as two factors."""
        return {key for key, _, _ in self._counting(entries.products for entries in self._files)}

    def weightings(self) -> dict[str, tuple[str, str]]:
        """By the keys of projections under a weighting its name and label."""
        found = self._counting(entries.weightings for entries in self._files)
        return {key: entries.weightings[row] for key, entries, row in found}

    def gauges(self) -> dict[str, str]:
        """By the keys of projections in another gauge than the raw one, under a weighting or none, its name."""
        found = self._counting(entries.gauges for entries in self._files)
        return {key: entries.gauges[row] for key, entries, row in found}

    def _counting(self, rows: Iterable[Iterable[int]]) -> Iterator[tuple[str, Entries, int]]:
        """Of these rows of each file those that count, with key and file."""
        for number, (entries, of_file) in enumerate(zip(self._files, rows, strict=True)):
            for row in of_file:
                if self._rows.get(entries.keys[row]) == number << ROW_BITS | row:
                    yield entries.keys[row], entries, row

    def _place(self, key: str) -> tuple[Entries, int]:
        at = self._rows[key]
        return self._files[at >> ROW_BITS], at & _MASK
