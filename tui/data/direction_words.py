"""The facts about a projection's first direction in words: a sentence, or lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .carriers import DirectionSide
from .direction_facts import Facts

if TYPE_CHECKING:
    from rankscope.engine.derive.tokens import Token, TokenEnds

_ONE, _FEW = 1.5, 8.0
"""Below the first participation a direction is called one channel; below the second its channels are named."""
_TOKEN = 22
"""Characters of a token's text."""


def sentence(known: Facts) -> str:
    """Describe the first direction in one line."""
    if not known.values[0]:
        return "sigma_1 is 0: a matrix of zeros has no first direction"
    what = "sigma_1"
    if known.is_plane and known.ratio is not None:
        what = f"sigma_1 and sigma_2 are a plane ({100 * (known.ratio - 1):.2g} % apart)"
    energy = ""
    if known.energies:
        share = sum(known.energies[: 2 if known.is_plane else 1])
        under = f" under {known.weighting}" if known.weighting else ""
        energy = f", {_percent(share)} of the output energy{under}"
    gauge = ""
    if known.survives is not None:
        change = f"({known.ratio:.2f} -> {known.ratio_fixed:.2f})"
        gauge = f"; not gauge {change}" if known.survives else f"; its excess is gauge {change}"
    return f"{what}{':' if known.is_plane else ' ='} {_carried(known)}{energy}{gauge}"


def _carried(known: Facts) -> str:
    sides = [(known.outputs, "output", "row"), (known.inputs, "input", "column")]
    for side, name, line in sides:
        if side.participation < _ONE and side.size > 1:  # a plane has two at least
            first = side.carriers[0]
            times = "" if first.over_median is None else f", {first.over_median:.1f} x the median {line}"
            return f"one {_called(known.projection, name)}: {name} {first.channel}{times}"
    for side, name, _ in sides:
        if side.participation < _FEW and side.size > _FEW:
            held = side.carriers[: max(2, round(side.participation))]
            names = ", ".join(str(carrier.channel) for carrier in held)
            return f"few {name}s: {names} hold {_percent(sum(c.share for c in held))} of it"
    outputs = known.outputs
    return f"spread over {outputs.participation:.0f} of {outputs.size} outputs"


def _called(p: Projection, name: str) -> str:
    """The word for a channel; between up and down it is a neuron."""
    is_neuron = (p.role in ("gate", "up") and name == "output") or (p.role == "down" and name == "input")
    return "neuron" if is_neuron else "channel"


def lines(known: Facts) -> Iterator[str]:
    """All facts in lines of at most 74 characters, except for a sentence or an address that is longer."""
    p = known.projection
    yield f"{printable(p.address)}  {p.rows} x {p.cols}"
    yield sentence(known)
    if known.fixed is not None and known.fixed.cosine is not None:
        yield f"fixing the gauge turns it: {_angle(known.fixed.cosine, known.fixed.chance)}"
    yield ""
    energy = f"   output energy{' under ' + known.weighting if known.weighting else ''}" if known.energies else ""
    yield f"   {'sigma':>10}   of sigma_1{energy}"
    for number, value in enumerate(known.values):
        share = value / known.values[0] if known.values[0] else 0.0
        held = f"  {_percent(known.energies[number]):>8} {_bar(known.energies[number])}" if known.energies else ""
        yield f" {number + 1} {value:>10.4g}   {share:5.3f} {_bar(share):<10}{held}".rstrip()
    yield ""
    left = list(_side_lines(known.outputs, "outputs"))
    right = list(_side_lines(known.inputs, "inputs"))
    for row in range(max(len(left), len(right))):
        yield f"{left[row] if row < len(left) else '':<37}{right[row] if row < len(right) else ''}".rstrip()
    for near in known.neighbours:
        yield f"{printable(near.address)}: {_angle(near.cosine, near.chance)}"


def _angle(cosine: float, chance: float) -> str:
    degrees = float(np.degrees(np.arccos(cosine)))
    return f"cosine {cosine:.2f}, {degrees:.0f} degrees (chance {chance:.2f})"


def token_lines(ends: TokenEnds) -> Iterator[str]:
    """The tokens at both ends of a direction, in lines of at most 74 characters, except for a reason that is longer."""
    yield f"a reading aid: tokens at the two ends of {ends.vector}, by rows of {ends.matrix}"
    yield "the sign of a direction is arbitrary: neither end is the positive one"
    if ends.unnamed:
        yield f"numbers of tokens, not texts: {ends.unnamed}"
    for one, other in zip(ends.high, ends.low, strict=True):
        yield f"{_token(one):<37}{_token(other)}".rstrip()


def _token(token: Token) -> str:
    text = f"#{token.number}" if token.text is None else f"'{printable(token.text, _TOKEN)}'"
    return f"{token.score:>+10.3g}  {text}"


def _side_lines(side: DirectionSide, name: str) -> Iterator[str]:
    yield f"{name}: {side.participation:.1f} of {side.size} carry it"
    for carrier in side.carriers:
        times = "" if carrier.over_median is None else f"  {carrier.over_median:.1f} x median"
        yield f"{carrier.channel:>6} {_percent(carrier.share):>6} {_bar(carrier.share, 5):<5}{times}"


def _bar(share: float, width: int = 10) -> str:
    return "\u2588" * round(min(1.0, share) * width)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
