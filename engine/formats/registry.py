"""The list of formats that are read. Only this room knows suffixes of weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, printable
from . import foreign
from .format import Format, Ranged
from .gguf import GGUF
from .guarded import head_of
from .pytorch import PYTORCH
from .safetensors import SAFETENSORS

FORMATS: tuple[Format, ...] = (SAFETENSORS, PYTORCH, GGUF)
"""In the order in which a folder with several formats is searched; transformers prefers safetensors too."""

_OF_INDEX = ".index.json"
_ARTICLES = ("a ", "an ")


def suffixes() -> tuple[str, ...]:
    """The suffixes of all formats."""
    return tuple(suffix for kind in FORMATS for suffix in kind.suffixes)


def ranged_suffixes() -> tuple[str, ...]:
    """The suffixes of the formats whose files can be listed on a server."""
    return tuple(suffix for kind in FORMATS if isinstance(kind, Ranged) for suffix in kind.suffixes)


def holds_weights(names: Iterable[str]) -> bool:
    """True if files of these names may hold a model's weights."""
    listed = list(names)
    return any(kind.candidates(listed) for kind in FORMATS)


def stands_alone(name: str) -> bool:
    """True if a file of this name is of a format that stands alone."""
    return any(kind.stands_alone for kind in _named(name))


def unread(names: Iterable[str]) -> list[str]:
    """For each format of weights that is not read, one file of it among `names`, with the format's name, sorted."""
    kinds: dict[str, str] = {}
    for name in sorted(names):
        if kind := foreign.kind_by_name(name):
            kinds.setdefault(kind, f"{printable(name, 60)}{', ' if kind.startswith(_ARTICLES) else ' of '}{kind}")
    return list(kinds.values())


def format_of(file: Path) -> Format:
    """The format of a file by its suffix; if several formats have the suffix, the one that recognises the first bytes.

    Raises:
        InputError: no format has the suffix.
    """
    named = _named(file.name)
    if not named:
        raise InputError(f"{printable(str(file))} {_foreign(file)}")
    if len(named) == 1:
        return named[0]
    head = head_of(file, foreign.HEAD)
    return next((kind for kind in named if kind.recognises(head)), named[0])


def is_index(name: str) -> bool:
    """True if a file of this name is an index, of a format that has one."""
    shard = name.lower().removesuffix(_OF_INDEX)
    return shard != name.lower() and any(kind.index and shard.endswith(kind.suffixes) for kind in FORMATS)


def format_of_index(name: str) -> Format:
    """The format of the shards that an index names; for any other file as format_of.

    Raises:
        InputError: no format has the suffix.
    """
    return format_of(Path(name[: -len(_OF_INDEX)] if is_index(name) else name))


def _foreign(file: Path) -> str:
    """The end of a sentence that says what a file without a suffix of ours is."""
    kinds = ", ".join(suffixes())
    if kind := foreign.kind_by_name(file.name):
        if kind.startswith(_ARTICLES):
            return f"is {kind}"
        return f"is a file of {kind}, which is not read: name the model's {kinds}"
    return foreign.signature(head_of(file, foreign.HEAD)) or f"is neither a folder nor a file of weights ({kinds})"


def _named(name: str) -> list[Format]:
    return [kind for kind in FORMATS if name.lower().endswith(kind.suffixes)]
