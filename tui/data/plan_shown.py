"""A plan in the explorer: what a user wants, what has to be computed for it, and the result. Imports no numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from .filter import find
from .wording import WEIGHTS_ONLY, percent

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting
    from rankscope.engine.plan.plan_file import Cost, Objective, PlanRow, Scope

    from .planner import Planned, Planner
    from .session import Session


@dataclass(frozen=True, slots=True)
class PlanWish:
    """A plan that a user wants, in terms of the options of `rankscope plan`; `pattern` is a filter, "" for none."""

    cut: float
    of: Scope = "projections"
    uniform: bool = False
    pattern: str = ""
    objective: Objective = "parameters"
    cost: Cost = "factors"
    min_rank: int = 8
    multiple: int = 8


class Plannable:
    """The projections of a model to be planned, under a weighting, whether computed or not.

    `states` have to be computed for the plan; `notes` are what a user has to know about it.
    """

    def __init__(
        self, session: Session, wish: PlanWish, weigh: Callable[[Callable[[str], None]], Weighting | None]
    ) -> None:
        """`weigh` returns the weighting, and calls its argument with lines that a user should know. Reads files.

        Raises:
            InputError: the filter matches nothing, the weighting cannot be read, or no plan is small enough.
        """
        from rankscope.engine.plan.hull import RankGrid

        from .chosen_weighting import pooled, said_of
        from .planner import PlanSizes, planned_of, states_of

        model, notes = session.raw, list[str]()
        tree = model.tree
        wanted = [p for p in find(tree.projections, wish.pattern) if p.rows] if wish.pattern else tree.scanned()
        projections = planned_of(wanted)
        if not projections:
            reason = f"no matrix of weights matches {printable(wish.pattern)!r}" if wish.pattern else "no matrix in it"
            raise InputError(f"there is nothing to plan: {reason}")
        chosen = weigh(notes.append)
        weighting = None if chosen is None else pooled(chosen, model, projections)
        self.session, self.wish = session, wish
        self.states = states_of(model, weighting, projections)
        self._weighting = weighting
        self._grid = RankGrid(wish.min_rank, wish.multiple, wish.cost)
        refused = {p.address for p in self.states if p.problem is not None}
        PlanSizes.of(model, self.states, self._grid, refused).budget(wish.cut, wish.of)  # before anything is computed
        said = said_of(chosen, self.states)
        notes += said.lines if said is not None else ()
        self.notes = tuple(notes)

    @property
    def missing(self) -> list[Projection]:
        """The states that a scan would compute: not stored, and in the sample of experts."""
        return [p for p in self.session.sampled(self.states) if p.problem is None and not self.session.has(p)]

    @cached_property
    def _planner(self) -> Planner:
        from .planner import Planner

        return Planner(
            self.session, self.states, self._weighting, self.wish.objective, self._grid, self.session.failures
        )

    def plan(self, cut: float) -> ShownPlan:
        """The plan at a cut. The first call reads all spectra, later ones read nothing.

        Raises:
            InputError: no plan is small enough, or nothing is stored.
        """
        planned = self._planner.plan(cut, self.wish.of, self.wish.uniform)
        rows = planned.plan.rows
        worst = sorted(rows, key=lambda row: row.energy)
        return ShownPlan(replace(self.wish, cut=cut), planned, {row.key: row for row in rows}, worst)


@dataclass(frozen=True, slots=True)
class ShownPlan:
    """A plan to show: its `rows` by content key of the matrix, and the same rows, least energy first."""

    wish: PlanWish
    planned: Planned
    rows: Mapping[str, PlanRow]
    worst: Sequence[PlanRow]

    def row(self, p: Projection) -> PlanRow | None:
        """The row of a projection in any state; None if it is not planned."""
        return self.rows.get(p.parents[0].key)

    @property
    def title(self) -> str:
        """The title in the border of its map."""
        wish, plan = self.wish, self.planned.plan
        whole = "all parameters stored" if wish.of == "total" else "the parameters"
        parts = [f"ranks at a cut of {percent(wish.cut)} % of {whole}"]
        parts += [text for text, said in (("uniform", wish.uniform), (f"filter {wish.pattern}", wish.pattern)) if said]
        parts += [wish.objective] if wish.objective != "parameters" else []
        parts += [wish.cost] if wish.cost != "factors" else []
        return printable(", ".join([*parts, *([plan.weighting.name] if plan.weighting else [])]))

    def lines(self) -> Iterator[str]:
        """The summary, line by line."""
        planned, plan = self.planned, self.planned.plan
        cut = planned.sizes.parameters - plan.parameters
        for name, whole in (("of the projections", planned.sizes.parameters), ("of all stored", planned.sizes.stored)):
            if whole:
                yield f"{whole:,} -> {whole - cut:,} parameters {name}: {100 * cut / whole:.2f} % cut"
        uniform = "" if plan.uniform else f"; uniform {100 * planned.uniform_energy:.2f} %"
        loss = f"loss {100 * plan.loss:.3f} %, bound {100 * plan.bound:.3f} %"
        yield f"mean energy {100 * planned.energy:.2f} %{uniform}; {loss}"
        if plan.weighting is None or plan.weighting.name == "norm":
            yield WEIGHTS_ONLY
        for address, reason in list(planned.refused.items())[:1]:
            yield printable(f"{len(planned.refused)} stay as they are: {address}: {reason}", 300)
