"""Which files of a folder make up the model."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, printable

INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".gguf")
OTHER_WEIGHTS = frozenset({".ckpt", ".h5", ".msgpack", ".onnx"})

MAX_CONFIG = 8 << 20  # the largest config.json name 21,843 labels twice: 2 MB
_MAX_INDEX = 100_000_000
_MAX_PARTS = 10_000
_ALWAYS_HELD = 1 << 20
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: no memory for ways back
_NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(\.[a-z]+)")
_TRAINER_STATE = re.compile(
    r"(?:training_args|trainer_state|(?:optimizer|scheduler|scaler|rng_state|random_states|sampler|dl_state_dict)(?:_\d+)?"
    r"|.*optim_states)\.(?:bin|pt|pth)"
)


def open_regular(file: Path) -> BinaryIO:
    """A file open for reading; a FIFO would wait for a writer, and a device may never end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return open(file, "rb")


def is_trainer_state(name: str) -> bool:
    """Whether a file of this name is what trainers save beside a model."""
    return _TRAINER_STATE.fullmatch(name) is not None


def choose(names: Collection[str], where: str) -> list[str]:
    """Of the file names of a folder: the index of the weights, or the files that hold them; [] where none does.

    safetensors come before PyTorch files, as in transformers, and what transformers saves before anything else;
    `consolidated*` repeats the same weights under Mistral's native names.

    Raises:
        InputError: several files that may each be a model.
    """
    held = {suffix: sorted(n for n in names if n.endswith(suffix)) for suffix in SUFFIXES}
    plain = held[".safetensors"]
    pickled = [n for suffix in TORCH_SUFFIXES for n in held[suffix] if not is_trainer_state(n)]
    shards = [n for n in pickled if n.startswith("pytorch_model-") and _NUMBERED.fullmatch(n)]
    for name in (INDEX, "model.safetensors"):
        if name in names:
            return [name]
    if plain:
        return [n for n in plain if not n.startswith("consolidated")] or plain
    for name in (TORCH_INDEX, "pytorch_model.bin"):
        if name in names:
            return [name]
    return shards or _one(_models(held[".gguf"]), where) or _one(_models(pickled), where)


def _models(names: list[str]) -> list[list[str]]:
    """The files of each model: numbered parts belong together; a GGUF projector goes with a model, and is not it."""
    models: dict[str, list[str]] = {}
    for name in [n for n in names if "mmproj" not in n] or names:
        numbered = _NUMBERED.fullmatch(name)
        models.setdefault(f"{numbered[1]}{numbered[3]}{numbered[4]}" if numbered else name, []).append(name)
    return list(models.values())


def _one(models: list[list[str]], where: str) -> list[str]:
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
        chosen = choose([path.name for path in folder.iterdir()], printable(str(folder)))
        if not chosen:
            raise InputError(_no_weights(folder))
        if chosen[0] in (INDEX, TORCH_INDEX):
            return _indexed(folder / chosen[0])
        files: dict[Path, None] = {}
        for name in chosen:
            if folder / name not in files:
                files.update(dict.fromkeys(with_siblings(folder / name)))
        return list(files), set()
    except OSError as error:
        raise InputError(f"cannot read {printable(str(folder))}: {error.strerror}") from None


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
    kinds = TORCH_SUFFIXES if index.name == TORCH_INDEX else (".safetensors",)
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


def siblings(name: str) -> list[str]:
    """All files of a set, where the name of one says `-00001-of-00003`."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return []
    stem, digits, total = numbered[1], len(numbered[2]), int(numbered[3])
    return [f"{stem}{n:0{digits}}-of-{numbered[3]}{numbered[4]}" for n in range(1, min(total, _MAX_PARTS) + 1)]


def _shard(folder: Path, shard: str, total: int) -> Path:
    if not (folder / shard).is_file():
        where = printable(str(folder))
        raise InputError(f"shard {printable(shard)} (one of {total}) is missing from {where}: fetch it again")
    check_inside(folder / shard)
    return folder / shard


def check_inside(file: Path) -> None:
    """Refuse a link out of its folder: a model from elsewhere may not have other files read.

    The Hub cache is made of links, from snapshots/<commit> to the blobs of the same model.

    Raises:
        InputError: it is one.
    """
    folder, real = file.parent.resolve(), file.resolve()
    blobs = folder.parent.parent / "blobs"
    if not real.is_relative_to(folder) and not (folder.parent.name == "snapshots" and real.parent == blobs):
        raise InputError(
            f"{printable(str(file))} is a link out of its folder: name the folder of {printable(str(real))}"
        )


def _no_weights(folder: Path) -> str:
    others = sorted({p.suffix for p in folder.iterdir()} & OTHER_WEIGHTS)
    held = f" (it holds {', '.join(others)})" if others else ""
    return f"no weights that can be read in {printable(str(folder))}{held}: name a folder or file that has some"


def read_json(file: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes.

    Raises:
        InputError: unreadable, too large, not JSON, or no object.
    """
    try:
        if file.stat().st_size > limit:
            raise InputError(f"{printable(str(file))} is larger than {limit} bytes: it is no file of a model")
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise InputError(f"cannot read {printable(str(file))}: {error.strerror}") from None


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """A JSON object from the content of a file.

    Raises:
        InputError: not JSON, or no object.
    """
    try:
        check_dense(data)
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{printable(str(file))} is not valid JSON: fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{printable(str(file))} is not a JSON object")
    return found


def check_dense(data: bytes) -> None:
    """Refuse large JSON whose values are so small that Python would need 20 to 60 times its size to hold them.

    What is left takes 2 to 8 times its size, 17 at most.
    The densest entry of a safetensors header has 50 bytes: 3 brackets, 4 colons, 5 commas. What stands in texts
    does not count; it is taken out only where the plain counts are too high.

    Raises:
        ValueError: it is denser than that.
    """
    if len(data) <= _ALWAYS_HELD or max(needed := _needed(data)) <= len(data):
        return
    for text in _TEXT.finditer(data):
        needed = [all_ - within for all_, within in zip(needed, _needed(text[0]), strict=True)]
    if max(needed) > len(data):
        raise ValueError("it holds too many values for its size")


def _needed(data: bytes) -> list[int]:
    """The bytes that so many brackets, colons and commas take at least."""
    return [16 * (data.count(b"[") + data.count(b"{")), 12 * data.count(b":"), 5 * data.count(b",")]
