"""Which files of a folder make up the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from ..formats import registry
from ..formats.guarded import check_inside, read_json
from ..formats.parts import siblings

_MAX_INDEX = 100_000_000


def choose(names: Collection[str], where: str) -> list[str]:
    """Of the file names of a folder: the index of the weights, or the files that hold them; [] where none does.

    What a format is sure of comes before what may be something else, then formats in the registry's order.

    Raises:
        InputError: several files that may each be a model.
    """
    sure = (kind.models(names) for kind in registry.FORMATS)
    doubtful = (kind.doubtful(names) for kind in registry.FORMATS)
    models = next(filter(None, chain(sure, doubtful)), [])
    if len(models) > 1:
        first = ", ".join(printable(files[0], 80) for files in models[:3])
        raise InputError(
            f"{where} holds {len(models)} models ({first}{', ...' * (len(models) > 3)}): name one of the files"
        )
    return models[0] if models else []


def weight_files(folder: Path) -> tuple[list[Path], set[str]]:
    """The files that make up the model of a folder, and the tensor names its index promises.

    Raises:
        InputError: no weights, several models, a missing shard, an index or a link that points outside the
            folder, or no permission.
    """
    try:
        chosen = choose(_of_models(folder), printable(str(folder)))
        if not chosen:
            raise InputError(_no_weights(folder))
        if registry.is_index(chosen[0]):
            return _indexed(folder / chosen[0])
        files: dict[Path, None] = {}
        for name in chosen:
            if folder / name not in files:
                files.update(dict.fromkeys(with_siblings(folder / name)))
        return list(files), set()
    except OSError as error:
        raise InputError(f"cannot read {printable(str(folder))}: {error.strerror}") from None


def _of_models(folder: Path) -> list[str]:
    """The names of a folder's files without those that go along with a model, where others are left."""
    names = [path.name for path in folder.iterdir()]
    held = [(kind, name) for kind in registry.FORMATS for name in kind.named(names)]
    along = {name for kind, name in held if len(held) > 1 and kind.goes_along(folder / name)}
    return names if all(name in along for _, name in held) else [name for name in names if name not in along]


def _indexed(index: Path) -> tuple[list[Path], set[str]]:
    check_inside(index)
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    return [_shard(index.parent, shard, len(shards)) for shard in shards], set(weight_map)


def read_weight_map(index: Path) -> dict[str, str]:
    """weight_map_of a file.

    Raises:
        InputError: unreadable, malformed, or it points outside the folder.
    """
    return weight_map_of(read_json(index, _MAX_INDEX), index)


def weight_map_of(found: Mapping[str, Any], index: Path) -> dict[str, str]:
    """Tensor name -> shard, every shard a file name without a folder, from an index that was read.

    Raises:
        InputError: malformed, or it points outside the folder.
    """
    kinds = registry.format_of_index(index.name).suffixes
    weight_map = found.get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(s, str) for s in weight_map.values())):
        raise InputError(f"{printable(str(index))} has no weight_map of tensor names to files")
    for shard in set(weight_map.values()):
        if not shard.endswith(kinds) or "/" in shard or "\\" in shard or not shard.isprintable():
            raise InputError(f"{index.name} points to {printable(shard)}, which is no {kinds[0]} file of its folder")
    return weight_map


def with_siblings(file: Path) -> list[Path]:
    """A file and, where its name says that it is one of several parts, all of them in order.

    Raises:
        InputError: a part is missing.
    """
    parts = siblings(file.name) or [file.name]
    return [_shard(file.parent, part, len(parts)) for part in parts]


def _shard(folder: Path, shard: str, total: int) -> Path:
    if not (folder / shard).is_file():
        where = printable(str(folder))
        raise InputError(f"shard {printable(shard)} (one of {total}) is missing from {where}: fetch it again")
    check_inside(folder / shard)
    return folder / shard


def _no_weights(folder: Path) -> str:
    others = registry.unread(path.name for path in folder.iterdir())
    held = f" (it holds {', '.join(others)})" if others else ""
    return f"no weights that can be read in {printable(str(folder))}{held}: name a folder or file that has some"
