"""Patterns that name several models: `org/model@step*` for branches and tags on the Hub, `runs/step-*` for paths."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InputError, printable
from . import hub, urls

_WILD = frozenset("*?[")


def models_named(names: Iterable[str]) -> list[str]:
    """The names, with patterns replaced by all the models that they match, without duplicates.

    Raises:
        InputError: a pattern matches nothing, or the Hub does not answer.
    """
    found: list[str] = []
    for name in names:
        found += _named(name) if is_pattern(name) else [name]
    return list(dict.fromkeys(found))


def is_pattern(name: str) -> bool:
    """True if a name may match several: it has `*`, `?` or `[`, and is neither a URL nor an existing path."""
    try:
        return bool(_WILD & set(name)) and not urls.is_url(name) and not Path(name).exists()
    except (OSError, ValueError):  # too long for a path
        return True


def _named(pattern: str) -> list[str]:
    model, at, wanted = pattern.partition("@")
    if at and not _WILD & set(model) and not pattern.startswith((".", "/", "~")):
        place = hub.parse(model)
        revisions = [revision for revision in hub_revisions(place) if fnmatchcase(revision, wanted)]
        found = [f"{place.name}@{revision}" for revision in sorted(revisions)]
        what = f"no branch or tag of {place.repo}"
    else:
        found, what = _paths(pattern), "no file and no folder"
    if not found:
        raise InputError(f"{printable(pattern)} matches nothing: {what} has such a name")
    return found


def _paths(pattern: str) -> list[str]:
    path = Path(pattern)
    with suppress(RuntimeError):  # ~nobody
        path = path.expanduser()
    try:
        return sorted(str(found) for found in Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (ValueError, OSError):  # an invalid pattern, a folder that cannot be read
        return []


def hub_revisions(place: hub.HubPlace) -> set[str]:
    """The branches and tags of a repo on the Hub and in the local cache.

    Raises:
        InputError: the Hub does not answer, and nothing is in the cache.
    """
    refs = hub.repo_folder(place.repo) / "refs"
    cached = {str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()} if refs.is_dir() else set()
    try:
        with hub.explained(place):
            from huggingface_hub import HfApi

            found = HfApi().list_repo_refs(place.repo)
    except InputError:
        if not cached:
            raise
        return cached
    return cached | {ref.name for ref in (*found.branches, *found.tags)}
