"""A tour of the explorer in two minutes: in each step a line with the keys to press, and at the end the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankscope.engine.spectrum import Projection

from .grid import Column
from .measures import BY_NAME
from .state import ExplorerState
from .views import View
from .wording import percent


@dataclass(frozen=True, slots=True)
class TourStep:
    """`keys` to press, and `shows`, what they show; together they fit a line of 80 columns."""

    keys: str
    shows: str
    is_done: Callable[[ExplorerState], bool]


@dataclass(frozen=True, slots=True)
class Tour:
    """The question of the tour: which layer needs most for a role, and would factoring save anything? About one role of
    the open model."""

    column: Column
    projections: tuple[Projection, ...]

    @classmethod
    def of(cls, state: ExplorerState) -> Tour | None:
        """A tour about the values of attention, else about the first role; None for a model without layers."""
        grid = state.grid
        columns = sorted(grid.counted, key=lambda c: (c.role != "value", c.block != "attention"))
        return cls(columns[0], grid.column(columns[0])) if columns else None

    @property
    def rank(self) -> int:
        """Half of the components."""
        return max(1, min(p.count for p in self.projections) // 2)

    def steps(self, state: ExplorerState) -> Sequence[TourStep]:
        """The steps in their order."""
        rows = state.grid.rows_are
        role, found = self.column.role, f"{len(self.projections)} {self.column.role} projections"
        k, energy = BY_NAME["k"].titled(state.threshold), f"{percent(state.threshold)} %"
        return (
            TourStep(f"/{self._filter(state)} enter", f"only the {found}, in every view", self._is_filtered),
            TourStep("s, then y", "computes and saves them; it takes seconds to minutes", self._is_computed),
            TourStep("3", f"{k} by {rows} and role: components with {energy} of energy", _is_at(View.HEATMAP)),
            TourStep("u, k/k0, enter", "over that of noise: below 1 there is structure", _has_unit("k/k0")),
            TourStep("u, k/k*, enter", "over break-even: above 1 two factors cost more", _has_unit("k/k*")),
            TourStep("4", f"the same by {rows}: where does {role} need more?", _is_at(View.LAYERS)),
            TourStep(f"2, then :k {self.rank} enter", "how much half of the components keep", _has_rank),
        )  # fmt: skip

    def answer(self, state: ExplorerState) -> list[str]:
        """The answer, in sentences of one or two lines. Reads a file."""
        session, threshold = state.session, state.threshold
        known = [(rank, p) for p in self.projections if (rank := session.rank(p, threshold)) is not None]
        if not known:
            return [f"None of the {len(self.projections)} {self.column.role} projections is computed: s computes them."]
        k = BY_NAME["k"].titled(threshold)
        (least, low), (most, high) = (find(known, key=lambda pair: pair[0]) for find in (min, max))
        lines = [
            f"Which {state.grid.rows_are}'s {self.column.role} projection needs most components for "
            f"{percent(threshold)} % of its energy, and would factoring it save anything?",
            "",
            f"{high.address}: {k} is {most} of {high.count}; the least is {least}, of {low.address}.",
        ]
        ratio = BY_NAME["k/k0"].number(session, high, threshold)
        if ratio is not None:
            than = "more than noise of its shape would need" if ratio > 1 else "noise of its shape would need more"
            lines.append(f"{k}/k0 is {ratio:.2f}: {than}.")
        lines.append(self._saving(known, k))
        from rankscope.engine.metrics import energy_at, factor_parameters  # imports numpy

        values = session.read([high.key]).get(high.key)
        if values is not None and self.rank <= len(values):
            share = factor_parameters(high.rows, high.cols, self.rank) / (high.rows * high.cols)
            kept = 100 * energy_at(values, self.rank)
            lines.append(
                f"Rank {self.rank}, half of them, keeps {kept:.1f} % of it, with {share:.0%} of the parameters."
            )
        hint = "Next: :plan 20% gives each projection a rank; w weighs by the inputs; ? has all keys."
        return [*lines, "", hint]

    def _saving(self, known: Sequence[tuple[int, Projection]], k: str) -> str:
        below = sum(rank <= p.rows * p.cols // (p.rows + p.cols) for rank, p in known)
        cost = "would cost more parameters than the matrix" if not below else "would have fewer parameters"
        which = "in all of them" if not below else f"in {below} of {len(known)}"
        return f"Two factors of rank {k} {cost} {which}."

    def _filter(self, state: ExplorerState) -> str:
        is_clear = sum(column.role == self.column.role for column in state.grid.columns) == 1
        return self.column.role if is_clear else f"{self.column.block}.{self.column.role}"

    def _is_filtered(self, state: ExplorerState) -> bool:
        mine = {p.address for p in self.projections}
        return bool(state.pattern and state.shown) and all(p.address in mine for p in state.shown)

    def _is_computed(self, state: ExplorerState) -> bool:
        session = state.session
        return state.loaded and all(
            session.has(p) or p.problem is not None or p.key in session.failures
            for p in session.sampled(self.projections)
        )


def _is_at(view: View) -> Callable[[ExplorerState], bool]:
    return lambda state: state.pane == view


def _has_unit(name: str) -> Callable[[ExplorerState], bool]:
    return lambda state: state.lens.measure.name == name


def _has_rank(state: ExplorerState) -> bool:
    return state.k is not None and state.chart in (View.SPECTRUM, View.ENERGY)
