"""Charts of spectra: singular values, and their cumulative energy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine import metrics, null
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.head_matrices import is_like_noise
from rankscope.engine.derive.weighting import is_under_weighting, is_weighted, noise_of
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection, Values

from ..data.grid import member_of
from ..data.pair import Curve, Pair, Side
from ..data.session import Session, State
from ..data.wording import percent
from .figure import Axis, Chart, Figure, Level, Series, Span, Stroke
from .hues import BY_CURVE, of_curves, stroke_of
from .request import Axes

if TYPE_CHECKING:
    from .request import Request

MAX_SERIES = 8
MAX_SHAPES = 2
"""Noise of more shapes than these would hide the curves."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The curves of a chart with their values, colours, strokes and title; and dim ones for comparison. `notes` end the
    legend."""

    title: str
    curves: tuple[Curve, ...]
    values: tuple[Values, ...]
    looks: tuple[tuple[int, Stroke], ...] = ()
    notes: tuple[str, ...] = ()
    origin: tuple[tuple[str, Values], ...] = ()
    empty: str = ""


def thin(projections: Sequence[Projection], most: int = MAX_SERIES) -> list[Projection]:
    """At most `most` of them, evenly spread, first and last included."""
    if len(projections) <= most:
        return list(projections)
    return [projections[round(i * (len(projections) - 1) / (most - 1))] for i in range(most)]


def shown(pair: Pair, request: Request) -> Shown:
    """The curves of a request for a spectrum or its energy. Reads files."""
    if request.compare:
        wanted: tuple[Projection, ...] = request.marks
        title, side = _marked(wanted), Side.RATIO
    else:
        wanted = request.selection.projections(request.grid)
        title, side = printable(request.selection.label(request.grid)), request.side
    done = [p for p in wanted if any(is_stored(s, q) for _, s, q in pair.curves(p, side))]
    kept = thin(done, MAX_SERIES // (2 if pair.second and side is Side.RATIO else 1))
    if len(kept) < len(done):
        title += f" ({len(kept)} of {len(done)})"
    curves, values = curves_of(pair, kept, side)
    how = "s scans what is marked" if request.compare else "enter computes it"
    empty = "" if curves else hint(pair, request, wanted, how)
    numbers, by_role = of_curves(curves, request.grid.columns)
    looks = tuple((number, stroke_of(session, pair)) for number, (_, session, _) in zip(numbers, curves, strict=True))
    notes = () if by_role else (BY_CURVE,)
    dim = (*_raw(curves), *_origin(pair, request, MAX_SERIES - len(curves)))
    return Shown(title, curves, values, looks, notes, dim, empty)


def _marked(marks: Sequence[Projection]) -> str:
    """How many are marked, and their role if it is common, which labels then leave out."""
    roles = {f"{p.block}.{p.role}" for p in marks}
    return "  ".join([f"{len(marks)} marked", *(map(printable, roles) if len(roles) == 1 else ())])


def is_stored(session: Session, p: Projection) -> bool:
    """Whether its spectrum is stored and readable."""
    return session.entry(p) is not None


def curves_of(
    pair: Pair, projections: Iterable[Projection], side: Side
) -> tuple[tuple[Curve, ...], tuple[Values, ...]]:
    """The stored curves of these projections on a side, and their values. Reads files."""
    kept = list(projections)
    found = [(letter, s, q, p) for p in kept for letter, s, q in pair.curves(p, side) if is_stored(s, q)]
    for session in pair.sessions:
        session.load_values([q for _, s, q, _ in found if s is session])
    curves, arrays = [], []
    for letter, session, q, p in found:
        if (values := session.values(q)) is not None and len(values):
            # For one projection in two models the letter is enough.
            name = " ".join(filter(None, [label(p, kept), letter]))
            curves.append(Curve(printable(name), session, q))
            arrays.append(values)
    return tuple(curves), tuple(arrays)


def label(p: Projection, among: Sequence[Projection]) -> str:
    """The words that tell a curve from the others: its layer, its role, its expert or head."""
    parts = []
    if len({(q.tower, q.layer) for q in among}) > 1 and p.layer is not None:
        parts.append(f"{p.tower}.{p.layer}" if p.tower else str(p.layer))
    if len({(q.block, q.role) for q in among}) > 1 or len(among) == 1:
        alike = (q for q in among if q.role == p.role and q.layer == p.layer)
        same_role = sum(member_of(q) == member_of(p) for q in alike) > 1
        parts.append(f"{p.block}.{p.role}" if same_role else p.role)
    if (member := member_of(p)) is not None:
        parts.append(member.label)
    return " ".join(parts)


def _raw(curves: Sequence[Curve]) -> tuple[tuple[str, Values], ...]:
    """The spectrum of the matrix as it is, if a single curve shows it in another state."""
    if len(curves) != 1 or not is_state(curves[0][2]):
        return ()
    _, session, p = curves[0]
    if p.key == p.parents[0].key:  # there was nothing to fix
        return ()
    session.load_values(p.parents[:1])
    values = session.values(p.parents[0])
    return () if values is None or not len(values) else (("raw", values),)


def _origin(pair: Pair, request: Request, room: int) -> tuple[tuple[str, Values], ...]:
    """The curves of the selection before a walk, if there is room for them all."""
    if request.compare or request.origin in (None, request.selection):
        return ()
    assert request.origin is not None
    wanted = request.origin.projections(request.grid)
    if len(wanted) > room:
        return ()
    curves, values = curves_of(pair, wanted, request.side)
    name = f"from {printable(request.origin.label(request.grid))}"
    return tuple((name, v) for v in values) if len(curves) <= room else ()


def hint(pair: Pair, request: Request, wanted: Sequence[Projection], how: str) -> str:
    """What to do if nothing can be drawn; `how` says how to compute it."""
    if not wanted:
        return "nothing marked: space marks the selection" if request.compare else "nothing is selected"
    found = [(s, q) for p in wanted for _, s, q in pair.curves(p, request.side)]
    if not found:
        return "this model has no projection of this name"
    if {s.state(q) for s, q in found} & {State.QUEUED, State.RUNNING}:
        return "being computed: the curve appears once it is saved"
    if all(q.problem or q.key in s.failures for s, q in found):
        return "it cannot be computed: the line below says why"
    return f"not computed: {how}"


# Singular values


@dataclass(frozen=True, slots=True)
class Drawn:
    """A curve to draw: the first `known` values are known, the others only below the solver's noise floor. `kept` of
    the known ones are drawn."""

    name: str
    shape: tuple[int, int, int]
    values: Values
    known: int
    kept: int

    @property
    def low(self) -> float:
        """The lowest known value that is drawn."""
        return float(self.values[self.kept - 1])


def draw_spectrum(pair: Pair, request: Request) -> tuple[Figure, Shown]:
    """Singular values against their index, with noise of their shape. Values that are only bounds are dim. Reads
    files."""
    found = shown(pair, request)
    return _spectrum(request, found), found


def _spectrum(request: Request, found: Shown) -> Figure:
    log = Axes(request.axes) is not Axes.LINEAR
    drawn = [measured(c, v, request, request.width) for c, v in zip(found.curves, found.values, strict=True)]
    if not drawn:
        return Figure(found.title, empty=found.empty)
    high = max(float(one.values[0]) for one in drawn)
    low = min(one.low for one in drawn)
    near, far = ((low / 3, 3 * high), (low / 10, 10 * high)) if log else ((0.0, 1.5 * high), (0.0, 2 * high))
    series = [s for one, look in zip(drawn, found.looks, strict=True) for s in _split(one, look, log, request)]
    series += [_within(Series(name, ranks_of(v), _scaled(v, request.normalised)), far) for name, v in found.origin]
    raw = [one for one, (_, _, p) in zip(drawn, found.curves, strict=True) if _has_noise(p)]
    noise, levels = _noise(raw, near, request)
    most = max(len(v) for v in (*found.values, *(v for _, v in found.origin)))
    chart = Chart(found.title, *spectrum_axes(request, most), (*series, *noise), levels)
    relative = ("each over its largest",) if request.normalised else ()
    return Figure(found.title, (chart,), notes=(*found.notes, *relative))


def _has_noise(p: Projection) -> bool:
    """Whether noise of the projection's shape alone is a meaningful comparison."""
    return not is_under_weighting(p) and is_like_noise(p)


def spectrum_axes(request: Request, most: int) -> tuple[Axis, Axis]:
    """Axes for singular values against their index, with room for all `most`, even if fewer are drawn."""
    axes = Axes(request.axes)
    name = "singular value / largest" if request.normalised else "singular value (unit of the weights)"
    return Axis("index k", log=axes is Axes.LOG_LOG, span=(1.0, float(most))), Axis(name, log=axes is not Axes.LINEAR)


def measured(curve: Curve, values: Values, request: Request, columns: int) -> Drawn:
    """A curve as drawn on a number of columns; `values`: float64, shape (r,), descending."""
    name, session, p = curve
    entry = session.entry(p)
    known = int((values > (entry.provenance.noise_floor if entry else 0.0)).sum()) or len(values)
    kept = _drawn_down(values[:known], request, columns)
    return Drawn(name, _shape(p), _scaled(values, request.normalised), known, kept)


def crossing(series: Series, values: Values, request: Request) -> Series:
    """A curve over the ranks of a spectrum, with its threshold rank, and a dot there if it is drawn that far."""
    rank = metrics.threshold_rank(values, request.threshold)
    dot = (float(rank), float(series.y[rank - 1])) if 0 < rank <= len(series.y) else None
    return replace(series, value=str(rank), dot=dot)


def ranks_of(values: Values) -> Values:
    """1 ... r, shape (r,)."""
    return np.arange(1.0, len(values) + 1)


def _scaled(values: Values, normalised: bool) -> Values:
    return values / values[0] if normalised and values[0] > 0 else values


def _drawn_down(values: Values, request: Request, columns: int) -> int:
    """How many values of a descending curve to draw. On a log axis the end may fall by decades within the last column
    (to 1.6e-3 from 0.15 in the demo), which would press all the rest into the top; so it ends at a third of the value
    where that column begins."""
    axes = Axes(request.axes)
    if axes is Axes.LINEAR:
        return len(values)
    last = 1 / max(1, columns)
    share = len(values) ** -last if axes is Axes.LOG_LOG else 1 - last
    return int((values >= values[int(share * (len(values) - 1))] / 3).sum())


def _split(one: Drawn, look: tuple[int, Stroke], log: bool, request: Request) -> list[Series]:
    """The known values, and dim the others: on a log axis at most a decade lower, for they may be anything down to
    0."""
    ranks, known = ranks_of(one.values), one.known
    found = [crossing(Series(one.name, ranks[: one.kept], one.values[: one.kept], *look), one.values, request)]
    if known < len(ranks):
        below = np.maximum(one.values[known:], one.low / 10) if log else one.values[known:]
        found.append(Series("below floor", ranks[known:], below))
    return found


def _within(series: Series, span: Span) -> Series:
    """The part of a dim curve that does not compress the others."""
    keep = (series.y >= span[0]) & (series.y <= span[1])
    return replace(series, x=series.x[keep], y=series.y[keep])


def _noise(drawn: Sequence[Drawn], span: Span, request: Request) -> tuple[list[Series], tuple[Level, ...]]:
    """Noise of the drawn shapes, as strong as the noise in them; for a single curve its edge too."""
    scales: dict[tuple[int, int, int], list[float]] = {}
    for one in drawn:
        scale = null.noise_scale(one.values, *one.shape)
        if scale > 0 and one.known > len(one.values) // 2:  # otherwise the median, from which it is made, is unknown
            scales.setdefault(one.shape, []).append(scale)
    series = []
    for shape in list(scales)[:MAX_SHAPES]:
        scale = math.exp(sum(map(math.log, scales[shape])) / len(scales[shape]))
        rows, cols, inner = shape
        values = null.noise_values(rows, cols, scale, inner)
        values = values[: _drawn_down(values, request, request.width)]
        series.append(_within(Series("noise", ranks_of(values), values, stroke=Stroke.DOTTED), span))
    edges = (
        [null.noise_edge(m, n, found[0], inner) for (m, n, inner), found in scales.items()] if len(drawn) == 1 else []
    )
    return series, tuple(Level(e, "edge", f"edge {e:.3g}", Stroke.DASHED) for e in edges if span[0] <= e <= span[1])


def _shape(p: Projection) -> tuple[int, int, int]:
    """The shape of noise to compare with, the smaller side first; the last is Projection.inner."""
    return min(p.rows, p.cols), max(p.rows, p.cols), p.inner


# Energy


def draw_energy(pair: Pair, request: Request) -> tuple[Figure, Shown]:
    """Cumulative energy in % against the number of components, with the thresholds, and the energy of noise.
    Reads files."""
    found = shown(pair, request)
    return _energy(request, found), found


def _energy(request: Request, found: Shown) -> Figure:
    if not found.curves:
        return Figure(found.title, empty=found.empty)
    series = [
        crossing(Series(name, ranks_of(values), energy, *look), values, request)
        for (name, session, p), values, look in zip(found.curves, found.values, found.looks, strict=True)
        if (energy := energy_of(values, session, p, request)) is not None
    ]
    if Axes(request.axes) is not Axes.ABOVE_NOISE:
        series += [Series(name, ranks_of(v), 100.0 * metrics.energy(v)) for name, v in found.origin]
        compared = [(s, p) for _, s, p in found.curves if p.count and is_like_noise(p)]
        noises = {noise_of(p).key if is_weighted(p) else _shape(p): (s, p) for s, p in compared}
        for below in [noise_energy(*place) for place in noises.values()][:MAX_SHAPES]:
            if below is not None:
                series.append(Series("noise", ranks_of(below), 100.0 * below, stroke=Stroke.DOTTED))
    levels = energy_levels(request, sorted({*request.thresholds, request.threshold}))
    chart = Chart(found.title, *energy_axes(request), tuple(series), levels)
    return Figure(found.title, (chart,), notes=found.notes)


def energy_of(values: Values, session: Session, p: Projection, request: Request) -> Values | None:
    """Cumulative energy in %, shape (r,), or its difference to that of noise: None if that is unknown."""
    if Axes(request.axes) is not Axes.ABOVE_NOISE:
        return 100.0 * metrics.energy(values)
    noise = mean_energy(session, p)
    return None if noise is None else 100.0 * (metrics.energy(values) - noise)


def noise_energy(session: Session, p: Projection) -> Values | None:
    """null.noise_energy of the shape. Under a weighting, that of the noise drawn under the same weighting, None if that
    is not in memory."""
    if not is_under_weighting(p):
        return null.noise_energy(p.rows, p.cols, p.inner)
    values = session.values(noise_of(p)) if is_weighted(p) else None
    return None if values is None else null.drawn_energy(values)


def mean_energy(session: Session, p: Projection) -> Values | None:
    """As noise_energy, by null.mean_energy."""
    if not is_like_noise(p):
        return None
    if not is_under_weighting(p):
        return null.mean_energy(p.rows, p.cols, p.inner)
    values = session.values(noise_of(p)) if is_weighted(p) else None
    return None if values is None else metrics.energy(values)


def energy_axes(request: Request) -> tuple[Axis, Axis]:
    """Axes for energy against components."""
    axes = Axes(request.axes)
    x = Axis("components k", log=axes is Axes.LOG_LOG)
    if axes is Axes.ABOVE_NOISE:
        return x, Axis("cumulative energy - that of noise (%)", unit=" %")
    return x, Axis("cumulative energy (%)", unit=" %", span=(0.0, 100.0))


def energy_levels(request: Request, thresholds: Iterable[float]) -> tuple[Level, ...]:
    """The lines of these thresholds, or that of noise."""
    if Axes(request.axes) is Axes.ABOVE_NOISE:
        return (Level(0.0, "noise"),)
    return tuple(threshold_level(threshold, request) for threshold in thresholds)


def threshold_level(threshold: float, request: Request) -> Level:
    """The line of a threshold, brighter if it is the current one."""
    return Level(100.0 * threshold, f"{percent(threshold)} %", is_bright=threshold == request.threshold)
