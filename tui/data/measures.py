"""The table of numbers that summarise a spectrum: heading, formula, how to get, write and shade each.

Heatmap units, table columns, the compare table, `show`, CSV and plots all read this one table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType

from rankscope.engine.calibration.said import ENOUGH, SINK
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.difference import DELTA
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.head_matrices import is_like_noise
from rankscope.engine.derive.weighting import is_under_weighting, is_weighted, noise_of
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection, Values

from .kept_ranks import KeptRanks
from .known import Fact, FromValues
from .quantities import FLIPPED_RANK, PARTICIPATION, RANK, RAW_RANK, Quantity, Value, by_shape, rank_over, stored
from .session import Session
from .wording import percent

RATIO_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
"""Limits between the shades of a ratio. Trained weights are mostly between .6 and 1 of noise of their shape."""
MODELS_LIMITS = (0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0)
"""Limits between the shades of one model over another: most differ by a few percent."""
OF_SHAPES = ("k/k0", "k/kf", "k/k*", "k/raw")
"""Units that compare with matrices of the same shape."""
SHARE_LIMITS = (10.0, 20.0, 30.0, 45.0, 60.0)
ENERGY = "energy"
KEPT_LIMITS = (50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table below.

    The number comes from `value`, or from `from_values` once Session.load_facts has computed it; `needs_...` names what
    else it is computed from.

    `heading`, `formula`: with "{t}" for the threshold in percent; `weighted_formula` replaces `formula` under a
        weighting, "" if it is the same.
    `digits`: see `written`; `words` writes the number where digits are not enough.
    `limits`: between the shades, None for shades spread over the range of the numbers; `diverges`: at 1.
    `shaded_by`: another measure that gives the shade.
    `greyed_above`: larger numbers mean that factoring saves nothing.
    `needs_twin`: the spectrum with random signs, which does not exist under a weighting.
    `needs_noise`: under a weighting the spectrum of noise.
    `needs_raw`: that of the unmodified matrix; the number exists only under a weighting.
    `needs_directions`: the leading directions, which are stored only for matrices that `i` was pressed on, so there is
        no column in tables.
    `needs_ranks`: the `ranks` that a user has chosen, whose text replaces "{k}"; see energy_of.
    `may_be_bound`: `from_values` may tell that its number is only a lower bound.
    `is_unit`: the heatmap can show it.
    `said`: the name of the number in Said.known, for a number that comes from the file of a weighting.
    """

    name: str
    heading: str
    formula: str
    digits: int | None
    value: Value | None = None
    from_values: FromValues | None = None
    limits: tuple[float, ...] | None = None
    diverges: bool = False
    shaded_by: str = ""
    greyed_above: float | None = None
    needs_twin: bool = False
    needs_noise: bool = False
    needs_raw: bool = False
    weighted_formula: str = ""
    may_be_bound: bool = False
    is_unit: bool = False
    words: Callable[[float], str] | None = None
    said: str = ""
    needs_directions: bool = False
    needs_ranks: bool = False
    ranks: KeptRanks | None = None

    def beside(self, p: Projection) -> Projection | None:
        """The other spectrum that the number of a projection needs."""
        if is_state(p):
            noise = noise_of(p) if self.needs_noise and is_weighted(p) else None
            return p.parents[0] if self.needs_raw else noise
        return flipped(p) if self.needs_twin and p.derived is None else None

    def exists(self, shown_as: str) -> bool:
        """Whether the number exists in a state: see Known.shown_as."""
        if DELTA in shown_as.split():
            return not (self.needs_twin or self.needs_raw or self.needs_directions)
        return not (self.needs_twin if shown_as else self.needs_raw)

    def fits(self, p: Projection) -> bool:
        """Whether the number exists for a projection. Matrices made of several have no other state, no twin, and under
        a weighting no noise; products have neither noise nor factors of the same shape; numbers at a rank need a rank
        for the projection."""
        if self.ranks is not None and self.ranks.of(p) is None:
            return False
        if p.derived is None or not p.derived.is_further:
            return True
        is_weighted_noise = self.needs_noise and p.derived.weighting
        if self.needs_twin or self.needs_raw or is_weighted_noise:
            return False
        return is_like_noise(p) or not (self.needs_noise or self.name in (*OF_SHAPES, "k*", "spikes", "edge"))

    @property
    def depends_on_threshold(self) -> bool:
        """Whether the number depends on the threshold."""
        return "{t}" in self.formula

    def titled(self, threshold: float) -> str:
        """The heading at a threshold: `k90/k0`."""
        k = "k" if self.ranks is None else self.ranks.short
        return self.heading.replace("{t}", percent(threshold)).replace("{k}", k)

    def explained(self, threshold: float, weighting: str = "") -> str:
        """The formula at a threshold, under a weighting ("": none)."""
        formula = self.weighted_formula if weighting and self.weighted_formula else self.formula
        return formula.replace("{t}", percent(threshold)).replace("{k}", "k" if self.ranks is None else self.ranks.text)

    def written(self, value: float) -> str:
        """A value as text with `digits` decimals (0: a count), or, for None, with 4 significant digits."""
        if self.words is not None:
            return self.words(value)
        return f"{value:#.4g}" if self.digits is None else f"{value:.{self.digits}f}"

    def number(self, session: Session, p: Projection, threshold: float) -> float | None:
        """The number of a projection; None if it is not known (yet), or does not exist."""
        if self.value is not None:
            return self.value(session, p, threshold)
        return _without_bound(self._fact(session, p))

    def numbers(self, session: Session, threshold: float) -> Values:
        """The numbers of all projections of a session, one per row of `session.columns`."""
        at = threshold if self.depends_on_threshold else 0.0
        if isinstance(self.value, Quantity):
            return self.value.numbers(session, at)
        every, one = partial(self._all, session, threshold), lambda p: self.number(session, p, threshold)
        return session.columns.kept((self.value or self.name, at), every, one, twins=self.needs_twin)

    def _all(self, session: Session, threshold: float) -> Values:
        if self.value is not None:
            return session.columns.of_keys(
                {p.key: self.value(session, p, threshold) for p in session.columns.projections}
            )
        facts = session.all_facts()
        return session.columns.of_keys({key: _without_bound(found.get(self.name)) for key, found in facts.items()})

    def is_bound(self, session: Session, p: Projection) -> bool:
        """Whether the number is only a lower bound."""
        fact = self._fact(session, p)
        return isinstance(fact, tuple) and fact[1]

    def _fact(self, session: Session, p: Projection) -> Fact:
        facts = session.facts(p)
        return None if facts is None else facts.get(self.name)


def _noise_rank(session: Session, p: Projection, threshold: float) -> float | None:
    if is_weighted(p):
        return session.null_ranks.number(p, threshold)
    if is_under_weighting(p) or not is_like_noise(p):
        return None
    from rankscope.engine.null import null_rank  # imports numpy

    return null_rank(p.rows, p.cols, threshold, p.inner) if p.count else None


def _noise_ranks(session: Session, threshold: float) -> Values:
    if not session.weighting[0]:
        return session.columns.by_shape(lambda p: _noise_rank(session, p, threshold))
    return session.columns.of_keys({p.key: _noise_rank(session, p, threshold) for p in session.columns.projections})


_NOISE_RANK = Quantity(_noise_rank, _noise_ranks)


@by_shape
def _break_even(_: Session, p: Projection, __: float) -> int | None:
    from rankscope.engine.metrics import break_even_rank  # imports numpy

    return break_even_rank(p.rows, p.cols) if p.count and is_like_noise(p) else None


@by_shape
def _break_even_divisor(session: Session, p: Projection, threshold: float) -> float | None:
    """k*; for a single row or column, whose k* is 0, m n / (m + n), so that k/k* is above 1 there too."""
    if not p.count or not is_like_noise(p):
        return None
    return _break_even(session, p, threshold) or p.rows * p.cols / (p.rows + p.cols)


@by_shape
def _percent_of(_: Session, p: Projection, __: float) -> float | None:
    return p.count / 100.0 if p.count else None


def _without_bound(fact: Fact) -> float | None:
    return fact[0] if isinstance(fact, tuple) else fact


def _provenance(name: str) -> Value:
    """A number that tells how far the stored values can be trusted."""

    def read(session: Session, p: Projection, _: float) -> float | None:
        entry = session.entry(p)
        return None if entry is None else float(getattr(entry.provenance, name))

    return read


def _said(name: str, times: float = 1) -> Value:
    """A number about a projection from the file of the weighting."""

    def read(session: Session, p: Projection, _: float) -> float | None:
        figures = session.figures(p)
        number = None if figures is None else getattr(figures, name)
        return None if number is None else times * number

    return read


def _smallest(session: Session, p: Projection, _: float) -> float | None:
    entry = session.entry(p)
    if entry is None or entry.sigma_min is None or entry.sigma_min <= entry.provenance.noise_floor:
        return None
    return entry.sigma_min


def _kept_words(share: float) -> str:
    """One decimal, two from 99 on, where the last per cent matters; never rounded up to 100."""
    if share >= 100 * (1 - 1e-9):
        return "100.0"
    return f"{min(share, 99.99):.2f}" if share >= 98.95 else f"{share:.1f}"


def _metrics() -> ModuleType:
    from rankscope.engine import metrics  # imports numpy

    return metrics


def _numerical_rank(values: Values, p: Projection, floor: float) -> tuple[float, bool]:
    metrics, of = _metrics(), (values, p.rows, p.cols, floor)
    return metrics.numerical_rank(*of), metrics.rank_is_bound(*of)


def _null() -> ModuleType:
    from rankscope.engine import null  # imports numpy

    return null


def _spikes(values: Values, p: Projection, floor: float) -> int | None:
    """None under a weighting, and for products, where the edge of noise is unknown."""
    if is_under_weighting(p) or not is_like_noise(p):
        return None
    found: int = _null().spikes(values, p.rows, p.cols, floor, p.inner)
    return found


def _edge(values: Values, p: Projection, floor: float) -> float | None:
    """None if the median, which it is computed from, is unknown, under a weighting, and for products."""
    if is_under_weighting(p) or not is_like_noise(p) or not values.size or float(values[values.size // 2]) <= floor:
        return None
    scale = _null().noise_scale(values, p.rows, p.cols, p.inner)
    edge: float = _null().noise_edge(p.rows, p.cols, scale, p.inner)
    return edge


MEASURES = (
    Measure("k", "k{t}", "fewest singular values for {t} % of energy", 0, RANK, shaded_by="k/k0", is_unit=True),
    Measure("percent", "k{t} %", "k{t} in % of the full rank, min(rows, columns)", 1, rank_over(_percent_of),
            limits=SHARE_LIMITS, is_unit=True),
    Measure("k/k0", "k{t}/k0", "k{t} / k0, k0: k{t} of noise of this shape", 2, rank_over(_NOISE_RANK),
            limits=RATIO_LIMITS, diverges=True, needs_noise=True, is_unit=True,
            weighted_formula="k{t} / k0, k0: k{t} of noise weighted alike"),
    Measure("k/kf", "k{t}/kf", "k{t} / kf, kf: k{t} with random signs", 2, rank_over(FLIPPED_RANK),
            limits=RATIO_LIMITS, diverges=True, needs_twin=True, is_unit=True),
    Measure("k/k*", "k{t}/k*", "k{t} / k*, k* = floor(m n / (m + n)); grey: costs more", 2,
            rank_over(_break_even_divisor),
            limits=RATIO_LIMITS, diverges=True, greyed_above=1.0, is_unit=True),
    Measure("k/raw", "k{t}/raw", "k{t} as shown / k{t} of the weights as they are", 2, rank_over(RAW_RANK),
            limits=RATIO_LIMITS, diverges=True, needs_raw=True, is_unit=True),
    Measure(ENERGY, "E({k}) %", "% of the sum of sigma^2 that rank {k} keeps", 1, lambda *_: None,
            limits=KEPT_LIMITS, is_unit=True, words=_kept_words, needs_ranks=True),
    Measure("effective_rank", "eff.rank", "exp(-sum p ln p), p = sing. value / sum (Roy 2007)", 1,
            stored("effective_rank"), is_unit=True),
    Measure("entropy_rank", "entr.rank", "exp(-sum p ln p), p = singular value^2 / the sum of those", 1,
            from_values=lambda values, *_: _metrics().entropy_rank(values)),
    Measure("stable_rank", "stable", "sum of the singular values^2 / the largest^2", 2, stored("stable_rank"),
            is_unit=True),
    Measure("participation_ratio", "particip.", "(sum sigma^2)^2 / sum sigma^4, sigma: singular values", 1,
            from_values=lambda values, *_: _metrics().participation_ratio(values)),
    Measure("nuclear_ratio", "nuc/spec", "sum of the singular values / the largest", 1,
            from_values=lambda values, *_: _metrics().nuclear_ratio(values)),
    Measure("condition_number", "cond", "largest / smallest singular value; >: that is below the noise floor", None,
            from_values=lambda values, _, floor: _metrics().condition_number(values, floor), may_be_bound=True),
    Measure("numerical_rank", "num.rank", "singular values above the errors of solver and rounding; >=: or more", 0,
            from_values=_numerical_rank, may_be_bound=True),
    Measure("spikes", "spikes", "singular values larger than any of noise of this shape (Marchenko-Pastur edge)", 0,
            from_values=_spikes),
    Measure("sigma_1", "sigma_1", "largest singular value", None, stored("sigma_max"), is_unit=True),
    Measure("u1_participation", "partic.u_1", "1 / sum u^4: outputs carrying u_1", 1,
            PARTICIPATION, is_unit=True, needs_directions=True),
    Measure("k0", "k0", "k{t} of noise of this shape in the mean: independent Gaussian numbers (Marchenko-Pastur)", 0,
            _NOISE_RANK, needs_noise=True, weighted_formula="k{t} of noise of this shape, weighted alike"),
    Measure("k*", "k*", "m n / (m + n), rounded down: above it two factors cost more than the matrix", 0, _break_even),
)  # fmt: skip
"""The measures in the order of the table's columns and of the menu of units."""
FILE_MEASURES = (
    Measure("edge", "edge", "s (sqrt m + sqrt n): noise with the same median has no singular value above it", None,
            from_values=_edge),
    Measure("sigma_r", "sigma_r", "smallest singular value; none below the noise floor", None, _smallest),
    Measure("frobenius_norm", "Frobenius", "sqrt of the sum of all weights^2", None,
            _provenance("frobenius_norm")),
    Measure("error_bound", "error", "no value above the noise floor is further off", None,
            _provenance("error_bound")),
    Measure("noise_floor", "floor", "values below it are known only to be below", None,
            _provenance("noise_floor")),
)  # fmt: skip
"""What files have beyond the columns of the metric table: in the units of the weights, for use by a program."""
SAID_MEASURES = (
    Measure("sink", "position 0", "share of position 0 in the output energy: a sink above 20 %", None,
            _said("sink", 100), words=lambda x: f"{'sink ' * (x > 100 * SINK)}{x:.0f} %", said="sink"),
    Measure("k90_without_position_0", "k90 without", "k90 without position 0, where that is a sink", 0,
            _said("apart"), said="apart"),
    Measure("held_out", "held out %", "energy of text held out that the best rank k90 of the rest keeps", 1,
            _said("held", 100), said="held"),
    Measure("tokens_per_feature", "tokens/n", f"tokens for each input feature; below {ENOUGH} ranks are too low", 1,
            _said("per_feature"), said="per_feature"),
)  # fmt: skip
"""Facts that a file of second moments has about projections, besides their spectra."""
BY_NAME = {measure.name: measure for measure in MEASURES}


def units(shown_as: str = "", *, has_directions: bool = True) -> list[Measure]:
    """The units that the heatmap can show in a state (see Known.shown_as), in the order of its menu; `has_directions`:
    whether any directions are stored."""
    found = [measure for measure in BY_NAME.values() if measure.is_unit and measure.exists(shown_as)]
    return [measure for measure in found if has_directions or not measure.needs_directions]


def unit_of(name: str) -> Measure:
    """The unit of this name.

    Raises:
        InputError: there is none.
    """
    found = BY_NAME.get(name)
    if found is None or not found.is_unit:
        raise InputError(f"no unit {printable(name)!r}: {' '.join(m.name for m in BY_NAME.values() if m.is_unit)}")
    return found


@lru_cache(maxsize=64)  # the same ranks give the same measure: requests of charts are compared
def energy_of(ranks: KeptRanks) -> Measure:
    """The energy that these ranks keep, as a measure: E(512) %."""
    value = Quantity(
        lambda session, p, _: session.kept.number(p, ranks),
        lambda session, _: session.columns.of_keys(session.kept.numbers(session.columns.projections, ranks)),
    )
    return replace(BY_NAME[ENERGY], value=value, ranks=ranks)


def from_values() -> dict[str, FromValues]:
    """The functions for Session.load_facts, by the names of their measures."""
    measures = (*BY_NAME.values(), *FILE_MEASURES)
    return {measure.name: measure.from_values for measure in measures if measure.from_values is not None}
