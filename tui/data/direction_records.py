"""The facts about a projection's first direction for programs: as JSON, and as a row of CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .carriers import DirectionSide
from .direction_facts import Facts, Neighbour
from .direction_words import sentence

if TYPE_CHECKING:
    from rankscope.engine.derive.tokens import TokenEnds


def record(known: Facts) -> dict[str, object]:
    """All facts as a JSON object."""
    ratio = known.ratio
    return {
        "address": known.projection.address,
        "rows": known.projection.rows,
        "cols": known.projection.cols,
        "sentence": sentence(known),
        "singular_values": list(known.values),
        "sigma_1_over_sigma_2": ratio,
        "fixed_sigma_1_over_sigma_2": known.ratio_fixed,
        "fixed_cosine": None if known.fixed is None else known.fixed.cosine,
        "survives_gauge": known.survives,
        "plane": known.is_plane,
        "weighting": known.weighting,
        "output_energy": list(known.energies),
        "outputs": _side_record(known.outputs),
        "inputs": _side_record(known.inputs),
        "neighbours": [{"address": n.address, "cosine": n.cosine, "chance": n.chance} for n in known.neighbours],
    }


def _side_record(side: DirectionSide) -> dict[str, object]:
    carriers = [
        {"channel": c.channel, "share": c.share, "norm": c.norm, "over_median": c.over_median} for c in side.carriers
    ]
    return {"size": side.size, "participation": side.participation, "carriers": carriers}


def token_record(ends: TokenEnds) -> dict[str, object]:
    """The tokens at both ends as a JSON object."""
    return {
        "vector": ends.vector,
        "matrix": ends.matrix,
        "note": "a reading aid; the sign of a direction is arbitrary",
        "unnamed": ends.unnamed or None,
        "ends": [[{"token": t.number, "text": t.text, "score": t.score} for t in end] for end in (ends.high, ends.low)],
    }


def row(known: Facts) -> dict[str, object]:
    """The facts as a flat record, with the main channel of each side; None for missing facts."""
    p = known.projection
    layer = -1 if p.layer is None else p.layer
    return {
        **{name: getattr(p, name) for name in ("address", "tower", "layer", "block", "role", "expert", "rows", "cols")},
        "sigma_1": known.values[0],
        "sigma_2": known.values[1] if len(known.values) > 1 else None,
        "sigma_1_over_sigma_2": known.ratio,
        "fixed_sigma_1_over_sigma_2": known.ratio_fixed,
        "fixed_cosine": None if known.fixed is None else known.fixed.cosine,
        "survives_gauge": known.survives,
        "plane": known.is_plane,
        "weighting": known.weighting or None,
        "output_energy": known.energies[0] if known.energies else None,
        **_side_row("outputs", known.outputs),
        **_side_row("inputs", known.inputs),
        **_neighbour_row("before", next((near for near in known.neighbours if near.layer < layer), None)),
        **_neighbour_row("after", next((near for near in known.neighbours if near.layer > layer), None)),
        "what": sentence(known),
    }


def _side_row(name: str, side: DirectionSide) -> dict[str, object]:
    first = side.carriers[0]
    return {
        f"{name}_participation": side.participation,
        f"{name}_first_channel": first.channel,
        f"{name}_first_share": first.share,
        f"{name}_first_norm": first.norm,
        f"{name}_first_over_median": first.over_median,
    }


def _neighbour_row(name: str, near: Neighbour | None) -> dict[str, object]:
    return {
        f"{name}_cosine": None if near is None else near.cosine,
        f"{name}_chance": None if near is None else near.chance,
    }
