"""What the first direction of a projection is made of: its leading singular triplets as numbers, and as words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.derive.directions import Directions, directions_of, unpacked
from rankscope.engine.derive.weighting import WEIGHED, can_be_made, is_weighted
from rankscope.engine.errors import WeightsError, printable
from rankscope.engine.spectrum import Projection, Values

from .model import Model
from .session import Session

if TYPE_CHECKING:
    from rankscope.engine.derive.fixing import Gauge
    from rankscope.engine.derive.norm_weighting import NormWeighting

PLANE = 1.05
"""Below this sigma_1 / sigma_2 the first two directions are told apart by little: the words speak of their plane."""
READS, WRITES = ("query", "key", "value", "gate", "up"), ("output", "down")
"""Roles whose inputs, and whose outputs, are channels of the residual stream."""
_ONE, _FEW = 1.5, 8.0
"""Participation below which a direction is one channel, and below which its channels are named."""
_CARRIERS = 5


@dataclass(frozen=True, slots=True)
class Carrier:
    """A channel that carries a direction: its number, its share u_i^2 of it, and the norm of its row or column with how
    many times the median that is (None where the median is 0)."""

    channel: int
    share: float
    norm: float
    over_median: float | None


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a direction, of `size` outputs or inputs. `participation` is 1 / sum u^4: 1 where one channel holds
    all of it, `size` where all hold as much. `carriers` are those with the largest shares, descending."""

    size: int
    participation: float
    carriers: tuple[Carrier, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The same projection in a neighbouring layer, and the cosine of the angle between the first directions (or planes)
    of both where they meet the residual stream; by chance it is 1 / sqrt n."""

    address: str
    cosine: float
    chance: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the first directions of a projection.

    `energies` are the shares sigma_i^2 v_i^T C v_i / tr(W C W^T) of the output energy, C = I unless `weighting` says
    under which; empty where tr(W C W^T) is not known. Shares and participation are of the first direction, and of both
    of the plane where that is one (`is_plane`). `ratio_fixed` is sigma_1 / sigma_2 in the fixed gauge, None where that
    is not known, or the same matrix.
    """

    projection: Projection
    values: tuple[float, ...]
    energies: tuple[float, ...]
    weighting: str
    is_plane: bool
    outputs: Side
    inputs: Side
    neighbours: tuple[Neighbour, ...] = ()
    ratio_fixed: float | None = None

    @property
    def survives(self) -> bool | None:
        """Whether the first value stands out in the fixed gauge by at least half of what it does in the raw one; None
        where that is not known, or of a plane."""
        if self.ratio is None or self.ratio_fixed is None or self.is_plane:
            return None
        return self.ratio_fixed - 1 >= (self.ratio - 1) / 2

    @property
    def ratio(self) -> float | None:
        """sigma_1 / sigma_2, None where there is no second one."""
        return self.values[0] / self.values[1] if len(self.values) > 1 and self.values[1] else None


@dataclass(frozen=True, slots=True)
class Frame:
    """What a model says of the directions of its projections: the gains of its norms, and what its fixed gauge is."""

    gains: NormWeighting
    gauge: Gauge

    def fixed(self, projection: Projection) -> Projection | None:
        """A projection in the fixed gauge, None where that is not known, or it is the projection itself."""
        found = self.gauge.fixed(projection)
        return None if found.problem is not None or found.key == projection.key else found


def frame_of(model: Model) -> Frame | None:
    """None of a model of which only what is stored is known. What is asked of it reads the gains of norms."""
    if model.checkpoint is None:
        return None
    from rankscope.engine.derive.fixing import Gauge
    from rankscope.engine.derive.norm_weighting import NormWeighting

    return Frame(NormWeighting(model.checkpoint), Gauge(model.checkpoint, model.tree.projections))


def neighbours_of(session: Session, projection: Projection) -> list[Projection]:
    """The same projection in the layers before and after it, of those that have it."""
    same = [p for p in session.raw.tree.projections if _kind(p) == _kind(projection) and p.problem is None]
    if projection.layer is None or projection.role not in READS + WRITES:
        return []
    layers = {p.layer: p for p in same}
    found = sorted(layer for layer in layers if layer is not None)
    at = found.index(projection.layer) if projection.layer in found else -1
    return [layers[layer] for layer in (*found[:at][-1:], *found[at + 1 :][:1])] if at >= 0 else []


def wanted_for(session: Session, projection: Projection, frame: Frame | None) -> list[Projection]:
    """What has to be stored for the facts of a projection as it is: its directions, first, those of its neighbours, and
    its spectrum in the fixed gauge. Reads the gains of norms."""
    fixed = None if frame is None else frame.fixed(projection)
    return [*_rows(session, projection), *([] if fixed is None else [fixed])]


def _rows(session: Session, projection: Projection) -> list[Projection]:
    return list(map(directions_of, (projection, *neighbours_of(session, projection))))


def facts(session: Session, shown: Projection, frame: Frame | None) -> Facts | None:
    """The facts of a projection, in whatever state; None where its directions are not stored. Where there is no frame
    there are no angles, and nothing is said of the gauge. Reads files."""
    projection = shown.parents[0]
    if not session.has(directions_of(projection)):
        return None
    rows = _rows(session, projection)
    read = session.read([row.key for row in rows if session.has(row)])
    own = read.get(rows[0].key)
    if own is None:
        return None
    found = unpacked(rows[0], own)
    size = 2 if _is_plane(found) else 1
    angles = []
    for row in rows[1:]:
        if row.key in read and frame is not None:
            near = _cosine(frame.gains, (projection, found), (row.parents[0], unpacked(row, read[row.key])))
            angles += [] if near is None else [near]
    return Facts(
        projection=projection,
        values=tuple(found.values.tolist()),
        energies=tuple(_energies(session, shown, found)),
        weighting=shown.derived.weighting if shown.derived is not None else "",
        is_plane=size == 2,
        outputs=_side(found.left[:, :size], found.row_norms),
        inputs=_side(found.right[:, :size], found.column_norms),
        neighbours=tuple(angles),
        ratio_fixed=None if frame is None else _ratio_fixed(session, frame.fixed(projection)),
    )


def _ratio_fixed(session: Session, fixed: Projection | None) -> float | None:
    """sigma_1 / sigma_2 of a stored spectrum in the fixed gauge."""
    if fixed is None or not session.has(fixed):
        return None
    values = session.read([fixed.key]).get(fixed.key)
    return float(values[0] / values[1]) if values is not None and len(values) > 1 and values[1] else None


def _kind(p: Projection) -> tuple[object, ...]:
    return p.tower, p.block, p.role, p.expert


def _is_plane(found: Directions) -> bool:
    return len(found.values) > 1 and 0 < found.values[0] < PLANE * found.values[1]


def _side(vectors: Values, norms: Values) -> Side:
    shares = (vectors**2).mean(axis=1)
    median = float(np.median(norms))
    best = np.argsort(-shares, kind="stable")[:_CARRIERS].tolist()
    carriers = [
        Carrier(n, float(shares[n]), float(norms[n]), float(norms[n]) / median if median else None) for n in best
    ]
    return Side(len(shares), float(1 / (shares**2).sum()), tuple(carriers))


def _energies(session: Session, shown: Projection, found: Directions) -> Iterator[float]:
    """See Facts."""
    squares = found.values**2
    total = float((found.row_norms**2).sum())
    if is_weighted(shown):
        moment = _moment(shown)
        if moment is None:
            return
        form, numbers = moment
        squares = squares * np.array([_through(form, numbers, v) for v in found.right.T])
        entry = session.entry(shown)
        if form == "diagonal":
            total = float((found.column_norms**2) @ numbers[0])
        elif entry is not None:
            total = entry.provenance.frobenius_norm**2
        else:
            return
    if total > 0:
        yield from (squares / total).tolist()


def _moment(shown: Projection) -> tuple[str, list[Values]] | None:
    """Form and numbers of the second moment of what flows into a projection under a weighting."""
    made = shown.derived
    if made is None or shown.problem is not None or not made.formula.startswith(WEIGHED) or not can_be_made(shown):
        return None
    numbers = [operand.load() for operand in made.operands if operand.load is not None]
    return made.formula.removeprefix(WEIGHED), numbers


def _through(form: str, numbers: Sequence[Values], v: Values) -> float:
    """v^T C v; the forms are those of engine/moment."""
    if form == "diagonal":
        return float(numbers[0] @ v**2)
    if form == "full":
        return float(v @ (numbers[0] @ v))
    scaled = numbers[0] * v
    return float(((scaled - scaled.mean()) ** 2).sum() + (numbers[1] @ v) ** 2)


def _cosine(
    gains: NormWeighting, one: tuple[Projection, Directions], other: tuple[Projection, Directions]
) -> Neighbour | None:
    """Of the smallest angle between what both span in the residual stream; None where it is not known how they meet it,
    or that is of two sizes."""
    try:
        spans = [_in_residual(gains, projection, found) for projection, found in (one, other)]
    except WeightsError:
        return None
    if spans[0].shape[0] != spans[1].shape[0]:
        return None
    product = np.linalg.qr(spans[0])[0].T @ np.linalg.qr(spans[1])[0]
    cosine = min(1.0, float(np.linalg.svd(product, compute_uv=False)[0]))
    return Neighbour(other[0].address, cosine, float(len(spans[0])) ** -0.5)


def _in_residual(gains: NormWeighting, projection: Projection, found: Directions) -> Values:
    size = 2 if _is_plane(found) else 1
    if projection.role in WRITES:
        return found.left[:, :size]
    return gains.folded(projection, found.right[:, :size])


# Words


def sentence(known: Facts) -> str:
    """What the first direction is, in one line."""
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
    """A channel between up and down is a neuron."""
    is_neuron = (p.role in ("gate", "up") and name == "output") or (p.role == "down" and name == "input")
    return "neuron" if is_neuron else "channel"


def lines(known: Facts) -> Iterator[str]:
    """All of it in lines of at most 74 characters, but for a sentence or an address that is longer."""
    p = known.projection
    yield f"{printable(p.address)}  {p.rows} x {p.cols}"
    yield sentence(known)
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
        degrees = float(np.degrees(np.arccos(near.cosine)))
        yield f"{printable(near.address)}: cosine {near.cosine:.2f}, {degrees:.0f} degrees (chance {near.chance:.2f})"


def _side_lines(side: Side, name: str) -> Iterator[str]:
    yield f"{name}: {side.participation:.1f} of {side.size} carry it"
    for carrier in side.carriers:
        times = "" if carrier.over_median is None else f"  {carrier.over_median:.1f} x median"
        yield f"{carrier.channel:>6} {_percent(carrier.share):>6} {_bar(carrier.share, 5):<5}{times}"


def _bar(share: float, width: int = 10) -> str:
    return "\u2588" * round(min(1.0, share) * width)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def record(known: Facts) -> dict[str, object]:
    """All of it as JSON has it."""
    ratio = known.ratio
    return {
        "address": known.projection.address,
        "rows": known.projection.rows,
        "cols": known.projection.cols,
        "sentence": sentence(known),
        "singular_values": list(known.values),
        "sigma_1_over_sigma_2": ratio,
        "fixed_sigma_1_over_sigma_2": known.ratio_fixed,
        "survives_gauge": known.survives,
        "plane": known.is_plane,
        "weighting": known.weighting,
        "output_energy": list(known.energies),
        "outputs": _side_record(known.outputs),
        "inputs": _side_record(known.inputs),
        "neighbours": [{"address": n.address, "cosine": n.cosine, "chance": n.chance} for n in known.neighbours],
    }


def _side_record(side: Side) -> dict[str, object]:
    carriers = [
        {"channel": c.channel, "share": c.share, "norm": c.norm, "over_median": c.over_median} for c in side.carriers
    ]
    return {"size": side.size, "participation": side.participation, "carriers": carriers}
