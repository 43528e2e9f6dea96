"""The texts of the single lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.grid import Grid, Selection
from ..data.pair import Lens, Pair
from ..data.session import Session, State
from ..data.views import BY_KEY, View
from ..data.wording import byte_size, describe, duration, left_out

KEY_HINTS = (
    (f"0-{max(BY_KEY)} view", ""), ("enter compute", "compute"), ("s scan", "scan"),
    ("/ filter", "filter"), ("t threshold", "threshold.next"), ("u unit", "unit"), ("? help", "help"),
    ("q quit", "quit"), ("JK layer", ""), ("HL role", ""), ("space mark", "mark"), ("z zoom", "zoom"),
    (", . rank", ""), ("a axes", "axes"), ("e export", "export"), ("x stop", "stop"), ("tab pane", "pane.next"),
    (": command", "command"), ("ctrl+p palette", ""),
)  # fmt: skip
"""What the last line says, most wanted first, and the binding that each is of."""


def chart_title(view: int, unit: str, axes: int, facets: bool, relative: bool, compare: bool) -> str:
    """What is drawn of what, against what, and on which axes."""
    spec = BY_KEY[view]
    what = spec.title.replace("{unit}", unit)
    if view == View.SPECTRUM and relative:
        what = "sigma / sigma_1 by index"
    shown = "" if spec.over_layers else "facets" if facets else "of the marks" if compare else ""
    return "  ".join(filter(None, [f"{view} {spec.name}", what, shown, spec.axes[axes]]))


def model_text(pair: Pair, projections: Sequence[Projection], layers: int) -> tuple[str, str]:
    """What is open: name, revision, kind of weights, size; and on the right what is stored of it. Of two: names."""
    first, second = pair.first, pair.second
    stored = f"{first.stored(projections)}/{len(projections)} stored"
    if second is None:
        return "  ".join([*_model_parts(first), f"{layers} layer{'s' * (layers != 1)}"]), stored
    theirs = second.model.tree.scanned()
    names = [" ".join(_model_parts(session)) for session in (first, second)]
    return f"A {names[0]}   B {names[1]}", f"A {stored}  B {second.stored(theirs)}/{len(theirs)}"


def _model_parts(session: Session) -> list[str]:
    model = session.model
    parts = [printable(model.name)]
    if model.checkpoint is None:
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
    """The selection and, where it is one projection, its shape and number or state."""
    found = selection.projections(grid)
    text = Text(printable(selection.label(grid)), "bold")
    if selection.column is not None and selection.row is not None and len(found) > 1:
        known = sum(lens.number(p) is not None for p in found)
        count = f"{known}/{len(found)}" if 0 < known < len(found) else len(found)
        return text.append(f"  {count} experts: median~half the interquartile range; enter unfolds", "not bold")
    return text.append_text(_state(lens, found[0])) if len(found) == 1 else text


def waiting_text(pair: Pair) -> str:
    """Why what is computed cannot be saved for now, "" where it can."""
    found = (session.progress for session in pair.sessions)
    waiting = next((progress.waiting for progress in found if progress and progress.busy and progress.waiting), "")
    return printable(waiting, 500)


def job_text(session: Session, running: Projection | None, state: str) -> str:
    """Device, what is running, done and in all, rate, time left, failures; `state` is said first."""
    progress = session.progress
    where = ", ".join(progress.devices) if progress else ""
    if progress is None or not progress.busy:
        parts = [where, state, f"{len(session.failures)} failed" if session.failures else ""]
    else:
        is_running = running is not None and session.state(running) is State.RUNNING
        what = printable(running.address) if running is not None and is_running else ""
        what = "waiting for room" if progress.waiting else what
        parts = [where, state or what, describe(progress)]
    return "  ".join(filter(None, parts))


def _state(lens: Lens, p: Projection) -> Text:
    shape = f"  {p.rows}x{p.cols}" if p.rows else ""
    if trouble(lens, p):
        return Text(f"{shape}  {'unsupported' if p.problem else 'failed'}", "red")
    if number := lens.text(p):
        return Text(f"{shape}  {lens.title} {number}", "not bold")
    session, there = lens.session(p)
    state = session.state(there) if there is not None else f"not in {lens.side}"
    is_stored = there is not None and session.entry(there) is not None
    return Text(f"{shape}  {lens.title} not known" if is_stored else f"{shape}  {state}", "not bold")


def trouble(lens: Lens, p: Projection) -> str:
    """Why there is no spectrum of a projection, "" where there is one or may be."""
    session, there = lens.session(p)
    return there.problem or session.failures.get(there.key, "") if there is not None else ""


def troubles(lens: Lens, selected: Sequence[Projection]) -> str:
    """Why what is selected has no spectrum any more, or none at all, or what to know of it; of several that failed
    the first, by name."""
    if len(selected) == 1:
        (only,) = selected
        return printable(trouble(lens, only)) or loss(lens, only) or printable(only.note)
    if not any(session.failures for session in lens.pair.sessions):
        return ""
    failed = ((p, lens.session(p)) for p in selected)
    found = next((p for p, (session, there) in failed if there is not None and there.key in session.failures), None)
    return printable(f"{found.label}: {trouble(lens, found)}", 500) if found is not None else ""


def loss(lens: Lens, p: Projection) -> str:
    """That there was a spectrum of a projection, "" where there is one or was none."""
    session, there = lens.session(p)
    is_lost = there is not None and there.key in session.lost and session.state(there) is State.NOT_COMPUTED
    return "what was stored of it is damaged; enter computes it again" if is_lost else ""


def estimate(session: Session, missing: Sequence[Projection], pattern: str) -> list[str]:
    """What a scan of a model will do: how many projections, how many bytes, how long, as far as is known."""
    tensors = {p.tensor for p in missing}
    checkpoint = session.model.checkpoint
    size = sum(t.end - t.begin for t in checkpoint.tensors if t.name in tensors) if checkpoint else 0
    twins = sum(bool(p.null) for p in missing)
    what = f"{len(missing)} projections" if not twins else f"{len(missing)} spectra, {twins} of them with random signs"
    lines = [f"{printable(session.model.name)}:" if len(session.model.name) < 60 else ""]
    lines.append(f"compute {what}" + (f" that match {printable(pattern)}" if pattern else ""))
    lines.append(f"reading {byte_size(size)} of weights")
    if to_fetch := session.to_fetch(missing):
        lines[-1] = f"fetching {byte_size(to_fetch)} of {byte_size(session.size)}"
    if session.experts is not None and any(p.expert is not None for p in missing):
        lines.append(f"at most {session.experts} experts of a layer")
    stored = [entry for p in session.model.tree.projections if (entry := session.entry(p))]
    known = [(entry.provenance.seconds, entry.projection.cost) for entry in stored]
    if known:
        pace = sum(seconds for seconds, _ in known) / sum(cost for _, cost in known)
        lines.append(f"about {duration(pace * sum(p.cost for p in missing))}, as fast as what is stored")
    if not pattern and (rest := left_out(session.model.tree)):
        lines.append(f"{rest}: the filter * takes them")
    return [line for line in lines if line]


def key_hints(width: int, keymap: Mapping[str, str]) -> str:
    """As many key hints as fit, with the keys that the user's keymap gives them."""
    text = ""
    for hint, ident in KEY_HINTS:
        keys, _, word = hint.rpartition(" ")
        shown = f"{keymap.get(ident, keys)} {word}"
        if len(text) + len(shown) + 2 > width:
            break
        text += f" {shown} "
    return text.rstrip()
