"""Choosing the files of a folder that make up the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError, cannot_read, printable
from ..formats import registry
from ..formats.format import TELLING
from ..formats.guarded import check_inside, head_of, read_json
from ..formats.parts import counting, is_part, siblings
from .tensor_parallel import check_folder, refuse_folders, without_parts

_MAX_INDEX = 100_000_000


class Chosen(NamedTuple):
    """The files of a model. `named` maps tensor names to files, from its index. `left_out` is a line about other files
    that could be weights of the model, "" if there are none.
    """

    files: list[Path]
    named: Mapping[str, str]
    left_out: str


def choose(
    names: Collection[str],
    where: str,
    size: Callable[[str], int] = lambda _: 0,
    named: Callable[[str], str] | None = None,
) -> list[str]:
    """The index of the weights among a folder's file names, or the files that hold the weights; [] if there are none.

    Models that a format is sure of come before doubtful ones, then formats in the registry's order. `size` returns the
    bytes of a file, 0 if they are not known. `named` returns the name to give for a file of a format that stands
    alone, if that is not its path.

    Raises:
        InputError: several files that may each be a model, or parts of a tensor-parallel model and nothing else.
    """
    names, parts = without_parts(names)
    counted = counting(names, size)
    sure = (kind.models(names if kind.stands_alone else counted) for kind in registry.FORMATS)
    doubtful = (kind.doubtful(names) for kind in registry.FORMATS)
    models = next(filter(None, chain(sure, doubtful)), [])
    if len(models) > 1:
        first = ", ".join(printable(files[0], 80) for files in models[:3])
        # Naming a part of a split GGUF opens the whole model, naming a shard of another format does not.
        cut, alone = any(is_part(files[0]) or registry.is_index(files[0]) for files in models), models[0][0]
        cure = "keep one of them there" if cut and not registry.stands_alone(alone) else "name one of the files"
        cure += f", as {printable(named(alone), 120)}" if named and registry.stands_alone(alone) else ""
        raise InputError(f"{where} holds {len(models)} models ({first}{', ...' * (len(models) > 3)}): {cure}")
    if parts and not models:
        first = min(parts)
        raise InputError(f"{first} in {where} {parts[first]}")
    return models[0] if models else []


def left_out(names: Iterable[str], used: Collection[str]) -> str:
    """A line about unused files that could be weights of the model, "" if there are none.

    Mistral's consolidated files repeat the model under other names. In a format that stands alone other files are
    other models.
    """
    kind = registry.format_of_index(min(used))
    others = [] if kind.stands_alone else [n for n in kind.candidates(names) if n not in used]
    rest = [printable(name, 80) for name in others if not name.startswith("consolidated")]
    shown = f"{', '.join(rest[:3])}{', ...' * (len(rest) > 3)}"
    return f"files beside the model that are not read: {shown}" if rest else ""


def weight_files(folder: Path) -> Chosen:
    """The files that make up the model of a folder.

    Raises:
        InputError: no weights, several models, parts of a tensor-parallel one, a missing shard, an index or a
            link that points outside the folder, or no permission.
    """
    try:
        check_folder(folder)
        names = [path.name for path in folder.iterdir() if not path.is_dir()]
        models = of_models(names, lambda name: head_of(folder / name, TELLING))
        chosen = choose(models, printable(str(folder)), lambda name: (folder / name).stat().st_size)
        if not chosen:
            refuse_folders(folder)
            raise InputError(_no_weights(folder))
        if registry.is_index(chosen[0]):
            files, named = _indexed(folder / chosen[0])
            return Chosen(files, named, left_out(names, [file.name for file in files]))
        whole: dict[Path, None] = {}
        for name in chosen:
            if folder / name not in whole:
                whole.update(dict.fromkeys(with_siblings(folder / name)))
        return Chosen(list(whole), {}, left_out(names, [file.name for file in whole]))
    except OSError as error:
        raise cannot_read(folder, error) from None


def of_models(names: Collection[str], head: Callable[[str], bytes]) -> Collection[str]:
    """The names of a folder's files without those that only accompany a model, unless nothing else is there. `head`
    returns the first TELLING bytes of a file.
    """
    held = [(kind, name) for kind in registry.FORMATS for name in kind.named(names)]
    settled = any(kind.models(names) for kind in registry.FORMATS if not kind.stands_alone)
    along = {
        name
        for kind, name in held
        if len(held) > 1 and not (settled and kind.stands_alone) and kind.goes_along(name, partial(head, name))
    }
    return names if all(name in along for _, name in held) else [name for name in names if name not in along]


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    check_inside(index)
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    return [_shard(index.parent, shard, len(shards)) for shard in shards], weight_map


def read_weight_map(index: Path) -> dict[str, str]:
    """weight_map_of for an index file.

    Raises:
        InputError: unreadable, malformed, or it points outside the folder.
    """
    return weight_map_of(read_json(index, _MAX_INDEX), index)


def weight_map_of(found: Mapping[str, Any], index: Path) -> dict[str, str]:
    """Tensor name -> shard, a path within the folder of the index, from the content of an index.

    Raises:
        InputError: malformed, or it points outside the folder.
    """
    kinds = registry.format_of_index(index.name).suffixes
    weight_map = found.get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(s, str) for s in weight_map.values())):
        raise InputError(f"{printable(str(index))} has no weight_map of tensor names to files: fetch it again")
    shards = {shard: PurePosixPath(shard) for shard in set(weight_map.values())}
    for shard, path in shards.items():
        outside = path.is_absolute() or ".." in path.parts or "\\" in shard
        if not shard.lower().endswith(kinds) or outside or not shard.isprintable():
            raise InputError(
                f"{index.name} points to {printable(shard)}, which is not a {kinds[0]} file of its folder: fetch the "
                "model again, or name one of its files"
            )
    return {tensor: str(shards[shard]) for tensor, shard in weight_map.items()}


def with_siblings(file: Path) -> list[Path]:
    """The file and, if its name marks it as one of several parts, all parts in order.

    Raises:
        InputError: a part is missing.
    """
    parts = siblings(file.name) or [file.name]
    return [_shard(file.parent, part, len(parts)) for part in parts]


def _shard(folder: Path, shard: str, total: int) -> Path:
    if not (folder / shard).is_file():
        where = printable(str(folder))
        raise InputError(f"shard {printable(shard)} (one of {total}) is missing from {where}: fetch it again")
    check_inside(folder / shard, folder)
    return folder / shard


def folders_with_weights(files: Iterable[str]) -> list[str]:
    """The folders with weights among files given by their paths in a folder, sorted by depth, then by name."""
    held: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        held.setdefault(folder, []).append(name)
    found = [folder for folder, names in held.items() if folder and registry.holds_weights(names)]
    return sorted(found, key=lambda folder: (folder.count("/"), folder))


def listed_folders(folders: Sequence[str]) -> str:
    """The first few folders, as text for a message."""
    return ", ".join(printable(folder, 80) for folder in folders[:5]) + ", ..." * (len(folders) > 5)


def _one_level_down(folder: Path) -> list[str]:
    """The files one folder below `folder`, by their paths in it."""
    below = [path for path in folder.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    return [f"{path.name}/{file.name}" for path in below for file in path.iterdir()]


def _no_weights(folder: Path) -> str:
    if below := folders_with_weights(_one_level_down(folder)):
        shown = listed_folders(below)
        return f"no weights in {printable(str(folder))} itself, only in its folders ({shown}): name one of them"
    others = registry.unread(path.name for path in folder.iterdir())
    held = f" (it holds {', '.join(others)})" if others else ""
    return f"no weights that can be read in {printable(str(folder))}{held}: name a folder or file that has some"
