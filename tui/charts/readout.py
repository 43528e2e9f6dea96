"""The line under a chart: numbers of the selection, or of a rank. A part that does not fit is left out whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.text import Text

from rankscope.engine import metrics, null
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.head_matrices import is_like_noise
from rankscope.engine.derive.weighting import is_under_weighting
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection, Values

from ..data.lens import Lens
from ..data.measures import BY_NAME
from ..data.pair import Pair, Side
from ..data.session import Session, State
from ..data.table_rows import NOT_APART
from ..data.views import View
from ..data.wording import parameters, percent
from .by_layer import at_layer, layer_columns, ranges, selected_row
from .facets import facet_columns
from .spectrum_charts import label

if TYPE_CHECKING:
    from rankscope.store.spectra import Entry

    from ..data.grid import Column
    from .request import Painting, Request

_SHORTER = (
    (r"factors cost more:", "factors"),
    (r"(factors \S+) of ", r"\1/"),
    (r"break-even", "k*"),
    (r"rel\.error", "err"),
    (r"factors \S+ \((.+?)\)", r"factors \1"),
    (r"\(r, not", "(not"),
    (r"energy", "E"),
    (r"sigma", "s"),
)
"""Parts of a rank's line to drop if it is too long, in this order, before others are."""


def readout(pair: Pair, request: Request) -> Text:
    """One line on what is drawn: the numbers of one projection; for a group how much is computed and how its ranks
    spread; the ranks of marks; for small multiples the smallest, middle and largest of each role. Reads files."""
    if request.facets:
        return _ranges(pair, request, facet_columns(request))
    wanted = request.marks if request.compare else request.selection.projections(request.grid)
    if not wanted:
        return Text("")
    if request.compare:
        return _marked(pair, request)
    if len(wanted) > 1:
        return _several(pair, request, wanted)
    found = pair.curves(wanted[0], request.side)
    if len(found) == 2:
        return _in_both_models(pair, wanted[0], request)
    _, session, p = found[0] if found else ("", pair.first, wanted[0])
    return _one_projection(session, p, request) if found else Text("B has no projection of this name", "dim")


def over_layers(pair: Pair, request: Request) -> Text:
    """The number of each role in the selected layer; without one the smallest, middle and largest over the layers.
    Reads files."""
    row = selected_row(request)
    if row is not None and (parts := at_layer(pair, request, row)):
        return _fitting(parts, request.width)
    return _ranges(pair, request, layer_columns(request.grid, request.selection))


def rank_readout(painting: Painting, k: int, width: int) -> Text:
    """What keeping k components means for the curves of a painting."""
    found = [(name, p, v) for (name, _, p), v in zip(painting.curves, painting.values, strict=True) if len(v)]
    if not found:
        return Text("")
    wanted, k = k, min(k, max(len(v) for _, _, v in found))
    head = f"k {k}" + (f" (r, not {wanted})" if wanted > k else "")
    floors = [entry.provenance.noise_floor for _, s, p in painting.curves if (entry := s.entry(p)) is not None]
    if len(found) == 1:
        return _one_rank(head, found[0][1], found[0][2], k, floors[0] if floors else 0.0, width)
    parts = [f"{head}  energy"]
    for name, _, values in found:
        short = f" (r {len(values)})" if k > len(values) else ""
        parts.append(f"{name} {_percentage(metrics.energy_at(values, min(k, len(values))))}{short}")
    if len({(p.rows, p.cols) for _, p, _ in found}) == 1:
        return _with_factors(parts, _factors(found[0][1], k), width)
    return _fitting(parts, width)


def _one_rank(head: str, p: Projection, values: Values, k: int, floor: float, width: int) -> Text:
    sigma = float(values[k - 1])
    parts = [head]
    parts.append(f"sigma <= {floor:.1g}" if sigma <= floor else f"sigma {sigma:.3g}")
    parts.append(f"energy {_percentage(metrics.energy_at(values, k))}")
    parts.append(f"rel.error {_error(metrics.relative_error(values, k))}")
    line = "  ".join([*parts, *_factors(p, k)])
    for long, short in _SHORTER:
        if len(line) > width:
            line = re.sub(long, short, line)
    return _fitting(line.split("  "), width)


def _with_factors(energies: list[str], factors: list[str], width: int) -> Text:
    """The energy of each curve and their common factors, which are kept however many curves there are."""
    line = "  ".join(factors)
    for long, short in _SHORTER:
        if len("  ".join([*energies, line])) > width:
            line = re.sub(long, short, line)
    shown = _fitting(energies, width - 2 - len(line)).plain
    return _fitting([shown, *line.split("  ")], width)


def _percentage(energy: float) -> str:
    """71.2 %; never rounded up to 100 %."""
    return "99.9 %" if 0.9995 <= energy < 1 - 1e-9 else f"{100 * energy:.1f} %"


def _error(error: float) -> str:
    return f"{error:.2f}".lstrip("0") if error >= 0.01 else f"{error:.0e}" if error else "0"


def _factors(p: Projection, k: int) -> list[str]:
    """Parameters of two factors of rank k, compared with the matrix."""
    whole, parts = p.rows * p.cols, metrics.factor_parameters(p.rows, p.cols, k)
    most = metrics.break_even_rank(p.rows, p.cols)
    name = "factors cost more:" if k > most else "factors"
    return [f"{name} {parameters(parts)} of {parameters(whole)} ({100 * parts / whole:.0f} %)", f"break-even {most}"]


def _ranges(pair: Pair, request: Request, columns: Sequence[Column]) -> Text:
    """Smallest, middle and largest of the drawn roles, over all experts."""
    parts = ranges(pair, request, columns)
    if len(parts) > 1:
        return _fitting(parts, request.width)
    return _first_reason(pair, request, [p for column in columns for p in request.grid.column(column)])


def _first_reason(pair: Pair, request: Request, wanted: Iterable[Projection]) -> Text:
    """The first reason why these have no numbers; nothing if they only wait to be computed."""
    found = [r for p in wanted for _, session, q in pair.curves(p, request.side) if (r := _reason(session, q))]
    return Text(f"{len(found)} failed: {printable(found[0])}" if found else "", "red", no_wrap=True)


def _reason(session: Session, p: Projection) -> str:
    return session.failures.get(p.key) or p.problem or p.note or ""


def _marked(pair: Pair, request: Request) -> Text:
    """The rank of each mark; B/A if there are two models."""
    lens = Lens(pair, request.threshold, BY_NAME["k"], Side.RATIO if pair.second else Side.A)
    lens.load(request.marks)
    ranks = [f"{printable(label(p, request.marks))} {lens.text(p) or '.'}" for p in request.marks]
    return _fitting([lens.title, *ranks], request.width)


def _several(pair: Pair, request: Request, wanted: Sequence[Projection]) -> Text:
    lens = Lens(pair, request.threshold, BY_NAME["k"], request.side)
    lens.load(wanted)
    found = [k for p in wanted if (k := lens.number(p)) is not None]
    parts = [f"{len(found)} of {len(wanted)} computed"]
    if not found and (why := _first_reason(pair, request, wanted)):
        return why
    if found:
        parts.append(f"{lens.title} {lens.written(min(found))} to {lens.written(max(found))}")
    return _fitting(parts, request.width)


def _in_both_models(pair: Pair, ours: Projection, request: Request) -> Text:
    """One projection in both models; numbers in which they differ at the current threshold come first."""
    ratio = Lens(pair, request.threshold, BY_NAME["k"], Side.RATIO)
    ratio.load([ours])
    parts, metrics_of, shapes = [" ".join(filter(None, [f"k{percent(request.threshold)}", pair.shown_as]))], [], []
    for letter, session, p in pair.curves(ours, request.side):
        rank = session.rank(p, request.threshold)
        parts.append(f"{letter} {session.state(p) if rank is None else rank}")
        shapes.append(f"{letter} {p.rows}x{p.cols}")
        metrics_of.append([f"{letter} {text}" for text in _summaries(session, p, request.threshold)])
    if text := ratio.text(ours):
        parts.append(f"B/A {text}")
    together = (part for pair_of in zip_longest(*metrics_of) for part in pair_of if part)
    return _fitting([*parts, *together, *shapes], request.width)


def _summaries(session: Session, p: Projection, threshold: float) -> Iterator[str]:
    """`eff.rank 151.2` and `stable 8.31`, if they are known."""
    for measure in (BY_NAME["effective_rank"], BY_NAME["stable_rank"]):
        number = measure.number(session, p, threshold)
        if number is not None:
            yield f"{measure.titled(threshold)} {measure.written(number)}"


def _state(session: Session, p: Projection, entry: Entry) -> str:
    """The weighting or the gauge of the projection, as stored with its spectrum."""
    made, kept = p.derived, entry.projection.derived
    if made is None or not made.gauge or made.weighting:
        return session.shown_as
    return f"{made.gauge} ({printable(kept.label if kept is not None and kept.gauge else made.label, 200)})"


def _calibration(session: Session, p: Projection) -> tuple[list[str], list[str]]:
    """What the moments file says of a projection: first what is needed to judge its ranks, then the rest."""
    said, found = session.said, session.figures(p)
    if said is None:
        return [], []
    warned = [found.sink_words] if found is not None and found.sink_words else []
    if not said.is_split:
        warned.append(f"position 0 {NOT_APART}")
    if found is None:
        return warned, []
    tokens = f"{found.per_feature:.1f} tokens/n"
    held = [] if found.held is None else [f"held out {100 * found.held:.1f} %"]
    if found.per_feature < said.enough:
        return [*warned, f"{tokens}: too few"], held
    return warned, [*held, tokens]


def _one_projection(session: Session, p: Projection, request: Request) -> Text:
    entry = session.entry(p)
    if entry is None:
        if reason := _reason(session, p):
            return Text(f"{p.rows}x{p.cols}  {printable(reason)}" if p.rows else printable(reason), "red")
        hint = ": enter computes it" if session.state(p) is State.NOT_COMPUTED else ""
        return Text(f"{p.rows}x{p.cols}  {p.stored_as}  {session.state(p)}{hint}", "dim")
    session.load_ranks([p], request.threshold)
    parts = [_state(session, p, entry)] if is_state(p) else []
    parts.append(f"{p.rows}x{p.cols}")
    warned, rest = _calibration(session, p)
    parts += warned
    parts += [f"k{percent(t)} {k}" for t in request.thresholds if (k := session.rank(p, t)) is not None]
    parts += rest
    if entry.effective_rank is not None and entry.stable_rank is not None:
        parts.append(f"effective rank {BY_NAME['effective_rank'].written(entry.effective_rank)}")
        parts.append(f"stable rank {BY_NAME['stable_rank'].written(entry.stable_rank)}")
    values = session.values(p)
    has_noise = not is_under_weighting(p) and is_like_noise(p)
    if request.view == View.SPECTRUM and values is not None and len(values) and has_noise:
        parts.append(f"{null.spikes(values, p.rows, p.cols, entry.provenance.noise_floor, p.inner)} above the edge")
    if p.dequantisation or p.is_product:
        parts.append(f"from {p.stored_as}")
    made = entry.provenance
    parts += [f"sigma_1 {entry.sigma_max:.4g}", f"floor {made.noise_floor:.0e}", made.solver, made.device]
    return _fitting(parts, request.width)


def _fitting(parts: Sequence[str], width: int) -> Text:
    """The parts that fit into `width`."""
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    return Text("  ".join(kept), no_wrap=True)
