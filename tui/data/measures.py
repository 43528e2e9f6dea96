"""The numbers that stand for a spectrum, as data: heading, formula, how to get one, how to write and shade it.

Heatmap units, table columns, the compare table, `show`, CSV and plots all read this one table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Projection

from .session import Session
from .wording import percent

Value = Callable[[Session, Projection, float], float | None]

RATIO_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
"""Where the shade of a ratio changes. Trained weights lie mostly between .6 and 1 of noise of their shape."""
MODELS_LIMITS = (0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0)
"""The same for one model over another: most differ by a few percent."""
SHARE_LIMITS = (10.0, 20.0, 30.0, 45.0, 60.0)


@dataclass(frozen=True, slots=True)
class Measure:
    """`heading` and `formula` have "{t}" for the threshold in percent. `limits` are where the shade changes, None
    for shades spread over what there is; `diverges` at 1. `shaded_by` names another measure that gives the shade.
    `from_values`: it needs Session.load_facts. `greyed_above`: larger values mean that factoring saves nothing.
    """

    name: str
    heading: str
    formula: str
    value: Value
    digits: int | None = 2
    limits: tuple[float, ...] | None = None
    diverges: bool = False
    shaded_by: str = ""
    from_values: bool = False
    greyed_above: float | None = None
    needs_twin: bool = False

    def titled(self, threshold: float) -> str:
        """The heading at a threshold: `k90/k0`."""
        return self.heading.replace("{t}", percent(threshold))

    def explained(self, threshold: float) -> str:
        """The formula at a threshold."""
        return self.formula.replace("{t}", percent(threshold))

    def written(self, value: float) -> str:
        """A value as text: counts whole, the rest by `digits` after the point, None: 4 significant digits."""
        return f"{value:#.4g}" if self.digits is None else f"{value:.{self.digits}f}"

    def is_bound(self, session: Session, p: Projection) -> bool:
        """Whether the value is only known to be larger than what is given."""
        facts = session.facts(p)
        return self.name == "condition_number" and facts is not None and facts.condition_is_bound


def _rank(session: Session, p: Projection, threshold: float) -> float | None:
    return session.rank(p, threshold)


def _over(below: Value) -> Value:
    """k over something else."""

    def ratio(session: Session, p: Projection, threshold: float) -> float | None:
        above, under = session.rank(p, threshold), below(session, p, threshold)
        return None if above is None or not under else above / under

    return ratio


def _noise_rank(_: Session, p: Projection, threshold: float) -> float | None:
    from rankscope.engine.null import null_rank  # numpy

    return null_rank(p.rows, p.cols, threshold) if p.count else None


def _flipped_rank(session: Session, p: Projection, threshold: float) -> float | None:
    return session.rank(flipped(p), threshold)


def _break_even(_: Session, p: Projection, __: float) -> float | None:
    from rankscope.engine.metrics import break_even_rank  # numpy

    return break_even_rank(p.rows, p.cols) if p.count else None


def _percent_of(_: Session, p: Projection, __: float) -> float | None:
    return p.count / 100.0 if p.count else None


def _stored(name: str) -> Value:
    """A number of the stored table."""

    def read(session: Session, p: Projection, _: float) -> float | None:
        entry = session.entry(p)
        found: float | None = getattr(entry, name) if entry is not None else None
        return found

    return read


def _fact(name: str) -> Value:
    """A number that was worked out from the values."""

    def read(session: Session, p: Projection, _: float) -> float | None:
        facts = session.facts(p)
        found: float | None = getattr(facts, name) if facts is not None else None
        return found

    return read


MEASURES = (
    Measure("k", "k{t}", "smallest k with energy(k) >= {t} %", _rank, 0, shaded_by="k/k0"),
    Measure("percent", "k{t} %", "k{t} in % of min(m, n)", _over(_percent_of), 1, SHARE_LIMITS),
    Measure(
        "k/k0", "k{t}/k0", "k{t} / k0: the same of iid noise of this shape", _over(_noise_rank), 2, RATIO_LIMITS, True
    ),
    Measure(
        "k/kf", "k{t}/kf", "k{t} / kf: the same weights with random signs", _over(_flipped_rank), 2, RATIO_LIMITS, True,
        needs_twin=True,
    ),
    Measure(
        "k/k*", "k{t}/k*", "k{t} / k*, k* = m n / (m + n); grey: factors cost more", _over(_break_even), 2,
        RATIO_LIMITS, True, greyed_above=1.0,
    ),
    Measure("effective_rank", "eff.rank", "exp(-sum p ln p), p = sigma / sum sigma (Roy & Vetterli)",
            _stored("effective_rank"), 1),
    Measure("stable_rank", "stable", "sum sigma^2 / sigma_1^2", _stored("stable_rank"), 2),
    Measure("sigma_1", "sigma_1", "largest singular value", _stored("sigma_max"), None),
    Measure("entropy_rank", "entr.rank", "exp(-sum p ln p), p = sigma^2 / sum sigma^2", _fact("entropy_rank"), 1,
            from_values=True),
    Measure("participation_ratio", "particip.", "(sum sigma^2)^2 / sum sigma^4", _fact("participation_ratio"), 1,
            from_values=True),
    Measure("nuclear_ratio", "nuc/spec", "sum sigma / sigma_1", _fact("nuclear_ratio"), 1, from_values=True),
    Measure("condition_number", "cond", "sigma_1 / sigma_r; > where sigma_r is below the noise floor",
            _fact("condition_number"), None, from_values=True),
    Measure("numerical_rank", "num.rank", "values above the noise floor and rounding", _fact("numerical_rank"), 0,
            from_values=True),
    Measure("spikes", "spikes", "values above the Marchenko-Pastur edge", _fact("spikes"), 0, from_values=True),
    Measure("k0", "k0", "k{t} of iid noise of this shape (Marchenko-Pastur)", _noise_rank, 0),
    Measure("k*", "k*", "m n / (m + n): above it two factors cost more than the matrix", _break_even, 0),
)  # fmt: skip
BY_NAME = {measure.name: measure for measure in MEASURES}
UNITS = tuple(BY_NAME[n] for n in ("k", "percent", "k/k0", "k/kf", "k/k*", "effective_rank", "stable_rank", "sigma_1"))
"""The units of the heatmap, in the order of its menu."""
