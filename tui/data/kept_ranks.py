"""The ranks that a user wants projections to keep: one for all of them, or one per role."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

SHORT = {"q": "query", "k": "key", "v": "value", "o": "output"}
"""Short names of roles that a user may type; `kv` means the first of KEYS_AND_VALUES that exists."""
KEYS_AND_VALUES = (("key_value",), ("kv_a",), ("kv",), ("key", "value"))


@dataclass(frozen=True, slots=True)
class KeptRanks:
    """`roles` are ranks by role, `common` is the rank of every other role, None for no rank.

    `lead` is the value to which the largest of these ranks was stepped, the others in proportion; 0: they are as given.
    """

    common: int | None = None
    roles: tuple[tuple[str, int], ...] = ()
    lead: int = 0

    def of(self, p: Projection) -> int | None:
        """The rank of a projection, which may exceed its full rank; None if it has none."""
        return self.of_role(p.role)

    def of_role(self, role: str) -> int | None:
        """The rank of the projections of a role."""
        given = next((k for name, k in self.roles if name == role), self.common)
        return None if given is None else self._scaled(given)

    def names(self, role: str) -> bool:
        """Whether a role has a separate rank."""
        return any(name == role for name, _ in self.roles)

    @property
    def text(self) -> str:
        """`512`, or `query 1536, key_value 512`, the common one last."""
        parts = [f"{role} {self._scaled(k)}" for role, k in self.roles]
        if self.common is not None:
            parts.append(f"{'others ' * bool(parts)}{self._scaled(self.common)}")
        return ", ".join(parts)

    @property
    def short(self) -> str:
        """`512`, or `k` if roles have separate ranks."""
        return "k" if self.roles else self.text

    def column(self, name: str) -> str:
        """The name of a number at these ranks in files: `energy_512`, or, if roles have separate ranks, `energy` with
        the rank in each row."""
        return name if self.roles else f"{name}_{self.common}"

    def stepped(self, steps: int, most: int) -> KeptRanks:
        """The ranks after this number of steps, each a hundredth of the largest rank and at least 1; that rank stays
        from 1 to `most`."""
        lead = self.lead or self._largest
        lead = max(1, min(max(most, 1), lead + steps * rank_step(lead)))
        return replace(self, lead=lead) if self.roles else KeptRanks(lead)

    def named(self, roles: Collection[str]) -> KeptRanks:
        """The same ranks with short names replaced by the roles of a model.

        Raises:
            InputError: the model has no such role, or one is given two ranks.
        """
        found: dict[str, int] = {}
        for name, k in self.roles:
            for role in _roles_of(name, roles):
                if found.setdefault(role, k) != k:
                    raise InputError(f"{printable(role)} is given two ranks, {found[role]} and {k}: name it once")
        return replace(self, roles=tuple(found.items()))

    @property
    def _largest(self) -> int:
        return max(k for k in (self.common, *(k for _, k in self.roles)) if k is not None)

    def _scaled(self, given: int) -> int:
        return max(1, round(given * self.lead / self._largest)) if self.lead else given


def rank_step(k: int) -> int:
    """The size of one step at a rank."""
    return max(1, k // 100)


def _roles_of(name: str, roles: Collection[str]) -> Iterator[str]:
    """The roles that a name may mean, best first: the name itself; for `kv` keys and values together, then each of
    them."""
    if name == "kv":
        both = next((found for found in KEYS_AND_VALUES if all(role in roles for role in found)), None)
    else:
        both = next(((role,) for role in (name, SHORT.get(name, name)) if role in roles), None)
    if both is None:
        raise InputError(f"no role {printable(name)!r} here: {' '.join(map(printable, roles))}")
    yield from both
