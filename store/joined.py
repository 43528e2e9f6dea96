"""The stores of several models read as one: each content key is prefixed with the name of its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rankscope.engine.spectrum import Projection, Values

from .entry import Entry
from .spectra import SpectraStore
from .stored import Stored

_SEPARATOR = ":"


def joined_key(part: str, key: str) -> str:
    """The key for `key` of model `part` among several models. `part` has no colon."""
    return f"{part}{_SEPARATOR}{key}"


def _split(key: str) -> tuple[str, str]:
    part, _, rest = key.partition(_SEPARATOR)
    return part, rest


class JoinedStored(Stored):
    """The stored checkpoint matrices of every part, without anything derived."""

    def __init__(self, parts: Mapping[str, Stored]) -> None:
        super().__init__({}, ())
        self._parts = parts
        self._derived = {part: stored.derived() for part, stored in parts.items()}

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        for part, stored in self._parts.items():
            yield from (joined_key(part, key) for key in stored if key not in self._derived[part])

    def __contains__(self, key: object) -> bool:
        part, rest = _split(str(key))
        return part in self._parts and rest in self._parts[part] and rest not in self._derived[part]

    def __getitem__(self, key: str) -> Entry:
        part, rest = _split(key)
        entry = self._parts[part][rest]
        return replace(entry, projection=replace(entry.projection, key=key))

    def projection(self, key: str) -> Projection:
        part, rest = _split(key)
        return replace(self._parts[part].projection(rest), key=key)

    def computed_at(self, key: str) -> str:
        part, rest = _split(key)
        return self._parts[part].computed_at(rest)

    def rank(self, key: str, threshold: float) -> int | None:
        part, rest = _split(key)
        return self._parts[part].rank(rest, threshold)

    def number(self, key: str, name: str) -> float | None:
        part, rest = _split(key)
        return self._parts[part].number(rest, name)

    def ranks(self, threshold: float) -> dict[str, int | None]:
        return {joined_key(p, k): n for p, stored in self._parts.items() for k, n in stored.ranks(threshold).items()}

    def numbers(self, name: str) -> dict[str, float | None]:
        return {joined_key(p, k): n for p, stored in self._parts.items() for k, n in stored.numbers(name).items()}


class JoinedStore(SpectraStore):
    """The stores of several models, for reading only. `folders` maps each part to its folder under `root`; parts may
    share a folder."""

    def __init__(self, root: Path, folders: Mapping[str, str]) -> None:
        super().__init__(root, "")
        stores = {folder: SpectraStore(root, folder) for folder in dict.fromkeys(folders.values())}
        self._parts = {part: stores[folder] for part, folder in folders.items()}
        self._stores = tuple(stores.values())

    @property
    def damaged(self) -> list[tuple[Path, str]]:
        return [found for store in self._stores for found in store.damaged]

    @property
    def set_aside(self) -> list[tuple[Path, str]]:
        return [found for store in self._stores for found in store.set_aside]

    def lost(self) -> list[Entry]:
        """Empty: each part reports its own losses."""
        return []

    def has(self, key: str) -> bool:
        part, rest = _split(key)
        return part in self._parts and self._parts[part].has(rest)

    def entry(self, key: str) -> Entry | None:
        part, rest = _split(key)
        found = self._parts[part].entry(rest) if part in self._parts else None
        return None if found is None else replace(found, projection=replace(found.projection, key=key))

    def stored(self) -> Stored:
        return JoinedStored({part: store.stored() for part, store in self._parts.items()})

    def values(self, keys: Iterable[str]) -> dict[str, Values]:
        wanted: dict[str, list[str]] = {}
        for key in keys:
            part, rest = _split(key)
            wanted.setdefault(part, []).append(rest)
        return {
            joined_key(part, key): values
            for part, rests in wanted.items()
            if part in self._parts
            for key, values in self._parts[part].values(rests).items()
        }

    def look(self) -> bool:
        found = [store.look() for store in self._stores]  # each store has to look, so no generator
        return any(found)

    def news(self) -> set[str]:
        news = {id(store): store.news() for store in self._stores}  # a store returns its news only once
        return {joined_key(part, key) for part, store in self._parts.items() for key in news[id(store)]}

    def tidy(self) -> None:
        """Do nothing, as this store is never written to."""

    def close(self) -> int:
        """See SpectraStore; there is never anything left to save."""
        return 0
