"""What a calibration says of a projection beside its spectrum: enough tokens, sequences held out, and position 0."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields

from ..errors import printable

ENOUGH = 8
"""Tokens for each input feature below which ranks come out too low."""
SINK = 0.2
"""Share of the output energy above which ranks are shown without position 0 too."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a projection W and its input x, uncentred throughout.

    `tokens` that C is of, of `cols` input features. `k90` of W C^1/2. `held`: the share of the output energy of
    sequences held out that the best approximation of this rank under C keeps. `sink`: the share of tr(W C W^T) that is
    of position 0, and `apart` the k90 without it where that is much. None where it is not known, or there are no such
    tokens.
    """

    tokens: float
    cols: int
    k90: int | None = None
    held: float | None = None
    sink: float | None = None
    apart: int | None = None

    @property
    def per_feature(self) -> float:
        """Tokens for each input feature."""
        return self.tokens / self.cols

    @property
    def sink_words(self) -> str:
        """`sink 93 %, k90 1, without position 0 82`; "" where position 0 does not hold much of the output energy."""
        if self.sink is None or self.sink <= SINK:
            return ""
        ranks = "" if self.apart is None or self.k90 is None else f", k90 {self.k90}, without position 0 {self.apart}"
        return f"sink {100 * self.sink:.0f} %{ranks}"


@dataclass(frozen=True, slots=True)
class Said:
    """What a file of second moments says of a model's projections: `figures` by address, and `lines` that a user has to
    know of all ranks under it. `is_split`: it has sums of position 0 apart, or is centred, where they do not matter.
    `known` are the names of what is said of any projection: of figures, and `sink` where it is said why there is none.
    `enough`: tokens for each input feature below which ranks come out too low."""

    figures: Mapping[str, Figures]
    lines: tuple[str, ...]
    is_split: bool
    known: Collection[str]
    enough: float


def names_known(figures: Iterable[Figures]) -> Collection[str]:
    """The names of what any of these has, `per_feature` among them."""
    found: set[str] = set()
    for made in figures:
        found |= {"per_feature", *(f.name for f in fields(made) if getattr(made, f.name) is not None)}
    return frozenset(found)


def sink_lines(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Of those whose output energy position 0 has much of, how much, with the rank that is left without it."""
    for address, found in figures.items():
        if found.sink_words:
            yield f"{printable(address)}: {found.sink_words}"


def scarce_line(figures: Iterable[Figures], enough: float = ENOUGH) -> str:
    """That some have too few tokens for their ranks to be believed, "" where none has."""
    few = [found.per_feature for found in figures if found.per_feature < enough]
    if not few:
        return ""
    return (
        f"{len(few)} projection{'s have' if len(few) > 1 else ' has'} fewer than {enough} tokens for each input "
        f"feature (the least {min(few):.1f}): their ranks are too low, give more --tokens or text"
    )


def read_figures(text: str) -> dict[str, Figures]:
    """Those in the metadata of a file, by address; what others wrote there is none."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        found = {address: Figures(**numbers) for address, numbers in json.loads(text).items()}
        if all(map(_is_sound, found.values())):
            return found
    return {}


def _is_sound(made: Figures) -> bool:
    numbers = [x for x in astuple(made) if x is not None]
    return all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in numbers) and made.cols > 0
