"""The texts of the explorer's single lines: model, selection, job and keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.text import Text

from rankscope.engine.derive.gauge import is_fixed
from rankscope.engine.derive.head_matrices import GROUP_OV
from rankscope.engine.derive.weighting import is_under_weighting, is_unseen
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.grid import EXPERT, LAYER, Grid, Selection, member_of
from ..data.lens import Lens
from ..data.pair import Pair
from ..data.phrases import byte_size
from ..data.session import Session, State
from ..data.views import BY_KEY, View
from ..data.wording import describe


class Hint(NamedTuple):
    """A key in the last line, with its word; `ident` is the binding's id, "" for several."""

    keys: str
    word: str
    ident: str = ""


STOP, SIDE, SCAN = Hint("x", "stop", "stop"), Hint("d", "A, B, B/A, delta", "side"), Hint("s", "scan", "scan")
THRESHOLD, WEIGHT = Hint("t", "threshold", "threshold.next"), Hint("w", "weighting", "weight")
QUIT = Hint("q", "quit", "quit")
OUTLIER, ZOOM = Hint("b", "outlier", "outlier.next"), Hint("z", "overview", "zoom")
ROW = Hint("JK", LAYER)
CUT = (Hint("+", "cut more", "plan.more"), Hint("-", "cut less", "plan.less"))
_LAST = next(key for key in sorted(BY_KEY) if key + 1 not in BY_KEY)
"""Every digit up to this one is the key of a view."""
HINTS = (
    Hint(f"0-{_LAST}", "view"), Hint("enter", "compute", "compute"), SCAN, Hint("/", "filter", "filter"),
    THRESHOLD, Hint("u", "unit", "unit"), Hint("?", "help", "help"),
    QUIT, ROW, Hint("HL", "role"), Hint("space", "mark", "mark"),
    ZOOM, Hint("f", "full screen", "full"),
    Hint(", .", "rank"), Hint("a", "axes", "axes"), Hint("e", "export", "export"),
    Hint("tab", "pane", "pane.next"), Hint(":", "command", "command"), Hint("ctrl+p", "palette"), WEIGHT,
)  # fmt: skip
"""In order of importance. While something is computed, STOP comes first and SCAN is left out; with two models SIDE
comes before these; under a weighting WEIGHT takes the place of THRESHOLD, which goes after QUIT, like keys of the
focused pane."""


def chart_title(
    view: int, unit: str, axes: int, facets: bool, relative: bool, compare: bool, weighting: str = "", rows: str = LAYER
) -> str:
    """The chart's title: what is drawn, of which selection, under which weighting, compared with what, on which
    axes; `rows` names the rows of the grid."""
    spec = BY_KEY[view]
    what = spec.title.replace("{unit}", unit).replace("{rows}", rows)
    if view == View.SPECTRUM and relative:
        what = "sigma / sigma_1 by index"
    shown = "" if spec.over_layers else "facets" if facets else "of the marks" if compare else ""
    if weighting and "{unit}" not in spec.title:
        what = f"{what}, {weighting}"
    return "  ".join(filter(None, [f"{view} {spec.name}", what, shown, spec.axes[axes]]))


def model_text(pair: Pair, projections: Sequence[Projection], layers: int) -> tuple[str, str]:
    """The model's name, revision, kind of weights and size; and on the right how much is stored. For two models
    names."""
    first, second = pair.first, pair.second
    stored = f"{first.stored(projections)}/{len(projections)} stored"
    if second is None:
        layer = "model" if first.model.parts else "layer"
        return "  ".join([*_model_parts(first), f"{layers} {layer}{'s' * (layers != 1)}"]), stored
    theirs = second.model.tree.scanned()
    names = [" ".join(_model_parts(session)) for session in (first, second)]
    return f"A {names[0]}   B {names[1]}", f"A {stored}  B {second.stored(theirs)}/{len(theirs)}"


def _model_parts(session: Session) -> list[str]:
    model = session.model
    parts = [printable(f"{model.against} - {model.name}" if model.against else model.name)]
    if label := session.weighting[1]:
        parts.append(f"weighted by {printable(label)}")
    if session.gauge:
        parts.append(f"gauge-fixed: {session.fixed}")
    if model.parts:
        parts.append("stored spectra")
    elif model.checkpoint is None:
        parts.append("stored spectra only, no weights")
    elif model.checkpoint.commit:
        parts.append(model.checkpoint.commit[:8])
    if model.checkpoint and not model.checkpoint.config and not model.tree.known:
        parts.append("no config.json")
    if model.checkpoint and model.checkpoint.is_remote:
        parts.append(f"{byte_size(session.size)}, not downloaded")
    if model.checkpoint and model.checkpoint.quantisation:
        parts.append(f"{bits(model.checkpoint.quantisation)} weights")
    return parts


def bits(quantisation: str) -> str:
    """`Q4_1` -> `4-bit (Q4_1)`."""
    digits = "".join(c for c in quantisation.partition("_")[0] if c.isdigit())
    return f"{digits}-bit ({quantisation})" if digits else quantisation


def selection_text(lens: Lens, selection: Selection, grid: Grid) -> Text:
    """The selection; for a single projection also its shape and its number or state."""
    found = selection.projections(grid)
    text = Text(printable(selection.label(grid)), "bold")
    if selection.column is not None and selection.row is not None and len(found) > 1:
        known = sum(lens.number(p) is not None for p in found)
        count = f"{known}/{len(found)}" if 0 < known < len(found) else len(found)
        member = member_of(found[0])
        what = member.what if member else EXPERT
        return text.append(f"  {count} {what}s: median ^a tenth off or more; enter opens them", "not bold")
    if len(found) != 1:
        return text
    partner = lens.pair.partner(found[0])
    if partner is not None and partner.address != found[0].address:
        text.append(f"  B {printable(partner.address)}", "not bold")
    return text.append_text(_state(lens, found[0]))


def waiting_text(pair: Pair) -> str:
    """Why computed spectra cannot be saved for now, "" if they can."""
    found = (session.progress for session in pair.opened)
    waiting = next((progress.waiting for progress in found if progress and progress.busy and progress.waiting), "")
    return printable(waiting, 500)


_NAMED = 2
"""At most this many devices are named; more of them are counted."""


def job_text(session: Session, running: Projection | None, state: str) -> str:
    """Device, running projection, done and total, rate, time left, failures; `state` comes first."""
    progress = session.progress
    found = progress.devices if progress else ()
    where = ", ".join(found) if len(found) <= _NAMED else f"{len(found)} workers"
    if progress is None or not progress.busy:
        parts = [where, state, f"{len(session.failures)} failed" if session.failures else ""]
    else:
        is_running = running is not None and session.state(running) is State.RUNNING
        what = printable(running.address) if running is not None and is_running else ""
        what = "waiting for room" if progress.waiting else progress.starting or what
        parts = [where, state or what, describe(progress)]
    return "  ".join(filter(None, parts))


def _state(lens: Lens, p: Projection) -> Text:
    shape = f"  {lens.shape(p)}" if p.rows else ""
    if trouble(lens, p):
        return Text(f"{shape}  {_refused(p)}", "red")
    if number := lens.text(p):
        return Text(f"{shape}  {lens.title} {number}", "not bold")
    session, there = lens.session(p)
    state = session.state(there) if there is not None else f"not in {lens.side}"
    is_stored = there is not None and session.entry(there) is not None
    return Text(f"{shape}  {lens.title} not known" if is_stored else f"{shape}  {state}", "not bold")


def _refused(p: Projection) -> str:
    """Why there is no spectrum, in a word or two."""
    if p.problem is None:
        return "failed"
    if p.role == GROUP_OV and not any(q.problem for q in p.parents):
        return "no product"
    if is_under_weighting(p) and not any(q.problem for q in p.parents):
        return f"{'unseen' if is_unseen(p) else 'not weighted'} by {p.derived.weighting if p.derived else ''}"
    return "gauge not known" if is_fixed(p) and not p.parents[0].problem else "unsupported"


def trouble(lens: Lens, p: Projection) -> str:
    """Why there is no spectrum of a projection, "" if there is or may be one."""
    session, there = lens.session(p)
    return there.problem or session.failures.get(there.key, "") if there is not None else ""


def troubles(lens: Lens, selected: Sequence[Projection]) -> str:
    """Why the selection has no spectrum (any more), or else a note about it; for several, the first failure with its
    name."""
    if len(selected) == 1:
        only = selected[0]
        return printable(trouble(lens, only) or loss(lens, only) or only.note)
    if not any(session.failures for session in lens.pair.sessions):
        return ""
    failed = ((p, lens.session(p)) for p in selected)
    found = next((p for p, (session, there) in failed if there is not None and there.key in session.failures), None)
    return printable(f"{found.label}: {trouble(lens, found)}", 500) if found is not None else ""


def loss(lens: Lens, p: Projection) -> str:
    """A sentence if the stored spectrum of a projection was lost, "" otherwise."""
    session, there = lens.session(p)
    is_lost = there is not None and there.key in session.lost and session.state(there) is State.NOT_COMPUTED
    return "what was stored of it is damaged; enter computes it again" if is_lost else ""


def shown_hints(
    is_busy: bool,
    is_pair: bool,
    is_weighted: bool = False,
    shows_plan: bool = False,
    zoom: Hint = ZOOM,
    own: tuple[Hint, ...] = (),
    rows: str = LAYER,
) -> tuple[Hint, ...]:
    """The keys for the last line. They depend on whether something is computed (`is_busy`), whether there are two
    models, whether a weighting is on, and whether a plan is shown. `zoom` says where ZOOM goes; `own` are keys of the
    focused pane, which come after QUIT; `rows`, as Grid.rows_are, is the word of ROW."""
    moved = {
        QUIT: (QUIT, *(THRESHOLD,) * is_weighted, *own),
        ZOOM: () if zoom in own else (zoom,),
        ROW: (ROW._replace(word=rows),),
    }
    if is_weighted:
        moved |= {THRESHOLD: (WEIGHT,), WEIGHT: ()}
    rest = (shown for hint in HINTS for shown in moved.get(hint, (hint,)) if not (is_busy and hint is SCAN))
    return (STOP,) * is_busy + CUT * shows_plan + (SIDE,) * is_pair + (*rest,)


def key_line(width: int, hints: Sequence[Hint], keymap: Mapping[str, str], note: str = "") -> Text:
    """As many hints as fit, with their keys in the user's keymap; or a sentence, and how to stop."""
    line = Text("".join(shown for _, shown in _fitting(width, hints, keymap, note)))
    if note:
        return line.append(f" {note}", "bold yellow")
    line.rstrip()
    return line


def hint_at(x: int, width: int, hints: Sequence[Hint], keymap: Mapping[str, str], note: str = "") -> Hint | None:
    """The hint at a column of the line of keys."""
    end = 0
    for hint, shown in _fitting(width, hints, keymap, note):
        end += len(shown)
        if x < end:
            return hint
    return None


def _fitting(width: int, hints: Sequence[Hint], keymap: Mapping[str, str], note: str) -> Iterator[tuple[Hint, str]]:
    """The hints that fit, each with its text."""
    room = width
    for hint in (hint for hint in hints if not note or hint is STOP):
        shown = f" {keymap.get(hint.ident, hint.keys)} {hint.word} "
        room -= len(shown)
        if room < 0:
            return
        yield hint, shown
