"""The numbers of a difference between two checkpoints: how much has changed, and which LoRA rank holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankscope.engine.derive.difference import MODULE, noted_of, quantised_of
from rankscope.engine.derive.weighting import noise_of
from rankscope.engine.spectrum import Projection

from .session import Session, State
from .wording import percent

if TYPE_CHECKING:
    from rankscope.engine.spectrum import Values
    from rankscope.store.spectra import Entry

ADVICE = (
    "above: at least this many singular values are larger than rounding alone can make; the LoRA rank that holds the "
    "change is the smaller of this and k."
)
ABOVE, UNCHANGED = "above_rounding", "unchanged_share"
"""Names of columns."""


@dataclass(frozen=True, slots=True)
class DeltaNumbers:
    """The numbers of one difference at one threshold, None for those that do not exist.

    `above` values exceed what rounding can make. `k` is the threshold rank, `stable` the stable rank, `relative`
    |delta| / |A|, `unchanged` the share of entries that are equal in A and B, `k0` the k of noise. `quantised` says how
    A or B is quantised: then no rank is advised and `above` is None.
    """

    delta: Projection
    above: int | None = None
    k: int | None = None
    stable: float | None = None
    relative: float | None = None
    unchanged: float | None = None
    k0: float | None = None
    quantised: str = ""
    mark: str = ""

    @property
    def is_unchanged(self) -> bool:
        """Whether A and B are the same to the bit."""
        return self.unchanged == 1.0

    @property
    def rank(self) -> int | None:
        """The rank of an adapter that holds the change: 0 if nothing exceeds rounding."""
        return None if self.k is None or self.above is None else min(self.k, self.above)

    @property
    def parameters(self) -> int | None:
        """The parameters of two factors of that rank."""
        return None if self.rank is None else self.rank * (self.delta.rows + self.delta.cols)

    @property
    def ratio(self) -> float | None:
        """k over the k of noise."""
        return self.k / self.k0 if self.k and self.k0 else None


@dataclass(frozen=True, slots=True)
class DeltaColumn:
    """One number of every difference: its heading in tables, its name in CSV, how to get it, how to write it, and what
    it means."""

    heading: str
    name: str
    number: Callable[[DeltaNumbers], float | None]
    written: Callable[[float], str]
    explained: str

    def of(self, change: DeltaNumbers) -> float | None:
        """The number, None if there is none: an unchanged matrix has only `unchanged_share`."""
        return None if change.is_unchanged and self.name != UNCHANGED else self.number(change)

    def text(self, change: DeltaNumbers) -> str:
        """The number as text; `unchanged` for an unchanged matrix, the mark of the state if it is not computed."""
        if change.mark:
            return change.mark
        if change.is_unchanged and self.name == ABOVE:
            return "unchanged"
        number = self.of(change)
        return "-" if number is None else self.written(number)


def columns_at(threshold: float) -> tuple[DeltaColumn, ...]:
    """The columns of a table at a threshold."""
    k_name = f"k{percent(threshold)}"
    whole: Callable[[float], str] = "{:,.0f}".format
    return (
        DeltaColumn("above", ABOVE, lambda c: c.above, ">= {:.0f}".format, "values that rounding cannot make"),
        DeltaColumn(k_name, "k", lambda c: c.k, whole, f"fewest values for {percent(threshold)} % of sum sigma^2"),
        DeltaColumn(
            "stable", "stable_rank", lambda c: c.stable, "{:.2f}".format, "stable rank: sum sigma^2 / sigma_1^2"
        ),
        DeltaColumn(
            "|d|/|W|", "relative_norm", lambda c: c.relative, "{:.2e}".format, "Frobenius norms, delta's / A's"
        ),
        DeltaColumn("same %", UNCHANGED, lambda c: c.unchanged, _share, "entries that A and B have in common"),
        DeltaColumn("rank", "rank", lambda c: c.rank, whole, f"the smaller of above and {k_name}: the LoRA rank"),
        DeltaColumn("r (m + n)", "parameters", lambda c: c.parameters, whole, "parameters of two factors of that rank"),
        DeltaColumn(f"{k_name}/k0", "k/k0", lambda c: c.ratio, "{:.2f}".format, f"{k_name} over that of noise"),
    )


def changes_of(
    session: Session, deltas: Sequence[Projection], threshold: float, independent: bool = False
) -> list[DeltaNumbers]:
    """The numbers of these rows of delta_of. Reads files.

    `independent`: A and B were rounded independently, so the rounding of both counts.
    """
    return list(_each(session, deltas, threshold, independent))


def records_of(
    changes: Sequence[DeltaNumbers], threshold: float, columns: Sequence[DeltaColumn]
) -> Iterator[dict[str, object]]:
    """Yield one record per difference, for CSV."""
    for c in changes:
        numbers = {column.name: column.of(c) for column in columns}
        place = {"address": c.delta.address, "rows": c.delta.rows, "cols": c.delta.cols, "threshold": threshold}
        state = "unchanged" if c.is_unchanged else c.quantised or c.mark
        yield {**place, **numbers, "state": state, "problem": c.delta.problem}


def noise_beside(deltas: Sequence[Projection]) -> list[Projection]:
    """The noise that differences of weighted projections are compared with, which has to be computed beside them."""
    ours = (p for p in deltas if p.problem is None and p.role != MODULE)
    made = (noise_of(p) for p in ours if p.derived is not None and p.derived.weighting)
    return list({p.key: p for p in made}.values())


_BATCH = 256


def _each(
    session: Session, deltas: Sequence[Projection], threshold: float, independent: bool
) -> Iterator[DeltaNumbers]:
    nulls = _Nulls(session, threshold)
    for start in range(0, len(deltas), _BATCH):
        batch = deltas[start : start + _BATCH]
        values = session.read([p.key for p in batch if session.has(p)])
        for p in batch:
            entry = session.entry(p)
            if entry is None or p.key not in values:
                failed = session.state(p) is State.FAILED
                yield DeltaNumbers(p, mark="?" if p.problem else "!" if failed else ".")
            else:
                yield _change(p, entry, values[p.key], threshold, independent, nulls)


def _change(
    p: Projection, entry: Entry, sigma: Values, threshold: float, independent: bool, nulls: _Nulls
) -> DeltaNumbers:
    from rankscope.engine.metrics import numerical_rank, stable_rank, threshold_rank

    noted, quantised = noted_of(entry.projection), quantised_of(p)
    assert noted is not None
    size = entry.provenance.frobenius_norm
    edge = noted.edge_of_two if independent else noted.edge
    above = numerical_rank(sigma, p.rows, p.cols, max(edge, entry.provenance.noise_floor))
    return DeltaNumbers(
        p,
        above=None if quantised else above,
        k=threshold_rank(sigma, threshold),
        stable=stable_rank(sigma),
        relative=size / noted.norm if noted.norm > 0 else None,
        unchanged=noted.unchanged / (p.rows * p.cols),
        k0=nulls.of(p),
        quantised=quantised,
    )


class _Nulls:
    """k0 of differences at one threshold: that of noise of their shape, or under their weighting."""

    def __init__(self, session: Session, threshold: float) -> None:
        self._session, self._threshold = session, threshold
        self._found: dict[str, float | None] = {}

    def of(self, p: Projection) -> float | None:
        from rankscope.engine.null import null_rank, null_rank_of

        if p.derived is None or not p.derived.weighting:
            return null_rank(p.rows, p.cols, self._threshold)
        noise = noise_of(p)
        key = noise.key
        if key not in self._found:
            values = self._session.read([key]) if self._session.has(noise) else {}
            self._found[key] = null_rank_of(values[key], self._threshold) if key in values else None
        return self._found[key]


def _share(share: float) -> str:
    """100 is written only if every entry is equal."""
    return "100" if share == 1 else f"{min(100 * share, 99.9):.1f}"
