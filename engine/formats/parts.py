"""Files that belong together by their names: `-00001-of-00003` says that one is a part of three."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(\.[A-Za-z]+)")
_VARIANT = re.compile(r"(.+?)(?:-\d+-of-\d+)?\.\w+(?:-\d+-of-\d+)?(\.[A-Za-z]+)")
_NATIVE = re.compile(r"(consolidated\.)\d+(\.[A-Za-z]+)")
_MAX_PARTS = 10_000


def is_part(name: str) -> bool:
    """Whether a file's name says that it is one of several parts."""
    return _NUMBERED.fullmatch(name) is not None


def siblings(name: str) -> list[str]:
    """All files of a set in order, where the name of one says `-00001-of-00003`; [] where it does not."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return []
    stem, digits, total = numbered[1], len(numbered[2]), int(numbered[3])
    return [f"{stem}{n:0{digits}}-of-{numbered[3]}{numbered[4]}" for n in range(1, min(total, _MAX_PARTS) + 1)]


def grouped(names: Iterable[str]) -> list[list[str]]:
    """The files of each model, in the order of the names: numbered parts belong together, and `consolidated.00.pth` ...

    A projector (mmproj) goes with a model, and is one only where there is nothing else.
    """
    listed = list(names)
    models: dict[str, list[str]] = {}
    for name in [n for n in listed if "mmproj" not in n] or listed:
        numbered, native = _NUMBERED.fullmatch(name), _NATIVE.fullmatch(name)
        model = f"{numbered[1]}{numbered[3]}{numbered[4]}" if numbered else "".join(native.groups()) if native else name
        models.setdefault(model, []).append(name)
    return list(models.values())


def counting(names: Iterable[str], size: Callable[[str], int]) -> list[str]:
    """The names that may be those of the model: no variant (`model.fp16.safetensors`) of a plain file that is there, no
    stub under the name of the whole beside numbered parts.

    `size` says how many bytes a file has, 0 where that is not known.
    """
    held = set(names)
    sets: dict[str, list[str]] = {}
    for name in held:
        if numbered := _NUMBERED.fullmatch(name):
            sets.setdefault(f"{numbered[1].rstrip('-')}{numbered[4]}", []).append(name)
    stubs = {whole for whole, parts in sets.items() if whole in held and _is_stub(whole, parts, size)}
    variants = {
        name
        for name in held
        if (found := _VARIANT.fullmatch(name)) and {f"{found[1]}{found[2]}"} & (held | sets.keys())
    }
    return sorted(held - stubs - variants)


def _is_stub(whole: str, parts: list[str], size: Callable[[str], int]) -> bool:
    """Whether a file is less than half of the complete set of parts that goes by its name."""
    return set(siblings(parts[0])) <= set(parts) and 2 * size(whole) < max(1, sum(map(size, parts)))
