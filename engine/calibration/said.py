"""What a calibration tells of projections besides their spectra: enough tokens, held-out sequences, position 0."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields

from ..errors import printable

ENOUGH = 8
"""With fewer tokens than this for each input feature, ranks come out too low."""
SINK = 0.2
"""If position 0 has more than this share of the output energy, ranks are also shown without it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a projection W with input x, all uncentred.

    C is made from `tokens` tokens and has `cols` input features. `k90` is that of W C^1/2. `held`: the share of the
    output energy of held-out sequences that the best approximation of this rank under C keeps. `sink`: the share of
    tr(W C W^T) that is position 0's; `apart`: the k90 without position 0, if that share is large. None if not known,
    or if there are no such tokens.
    """

    tokens: float
    cols: int
    k90: int | None = None
    held: float | None = None
    sink: float | None = None
    apart: int | None = None

    @property
    def per_feature(self) -> float:
        """How many tokens there are for each input feature."""
        return self.tokens / self.cols

    @property
    def sink_words(self) -> str:
        """`sink 93 %, k90 1, without position 0 82`; "" if position 0 has little of the output energy."""
        if self.sink is None or self.sink <= SINK:
            return ""
        ranks = "" if self.apart is None or self.k90 is None else f", k90 {self.k90}, without position 0 {self.apart}"
        return f"sink {100 * self.sink:.0f} %{ranks}"


@dataclass(frozen=True, slots=True)
class Said:
    """What a file of second moments tells of a model's projections: `figures` by address, and `lines` for the user
    about all ranks under it. `is_split`: it has separate sums of position 0, or is centred, where they do not matter.
    `known`: the names of the figures that some projection has, and `sink` if a line says why there is none. `enough`:
    with fewer tokens for each input feature, ranks come out too low."""

    figures: Mapping[str, Figures]
    lines: tuple[str, ...]
    is_split: bool
    known: Collection[str]
    enough: float


def names_known(figures: Iterable[Figures]) -> Collection[str]:
    """The names of the figures that any of these has, including `per_feature`."""
    found: set[str] = set()
    for made in figures:
        found |= {"per_feature", *(f.name for f in fields(made) if getattr(made, f.name) is not None)}
    return frozenset(found)


def sink_lines(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a line for each projection with much output energy at position 0: how much, and the rank without it."""
    for address, found in figures.items():
        if found.sink_words:
            yield f"{printable(address)}: {found.sink_words}"


def scarce_line(figures: Iterable[Figures], enough: float = ENOUGH) -> str:
    """A line that says how many projections have too few tokens for their ranks to be right, "" if none has."""
    few = [found.per_feature for found in figures if found.per_feature < enough]
    if not few:
        return ""
    return (
        f"{len(few)} projection{'s have' if len(few) > 1 else ' has'} fewer than {enough} tokens for each input "
        f"feature (the least {min(few):.1f}): their ranks are too low, give more --tokens or text"
    )


def read_figures(text: str) -> dict[str, Figures]:
    """Read the figures in a file's metadata, by address; {} if something else is there."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        found = {address: Figures(**numbers) for address, numbers in json.loads(text).items()}
        if all(map(_is_sound, found.values())):
            return found
    return {}


def _is_sound(made: Figures) -> bool:
    numbers = [x for x in astuple(made) if x is not None]
    return all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in numbers) and made.cols > 0
