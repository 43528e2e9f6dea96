"""The texts of the single lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .grid import Grid, Selection
from .session import Session, State
from .text import byte_size, describe, duration, percent

KEY_HINTS = (
    "0 tree", "1-4 view", "enter compute", "s scan", "/ filter", "t threshold", "? help", "q quit",
    "JK layer", "HL role", "a axes", "x stop", "tab pane", ": command", "ctrl+p palette",
)  # fmt: skip

CHART_TITLES = {
    1: ("1 spectrum", "singular values by index", ("log x log", "log y", "linear")),
    2: ("2 energy", "% of sum sigma^2 by components", ("log x", "linear", "linear")),
    4: ("4 layers", "components needed by layer", ("", "", "")),
}


def chart_title(view: int, axes: int) -> str:
    """What is drawn against what, and on which axes."""
    name, what, kinds = CHART_TITLES[view]
    return "  ".join(filter(None, [name, what, kinds[axes]]))


def heatmap_title(threshold: float) -> str:
    """What the numbers are."""
    name = percent(threshold)
    return f"3 heatmap  k{name} = components for {name} % of the energy"


def model_text(session: Session, projections: Sequence[Projection], layers: int) -> tuple[str, str]:
    """What is open: name, revision, kind of weights, size; and on the right what is stored of it."""
    model = session.model
    parts = [printable(model.name)]
    if model.checkpoint is None:
        parts.append("stored spectra only, no weights")
    elif model.checkpoint.commit:
        parts.append(model.checkpoint.commit[:8])
    if model.checkpoint and not model.checkpoint.config and not model.tree.known:
        parts.append("no config.json")
    if model.checkpoint and model.checkpoint.quantisation:
        parts.append(f"{bits(model.checkpoint.quantisation)} weights")
    parts.append(f"{layers} layer{'s' * (layers != 1)}")
    done = sum(session.entry(p) is not None for p in projections)
    return "  ".join(parts), f"{done}/{len(projections)} stored"


def bits(quantisation: str) -> str:
    """`Q4_1` -> `4-bit (Q4_1)`."""
    digits = "".join(c for c in quantisation.partition("_")[0] if c.isdigit())
    return f"{digits}-bit ({quantisation})" if digits else quantisation


def selection_text(session: Session, selection: Selection, grid: Grid, threshold: float) -> Text:
    """The selection and, where it is one projection, its shape and state."""
    found = selection.projections(grid)
    text = Text(printable(selection.label(grid)), "bold")
    return text.append_text(_state(session, found[0], threshold)) if len(found) == 1 else text


def job_text(session: Session, running: Projection | None, state: str) -> str:
    """Device, what is running, done and in all, rate, time left, failures; `state` is said first."""
    progress = session.progress
    where = ", ".join(progress.devices) if progress else ""
    if progress is None or not progress.busy:
        parts = [where, state, f"{len(session.failures)} failed" if session.failures else ""]
    else:
        is_running = running is not None and session.state(running) is State.RUNNING
        what = printable(running.address) if running is not None and is_running else ""
        parts = [where, state or what, describe(progress)]
    return "  ".join(filter(None, parts))


def _state(session: Session, p: Projection, threshold: float) -> Text:
    shape = f"  {p.rows}x{p.cols}" if p.rows else ""
    if trouble(session, p):
        return Text(f"{shape}  {'unsupported' if p.problem else 'failed'}", "red")
    rank = session.rank(p, threshold)
    return Text(
        f"{shape}  {session.state(p)}" if rank is None else f"{shape}  k{percent(threshold)} {rank}", "not bold"
    )


def trouble(session: Session, p: Projection) -> str:
    """Why there is no spectrum of a projection, "" where there is one or may be."""
    return p.problem or session.failures.get(p.key, "")


def estimate(session: Session, missing: Sequence[Projection], pattern: str) -> list[str]:
    """What a scan will do: how many projections, how many bytes, how long, as far as is known."""
    tensors = {p.tensor for p in missing}
    checkpoint = session.model.checkpoint
    size = sum(t.end - t.begin for t in checkpoint.tensors if t.name in tensors) if checkpoint else 0
    lines = [f"compute {len(missing)} projections" + (f" that match {printable(pattern)}" if pattern else "")]
    lines.append(f"reading {byte_size(size)} of weights")
    known = [(e.seconds, e.projection.cost) for p in session.model.tree.projections if (e := session.entry(p))]
    if known:
        pace = sum(seconds for seconds, _ in known) / sum(cost for _, cost in known)
        lines.append(f"about {duration(pace * sum(p.cost for p in missing))}, as fast as what is stored")
    return lines


def key_hints(width: int) -> str:
    """As many key hints as fit."""
    text = ""
    for hint in KEY_HINTS:
        if len(text) + len(hint) + 2 > width:
            break
        text += f" {hint} "
    return text.rstrip()
