"""Numbers as words, for every room of the interface."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.engine.catalogue.tree import Tree, kinds_of
from rankscope.engine.compute.events import Again, Progress
from rankscope.engine.derive.weighting import is_unseen
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .phrases import share
from .session import State

MARKS = {
    State.NOT_COMPUTED: ".",
    State.QUEUED: ":", State.RUNNING: "*", State.STORED: "#", State.DONE: "#", State.FAILED: "!",
}  # fmt: skip
UNSEEN = "u"
LEGEND = (
    (".", "not computed"),
    (":", "queued"),
    ("*", "running"),
    ("#", "done: computed and saved"),
    ("!", "failed: select it to see why"),
    ("?", "unsupported quantisation, or refused: select it to see why"),
    (UNSEEN, "unseen: no token of the calibration reached it"),
    ("~", "after a shape: dequantised weights"),
    ("-", "there is no such matrix"),
    ("\u2260", "before B/A: A and B differ in shape"),
)

WHAT_A_PLAN_IS = "ranks from weights and second moments, no training; check with perplexity"
WEIGHTS_ONLY = "weights only: at this cut the model is likely to break; give an imatrix or moments"


def refusal(p: Projection) -> str:
    """The mark that replaces the number of a projection with a `problem`."""
    return "unseen" if is_unseen(p) else "?"


def told(p: Projection) -> str:
    """`layers.0.mlp.up: no norm is known to feed it`: the `problem` of a projection, behind its address."""
    address = printable(p.address)
    return f"{address}: {(p.problem or '').removeprefix(f'{address}: ')}"


def percent(threshold: float) -> str:
    """0.9 -> "90", 0.995 -> "99.5"."""
    return f"{threshold * 100:.10g}"


def parameters(number: int) -> str:
    """49k, 1.23M: three digits."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if number < 999.5 * scale else f"{number / scale:.0f}{unit}"
    return str(number)


def describe(progress: Progress) -> str:
    """`143/210 31/s ETA 2 s 1.2/3.2 GB 0 failed`; at the end `210/210 solving 2 of 4 again, ill-conditioned`."""
    rate = float(f"{progress.rate:.3g}")
    parts = [f"{progress.done}/{progress.total}", f"{rate:g}/s"]
    again = progress.again
    if progress.busy and again.begun and progress.done + progress.failed == progress.total:
        parts[1] = f"solving {again.begun} of {again.found} again, ill-conditioned"
    elif progress.busy and progress.eta is not None:
        parts.append(f"ETA {duration(progress.eta)}")
    if progress.to_fetch:
        parts.append(share(progress.fetched, progress.to_fetch))
    return "  ".join([*parts, f"{progress.failed} failed"])


def solved_again(again: Again) -> str:
    """`1 of 4 bounds solved again in 2 s`; the others keep their values."""
    return f"{again.solved} of {again.found} bounds solved again in {duration(again.seconds)}"


def left_out(tree: Tree) -> str:
    """`30 matrices (embed_tokens, mlp.gate) are left out`, what a scan without a filter does not compute; else ""."""
    extra = tree.left_out()
    if not extra:
        return ""
    found = "1 matrix" if len(extra) == 1 else f"{len(extra)} matrices"
    return f"{found} ({kinds_of(extra)}) {'is' if len(extra) == 1 else 'are'} left out"


def products_among(projections: Sequence[Projection]) -> str:
    """`7 of 21 spectra: scale x B A, 14: their factors`; "" if nothing is stored as factors."""
    products = [p for p in projections if p.is_product]
    if not products:
        return ""
    made_of = {q.key for p in products for q in p.parents}
    factors = sum(p.key in made_of for p in projections)
    return f"{len(products)} of {len(projections)} spectra: scale x B A, {factors}: their factors"


def duration(seconds: float) -> str:
    """`2 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ago(seconds: float) -> str:
    """Elapsed time in one unit: `now`, `5 min`, `3 h`, `2 d`, `4 mo`, `1 y`."""
    for unit, length in (("y", 365 * 86400), ("mo", 30 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
