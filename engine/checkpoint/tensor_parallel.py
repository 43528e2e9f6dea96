"""Files of training and serving programs that hold a part of every matrix: recognised by name, and refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, printable


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a program names its parts. The number `rank`, from 0, differs between parts of one matrix. `cure` says what
    to do. `always`: a file is never a whole model; without it, rank 0 is one if there is no other.
    """

    program: str
    name: re.Pattern[str]
    cure: str
    always: bool = False


_ORIGINAL = "open the model that they were made from"
_KINDS = (
    _Kind(
        "DeepSpeed's ZeRO-3",
        re.compile(r"(?:bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_\d+_model_states\.[A-Za-z]+"),
        "join them with its zero_to_fp32.py",
        always=True,
    ),
    _Kind(
        "GPT-NeoX",
        re.compile(r"layer_\d+-model_(?P<rank>\d+)-model_states\.[A-Za-z]+"),
        "join them with its tools/ckpts/convert_neox_to_hf.py",
        always=True,
    ),
    _Kind(
        "DeepSpeed",
        re.compile(r"mp_rank_(?P<rank>\d+)_model_states\.[A-Za-z]+"),
        "save the whole model with the program that trained it",
    ),
    _Kind("vLLM", re.compile(r"model-rank-(?P<rank>\d+)-part-\d+\.[A-Za-z]+"), _ORIGINAL),
    _Kind("TensorRT-LLM", re.compile(r"rank(?P<rank>\d+)\.[A-Za-z]+"), _ORIGINAL),
)
_MEGATRON = _Kind(
    "Megatron",
    re.compile(r"mp_rank_(?P<rank>\d+)(?:_\d+)*"),
    "join them with its tools/checkpoint/convert.py",
)


def without_parts(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Separate a folder's names: those that are no such part, and for each part what it is and what to do."""
    listed = sorted(names)
    parts: dict[str, str] = {}
    for kind in _KINDS:
        ranks = {name: int(found["rank"]) for name in listed if (found := kind.name.fullmatch(name))}
        # Beside files of single layers, DeepSpeed's own file holds everything except weights.
        if ranks and (kind.always or max(ranks.values()) or parts):
            parts |= {name: _description(kind, rank, set(ranks.values())) for name, rank in ranks.items()}
    return [name for name in listed if name not in parts], parts


def check_file(file: Path) -> None:
    """Refuse a file that is such a part, judging by its name and the names beside it.

    Raises:
        InputError: it is a part.
    """
    check_folder(file.parent)
    check_name(str(file), file.name, _names(file.parent))


def check_name(shown: str, name: str, beside: Iterable[str]) -> None:
    """Refuse a file that is such a part, by its name and those `beside` it; the message calls the file `shown`.

    Raises:
        InputError: it is a part.
    """
    _, parts = without_parts({name, *beside})
    if name in parts:
        raise InputError(f"{printable(shown)} {parts[name]}")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds one part of a Megatron model, judging by its name and the names beside it.

    Raises:
        InputError: it is a part.
    """
    place = folder.absolute()
    if _MEGATRON.name.fullmatch(place.name):
        refuse_folders(place.parent, place.name)


def refuse_folders(folder: Path, named: str = "") -> None:
    """refuse_ranks for the folders in a folder."""
    held = [name for name in _names(folder) if _MEGATRON.name.fullmatch(name) and (folder / name).is_dir()]
    refuse_ranks(held, str(folder / "x").removesuffix("x"), named)


def refuse_ranks(folders: Iterable[str], where: str, named: str = "") -> None:
    """Refuse Megatron's folders, each of which holds a part: the folder `named`, else the first. The message puts
    `where` before the name.

    Tensors are split over the first number in the folders' names, layers over the second.

    Raises:
        InputError: there are several, or a single one that is not the first.
    """
    ranks = {part: int(found["rank"]) for part in sorted(folders) if (found := _MEGATRON.name.fullmatch(part))}
    if not ranks or (named and named not in ranks) or (len(ranks) == 1 and not any(ranks.values())):
        return
    first = named or min(ranks)
    raise InputError(f"{printable(where + first)} {_description(_MEGATRON, ranks[first], set(ranks.values()))}")


def _names(folder: Path) -> list[str]:
    """The names in a folder; [] if it cannot be listed, which does not mean that its files cannot be read."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _description(kind: _Kind, rank: int, ranks: set[int]) -> str:
    """The end of a sentence about a part, if parts of these ranks exist."""
    count = max(ranks) + 1
    if count == 1:
        return f"is one of the files over which {kind.program} spreads a model: {kind.cure}"
    least = "" if len(ranks) == count else "at least "
    return f"is part {rank + 1} of {least}{count} of a tensor-parallel model saved by {kind.program}: {kind.cure}"
