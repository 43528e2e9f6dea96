"""The line under a chart: numbers of what is selected, or of a rank. A part that does not fit is left out whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.text import Text

from rankscope.engine import metrics, null
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection, Values

from .measures import BY_NAME
from .multiples import facet_columns, layer_columns
from .pair import Lens, Pair, Side
from .session import Session, State
from .text import percent
from .views import View, label

if TYPE_CHECKING:
    from .grid import Column
    from .painter import Painting, Request


def readout(pair: Pair, request: Request) -> Text:
    """One line on what is drawn: of one projection its numbers, of a group how much is computed and how the ranks
    spread, of marks each rank, by layer the smallest, middle and largest of each role. Reads files."""
    if request.view == View.LAYERS:
        return _over_layers(pair, request, layer_columns(request.grid, request.selection))
    if request.facets:
        return _over_layers(pair, request, facet_columns(request))
    wanted = request.marks if request.compare else request.selection.projections(request.grid)
    if not wanted:
        return Text("")
    if request.compare:
        return _marked(pair, request)
    if len(wanted) > 1:
        return _group(pair, request, wanted)
    found = pair.curves(wanted[0], request.side)
    if len(found) == 2:
        return _two(found, request)
    _, session, p = found[0] if found else ("", pair.first, wanted[0])
    return _single(session, p, request) if found else Text("B has no projection of this name", "dim")


def rank_readout(painting: Painting, k: int, width: int) -> Text:
    """What keeping k components means for the curves of a painting."""
    found = [(name, p, v) for (name, _, p), v in zip(painting.curves, painting.values, strict=True) if len(v)]
    if not found:
        return Text("")
    floors = [entry.noise_floor for _, s, p in painting.curves if (entry := s.entry(p)) is not None]
    if len(found) == 1:
        return _one_rank(found[0][1], found[0][2], k, floors[0] if floors else 0.0, width)
    parts = [f"k {k}  energy"]
    for name, _, values in found:
        short = f" (r {len(values)})" if k > len(values) else ""
        parts.append(f"{name} {_share(metrics.energy_at(values, min(k, len(values))))}{short}")
    if len({(p.rows, p.cols) for _, p, _ in found}) == 1:
        parts += _factors(found[0][1], min(k, len(found[0][2])))
    return _whole(parts, width)


def _one_rank(p: Projection, values: Values, k: int, floor: float, width: int) -> Text:
    asked, k = k, min(k, len(values))
    sigma = float(values[k - 1])
    parts = [f"k {k}" + (f" (r, not {asked})" if asked > k else "")]
    parts.append(f"sigma < {floor:.1g}" if sigma <= floor else f"sigma {sigma:.3g}")
    parts.append(f"energy {_share(metrics.energy_at(values, k))}")
    parts.append(f"rel.error {_error(metrics.relative_error(values, k))}")
    return _whole([*parts, *_factors(p, k)], width)


def _share(energy: float) -> str:
    """71.2 %; never rounded up to all of it."""
    return "99.9 %" if 0.9995 <= energy < 1 - 1e-9 else f"{100 * energy:.1f} %"


def _error(error: float) -> str:
    return f"{error:.2f}".lstrip("0") if error >= 0.01 else f"{error:.0e}" if error else "0"


def _factors(p: Projection, k: int) -> list[str]:
    """Parameters of two factors of rank k, held against the matrix."""
    whole, parts = p.rows * p.cols, metrics.factor_parameters(p.rows, p.cols, k)
    most = metrics.break_even_rank(p.rows, p.cols)
    name = "factors cost more:" if k > most else "factors"
    return [f"{name} {_count(parts)} of {_count(whole)} ({100 * parts / whole:.0f} %)", f"break-even {int(most)}"]


def _count(number: int) -> str:
    """49k, 1.23M: three digits."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if number < 999.5 * scale else f"{number / scale:.0f}{unit}"
    return str(number)


def _over_layers(pair: Pair, request: Request, columns: Sequence[Column]) -> Text:
    """Smallest, middle and largest of each role that is drawn; experts one by one."""
    lens = Lens(pair, request.threshold, BY_NAME["k"], request.side)
    lens.load(p for column in columns for p in request.grid.column(column))
    parts = [f"{lens.title} min/median/max"]
    for column in columns:
        found = [k for p in request.grid.column(column) if (k := lens.number(p)) is not None]
        if found:
            form = ".2f" if request.side is Side.RATIO else ".0f"
            parts.append(f"{column.heading} {min(found):{form}}/{median(found):{form}}/{max(found):{form}}")
    return _whole(parts, request.width) if len(parts) > 1 else Text("")


def _marked(pair: Pair, request: Request) -> Text:
    """The rank of each mark; B/A where there are two models."""
    lens = Lens(pair, request.threshold, BY_NAME["k"], Side.RATIO if pair.second else Side.A)
    lens.load(request.marks)
    ranks = [f"{printable(label(p, request.marks))} {lens.text(p) or '.'}" for p in request.marks]
    return _whole([lens.title, *ranks], request.width)


def _group(pair: Pair, request: Request, wanted: Sequence[Projection]) -> Text:
    lens = Lens(pair, request.threshold, BY_NAME["k"], request.side)
    lens.load(wanted)
    found = [k for p in wanted if (k := lens.number(p)) is not None]
    parts = [f"{len(found)} of {len(wanted)} computed"]
    if found:
        form = ".3f" if request.side is Side.RATIO else ".0f"
        parts.append(f"{lens.title} {min(found):{form}} to {max(found):{form}}")
    return _whole(parts, request.width)


def _two(found: Iterable[tuple[str, Session, Projection]], request: Request) -> Text:
    """One projection in both models."""
    parts, ranks = [], []
    for letter, session, p in found:
        session.load_ranks([p], request.threshold)
        entry, rank = session.entry(p), session.rank(p, request.threshold)
        ranks.append(rank)
        if entry is None:
            parts.append(f"{letter} {session.state(p)}")
        else:
            shown = (("effective rank", entry.effective_rank, ".1f"), ("stable rank", entry.stable_rank, ".2f"))
            numbers = [f"{name} {value:{form}}" for name, value, form in shown if value is not None]
            parts.append("  ".join([f"{letter} {p.rows}x{p.cols}", f"k{percent(request.threshold)} {rank}", *numbers]))
    if len(ranks) == 2 and ranks[0] and ranks[1] is not None:
        parts.append(f"B/A {ranks[1] / ranks[0]:.3f}")
    return _whole(parts, request.width)


def _single(session: Session, p: Projection, request: Request) -> Text:
    entry = session.entry(p)
    if entry is None:
        reason = session.failures.get(p.key) or p.problem or p.note
        if reason:
            return Text(f"{p.rows}x{p.cols}  {printable(reason)}" if p.rows else printable(reason), "red")
        hint = ": enter computes it" if session.state(p) is State.NOT_COMPUTED else ""
        return Text(f"{p.rows}x{p.cols}  {p.dtype}  {session.state(p)}{hint}", "dim")
    session.load_ranks([p], request.threshold)
    parts = [f"{p.rows}x{p.cols}"]
    parts += [f"k{percent(t)} {k}" for t in request.thresholds if (k := session.rank(p, t)) is not None]
    if entry.effective_rank is not None and entry.stable_rank is not None:
        parts += [f"effective rank {entry.effective_rank:.1f}", f"stable rank {entry.stable_rank:.2f}"]
    values = session.values(p)
    if request.view == View.SPECTRUM and values is not None and len(values):
        parts.append(f"{null.spikes(values, p.rows, p.cols)} above the edge")
    parts += [f"sigma_1 {entry.sigma_max:.4g}", f"floor {entry.noise_floor:.0e}", entry.solver, entry.device]
    return _whole(parts, request.width)


def _whole(parts: Sequence[str], width: int) -> Text:
    """The parts that fit."""
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    return Text("  ".join(kept), no_wrap=True)
