"""Files that belong together by their names: `-00001-of-00003` marks the first of three parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(\.[A-Za-z]+)")
_VARIANT = re.compile(r"(.+?)(?:-\d+-of-\d+)?\.\w+(?:-\d+-of-\d+)?(\.[A-Za-z]+)")
_NATIVE = re.compile(r"(consolidated\.)\d+(\.[A-Za-z]+)")
_MAX_PARTS = 10_000


def is_part(name: str) -> bool:
    """True if a file's name marks it as one of several parts."""
    return _NUMBERED.fullmatch(name) is not None


def siblings(name: str) -> list[str]:
    """The names of all files of a set, in order, from a name like `-00001-of-00003`; [] for any other name."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return []
    stem, digits, total = numbered[1], len(numbered[2]), int(numbered[3])
    return [f"{stem}{n:0{digits}}-of-{numbered[3]}{numbered[4]}" for n in range(1, min(total, _MAX_PARTS) + 1)]


def grouped(names: Iterable[str]) -> list[list[str]]:
    """The files of each model, in the order of the names: numbered parts are grouped, as are `consolidated.00.pth` ...

    A projector (mmproj) is left out, unless there is nothing else.
    """
    listed = list(names)
    models: dict[str, list[str]] = {}
    for name in [n for n in listed if "mmproj" not in n] or listed:
        numbered, native = _NUMBERED.fullmatch(name), _NATIVE.fullmatch(name)
        model = f"{numbered[1]}{numbered[3]}{numbered[4]}" if numbered else "".join(native.groups()) if native else name
        models.setdefault(model, []).append(name)
    return list(models.values())


def counting(names: Iterable[str], size: Callable[[str], int]) -> list[str]:
    """The names that may be the model's: without variants (`model.fp16.safetensors`) of plain files that are there too,
    and without a stub under the name of the whole beside its numbered parts.

    `size` returns the bytes of a file, 0 if they are not known.
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
    """True if a file is less than half as large as the complete set of parts with its name."""
    return set(siblings(parts[0])) <= set(parts) and 2 * size(whole) < max(1, sum(map(size, parts)))
