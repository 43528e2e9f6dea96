"""What computing will take, to be shown before it starts; and what a chart says while nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from rankscope.engine.compute.devices import thread_count
from rankscope.engine.derive.difference import is_delta
from rankscope.engine.derive.weighting import is_noise
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.phrases import byte_size
from ..data.session import Session
from ..data.wording import duration, left_out

CORE_PACE = 1e10
"""Floating-point operations per second of one core in float64: two cores took 4.5 s for the 210 projections of
SmolLM2-135M."""
_PACED = 1024
"""Number of stored spectra, evenly spread, whose solving times give the estimate for others."""
LESSON = (
    ("k90", "fewest singular values with 90 % of the energy, the sum of sigma^2"),
    ("k0", "k90 of noise of this shape; k90/k0 below 1: the weights have structure"),
    ("k*", "m n / (m + n): below that rank two factors have fewer parameters"),
)
"""Three lines of an empty chart, in words of the glossary, each short enough for a small terminal."""


def estimate(session: Session, missing: Sequence[Projection], pattern: str) -> list[str]:
    """Lines about a scan to come: how many projections and bytes, and how long it takes, as far as is known."""
    lines = [f"{printable(session.model.name)}:" if len(session.model.name) < 60 else ""]
    lines.append(
        f"compute {_counts(missing, bool(session.shown_as))}" + (f" that match {printable(pattern)}" if pattern else "")
    )
    lines.append(_weights(session, missing))
    if session.experts is not None and any(p.expert is not None for p in missing):
        lines.append(f"at most {session.experts} experts of a layer")
    lines.append(_time(session, missing))
    if not pattern and (rest := left_out(session.model.tree)):
        lines.append(f"{rest}: filter * adds them")
    return [line for line in lines if line]


def _counts(missing: Sequence[Projection], weighs: bool) -> str:
    """`210 projections`; other spectra among them are counted separately. `weighs`: the model is shown in a
    state, so projections as they are get a word too."""
    twins, noises = sum(bool(p.null) for p in missing), sum(map(is_noise, missing))
    if twins:
        return f"{len(missing)} spectra, {twins} of them with random signs"
    found = Counter(_state(p, weighs) for p in missing if not is_noise(p))
    parts = [f"{count} projections{state}" for state, count in found.items()]
    return " and ".join([*parts, *([f"{noises} of noise under the same, for k0"] if noises else [])])


def _state(p: Projection, weighs: bool) -> str:
    made = p.derived
    by = f" by {made.weighting}" if made is not None and made.weighting else ""
    gauge = " in the fixed gauge" if made is not None and made.gauge else ""
    if is_delta(p):
        return f" of B - A{by}"
    return by + gauge or (" as they are" if weighs else "")


def beginning(
    session: Session, every: Sequence[Projection], selected: Sequence[Projection], scan: str, compute: str
) -> tuple[Text, ...]:
    """The lines of a chart while nothing of a model is computed: what the keys `scan` and `compute` do, and three named
    numbers. `every` is what a scan computes, `selected` what the other key computes."""
    rows = [(scan, f"asks, then computes {len(every)}: {_briefly(session, every)}")]
    if selected:
        rows.append((compute, f"computes the {len(selected)} selected: {_briefly(session, selected)}"))
    width = max(len(name) for name, _ in (*rows, *LESSON)) + 2
    return tuple(Text.assemble((f" {name:<{width}}", "bold"), text) for name, text in (*rows, *LESSON))


def _briefly(session: Session, missing: Sequence[Projection]) -> str:
    """`reads 66.4 MB, about 5 s on 2 cores`."""
    to_fetch = session.to_fetch(missing)
    bytes_text = f"fetches {byte_size(to_fetch)}" if to_fetch else f"reads {byte_size(_size(session, missing))}"
    return f"{bytes_text}, {_time(session, missing)}"


def _weights(session: Session, missing: Sequence[Projection]) -> str:
    """How many bytes of the files are read or fetched."""
    if to_fetch := session.to_fetch(missing):
        return f"fetching {byte_size(to_fetch)} of {byte_size(session.size)}"
    return f"reading {byte_size(_size(session, missing))} of weights"


def _size(session: Session, missing: Sequence[Projection]) -> int:
    tensors = {(q.source.repo, q.tensor) for p in missing for q in p.parents}
    opened = (session.model.checkpoint, *session.others)
    held = (t for checkpoint in opened if checkpoint for t in checkpoint.tensors)
    return sum(t.end - t.begin for t in held if (t.source.repo, t.name) in tensors)


def _time(session: Session, missing: Sequence[Projection]) -> str:
    """How long it takes, estimated from spectra of the model that are stored, or else from the speed of a core."""
    cost = sum(p.cost for p in missing)
    stored = [p for p in session.model.tree.projections if session.has(p)]
    every = stored[:: 1 + len(stored) // _PACED]
    if known := [(entry.provenance.seconds, p.cost) for p in every if (entry := session.entry(p)) is not None]:
        pace = sum(seconds for seconds, _ in known) / sum(cost for _, cost in known)
        return f"about {duration(pace * cost)}, as fast as what is stored"
    cores = thread_count(session.settings.threads)
    return f"about {duration(max(1.0, cost / (cores * CORE_PACE)))} on {cores} core{'s' * (cores != 1)}"
