"""The total of the chosen ranks: parameters of the factors, and the least and most energy that they keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection, Values

from .grid import Row, member_of
from .lens import Lens
from .pair import NumberGroup, Pair, Side
from .wording import parameters


@dataclass(frozen=True, slots=True)
class KeptSum:
    """The total over `count` projections: `parts` parameters instead of `whole`; over the `known` ones whose energies
    are known the `least` and the `most` in %, and where the least is, also in short. `costly` of them have more
    parameters as factors than as matrices."""

    text: str
    count: int
    parts: int
    whole: int
    costly: int
    known: int = 0
    least: str = ""
    most: str = ""
    worst: str = ""
    worst_short: str = ""

    @property
    def forms(self) -> tuple[str, ...]:
        """The same statement in one line, from the longest form to the shortest."""
        share = f"{100 * self.parts / self.whole:.0f} %"
        parts, whole = parameters(self.parts), parameters(self.whole)
        some = f" of the {self.known} computed" if 0 < self.known < self.count else ""
        energy = f"{self.least} to {self.most} %" if self.known else "an unknown share"
        worst = f" (least: {self.worst})" if self.known else ""
        costly = f"; for {self.costly} of them two factors take more than the matrix" if self.costly else ""
        takes = f"{self.count} shown projections take {parts} of {whole} parameters"
        floor = f"{self.least} % ({self.worst_short})"
        least = [f"{share} of parameters keep {word} {floor}" for word in ("at least", ">=")] if self.known else []
        where = f", least in {self.worst_short}" if self.known else ""
        return (
            f"at rank {self.text} the {takes} ({share}) and keep {energy}{some}{worst}{costly}",
            f"{takes} ({share}) and keep {energy}{some}{worst}",
            f"{share} of the parameters keep {energy} of the energy{where}",
            f"{share} of the parameters keep {energy}{where}",
            *least,
            f"{share} of parameters keep {energy}",
            f"keeps {energy}",
            energy,
        )

    def fitting(self, width: int) -> str:
        """The longest form that fits the width; "" if none does."""
        return next((form for form in self.forms if len(form) <= width), "")


class ShownRanks:
    """The projections that are shown, prepared for computing totals repeatedly; valid for the pair as it is now.

    A stack of several counts if its role has a separate rank, otherwise its parts do. Projections that share a tensor
    count once.
    """

    def __init__(self, pair: Pair, projections: Sequence[Projection]) -> None:
        self._pair = pair
        self._projections = projections

    def sum(self, lens: Lens) -> KeptSum | None:
        """The total of a lens's ranks; None if it has no ranks, shows two models, or no projection has a rank."""
        import numpy as np  # not needed for the first screen

        from rankscope.engine.metrics import factor_parameters

        ranks = lens.measure.ranks
        if ranks is None or lens.side is Side.RATIO:
            return None
        count = parts = whole = costly = 0
        for (role, rows, cols, is_stack), number in self._kinds[lens.side].items():
            k = None if is_stack and not ranks.names(role) else ranks.of_role(role)
            if k is None:
                continue
            full = rows * cols
            taken = factor_parameters(rows, cols, k) if k < min(rows, cols) else full
            count, parts, whole = count + number, parts + number * taken, whole + number * full
            costly += number * (taken > full)
        if not count:
            return None
        numbers = lens.numbers(self._group)
        left_out = [_is_stack(p) and not ranks.names(p.role) for p in self._distinct]
        numbers = np.where(left_out, np.nan, numbers)
        return self._with_energies(KeptSum(ranks.text, count, parts, whole, costly), lens, numbers)

    def _with_energies(self, found: KeptSum, lens: Lens, numbers: Values) -> KeptSum:
        import numpy as np

        known = np.flatnonzero(~np.isnan(numbers))
        if not len(known):
            return found
        low, high = known[numbers[known].argmin()], known[numbers[known].argmax()]
        least, most = (lens.written(float(numbers[at])) for at in (low, high))
        worst = self._group.members[low]
        address = printable(worst.address)
        return replace(found, known=len(known), least=least, most=most, worst=address, worst_short=_in_short(worst))

    @cached_property
    def _distinct(self) -> list[Projection]:
        """One projection per tensor, stacks last."""
        found = {p.key: p for p in self._projections if p.rows}.values()
        return sorted(found, key=_is_stack)

    @cached_property
    def _group(self) -> NumberGroup:
        return self._pair.group(self._distinct)

    @cached_property
    def _kinds(self) -> dict[Side, Counter[tuple[str, int, int, bool]]]:
        """The number of projections by side, role and shape, stacks apart. 45,000 take some 40 ms."""
        found: dict[Side, Counter[tuple[str, int, int, bool]]] = {}
        for side, there in ((Side.A, self._pair.ours), (Side.B, self._pair.partner)):
            every = ((p, there(p)) for p in self._distinct)
            found[side] = Counter((p.role, q.rows, q.cols, _is_stack(p)) for p, q in every if q is not None)
        return found


def _in_short(p: Projection) -> str:
    """A short address: `layer 2 key_value`, `layer vision.4 e11 gate`; outside the layers the whole address."""
    if p.layer is None:
        return printable(p.address)
    member = member_of(p)
    words = ["layer", Row(p.tower or "", p.layer).label, member.label if member else "", p.role]
    return printable(" ".join(filter(None, words)))


def _is_stack(p: Projection) -> bool:
    return p.derived is not None and p.derived.is_further
