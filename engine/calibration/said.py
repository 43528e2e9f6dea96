"""What a calibration says of a projection beside its spectrum: enough tokens, sequences held out, and position 0."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass

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
    of position 0, and `apart` the k90 without it where that is much. None where there are no such tokens.
    """

    tokens: int
    cols: int
    k90: int
    held: float | None = None
    sink: float | None = None
    apart: int | None = None

    @property
    def per_feature(self) -> float:
        """Tokens for each input feature."""
        return self.tokens / self.cols


def sink_lines(figures: Mapping[str, Figures], shown: Iterable[str]) -> Iterator[str]:
    """Of these addresses: those whose output energy position 0 has much of, with the rank that is left without it."""
    for address in shown:
        found = figures.get(address)
        if found is not None and found.apart is not None and found.sink is not None:
            ranks = f"k90 {found.k90}, without position 0 {found.apart}"
            yield f"{printable(address)}: sink {100 * found.sink:.0f} %, {ranks}"


def read_figures(text: str) -> dict[str, Figures]:
    """Those in the metadata of a file, by address; what others wrote there is none."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        found = {address: Figures(**numbers) for address, numbers in json.loads(text).items()}
        if all(type(x) in (int, float, type(None)) for made in found.values() for x in astuple(made)):
            return found
    return {}
