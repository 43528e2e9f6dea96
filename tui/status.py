"""The texts of the single lines."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .grid import Grid, Selection
from .session import Session, State
from .text import byte_size, describe, duration

KEY_HINTS = (
    "0 tree", "1-4 view", "enter compute", "s scan", "/ filter", "t threshold", "? help", "q quit",
    "JK layer", "HL role", "a axes", "x stop", "tab pane", ": command", "ctrl+p palette",
)  # fmt: skip


def model_text(session: Session) -> tuple[str, str]:
    """What is open: name, revision, kind of weights, size; and on the right what is stored of it."""
    model = session.model
    projections = model.tree.scanned()
    layers = len({(p.tower, p.layer) for p in projections if p.layer is not None})
    parts = [printable(model.name)]
    if model.checkpoint is None:
        parts.append("stored spectra only, the weights are not here")
    elif model.checkpoint.commit:
        parts.append(model.checkpoint.commit[:8])
    if model.checkpoint and model.checkpoint.quantisation:
        parts.append(f"spectra of {bits(model.checkpoint.quantisation)} weights")
    parts += [f"{layers} layers", f"{len(projections)} projections"]
    done = sum(session.entry(p) is not None for p in projections)
    return "  ".join(parts), f"{done}/{len(projections)} stored"


def bits(quantisation: str) -> str:
    """`Q4_1` -> `4-bit (Q4_1)`."""
    digits = "".join(c for c in quantisation.partition("_")[0] if c.isdigit())
    return f"{digits}-bit ({quantisation})" if digits else quantisation


def job_text(session: Session, selection: Selection, grid: Grid) -> tuple[str, str]:
    """The selection; and on the right what is being computed."""
    label = printable(selection.label(grid))
    progress = session.progress
    failed = f"{len(session.failures)} failed" if session.failures else ""
    if progress is None or not progress.busy:
        return label, failed
    running = next((p for p in session.model.tree.projections if session.state(p) is State.RUNNING), None)
    where = ", ".join(progress.devices) or "starting torch"
    return label, "  ".join(filter(None, [where, running.address if running else "", describe(progress)]))


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
        if len(text) + len(hint) + 4 > width:
            break
        text += f" {hint} "
    return text
