"""Files that belong together by their names: `-00001-of-00003` says that one is a part of three."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(\.[a-z]+)")
_NATIVE = re.compile(r"(consolidated\.)\d+(\.[a-z]+)")
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
