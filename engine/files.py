"""Which files of a folder make up the model."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, printable

INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})


def open_regular(file: Path) -> BinaryIO:
    """A file open for reading; a FIFO would wait for a writer, and a device may never end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return open(file, "rb")


def weight_files(folder: Path) -> tuple[list[Path], set[str]]:
    """The safetensors files that make up the model, and the tensor names its index promises.

    The index decides; else model.safetensors; else every top-level file but `consolidated*`, which
    repeat the same weights under Mistral's native names.

    Raises:
        InputError: no weights, a missing shard, an index that points outside the folder, or no permission.
    """
    try:
        return _weight_files(folder)
    except OSError as error:
        raise InputError(f"cannot read {printable(str(folder))}: {error.strerror}") from None


def _weight_files(folder: Path) -> tuple[list[Path], set[str]]:
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], set()
    found = sorted(p for p in folder.glob("*.safetensors"))
    files = [p for p in found if not p.name.startswith("consolidated")] or found
    if not files:
        raise InputError(_no_weights(folder))
    for file in files:
        expected = siblings(file.name)
        for name in expected:
            _check_shard(folder, name, len(expected))
    return files, set()


def _indexed(folder: Path) -> tuple[list[Path], set[str]]:
    weight_map = read_weight_map(folder / INDEX)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        _check_shard(folder, shard, len(shards))
    return [folder / shard for shard in shards], set(weight_map)


def read_weight_map(index: Path) -> dict[str, str]:
    """weight_map_of a file.

    Raises:
        InputError: unreadable, malformed, or it points outside the folder.
    """
    return weight_map_of(read_json(index), index)


def weight_map_of(found: Mapping[str, Any], index: Path) -> dict[str, str]:
    """Tensor name -> shard, every shard a file name without a folder, from an index that was read.

    Raises:
        InputError: malformed, or it points outside the folder.
    """
    weight_map = found.get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(s, str) for s in weight_map.values())):
        raise InputError(f"{printable(str(index))} has no weight_map of tensor names to files")
    for shard in set(weight_map.values()):
        if not shard.endswith(".safetensors") or "/" in shard or "\\" in shard or not shard.isprintable():
            raise InputError(f"{INDEX} points to {printable(shard)}, which is no .safetensors file of its folder")
    return weight_map


def siblings(name: str) -> list[str]:
    """All files of a set, where the name of one says `-00001-of-00003`."""
    numbered = re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.safetensors", name)
    if numbered is None:
        return []
    stem, digits, total = numbered[1], len(numbered[2]), int(numbered[3])
    return [f"{stem}{n:0{digits}}-of-{numbered[3]}.safetensors" for n in range(1, min(total, 10_000) + 1)]


def _check_shard(folder: Path, shard: str, total: int) -> None:
    if not (folder / shard).is_file():
        where = printable(str(folder))
        raise InputError(f"shard {printable(shard)} (one of {total}) is missing from {where}: fetch it again")


def _no_weights(folder: Path) -> str:
    others = sorted({p.suffix for p in folder.iterdir()} & OTHER_WEIGHTS)
    held = f" (it holds {', '.join(others)})" if others else ""
    return f"no .safetensors weights in {printable(str(folder))}{held}: name a folder or file that has them"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: unreadable, not JSON, or no object.
    """
    try:
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise InputError(f"cannot read {printable(str(file))}: {error.strerror}") from None


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """A JSON object from the content of a file.

    Raises:
        InputError: not JSON, or no object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{printable(str(file))} is not valid JSON: fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{printable(str(file))} is not a JSON object")
    return found
