"""The rank that projections are asked to keep: one for all of them, or one for each role."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

SHORT = {"q": "query", "k": "key", "v": "value", "o": "output"}
"""What a user may write for a role; `kv` stands for the first of KEYS_AND_VALUES that there is."""
KEYS_AND_VALUES = (("key_value",), ("kv_a",), ("kv",), ("key", "value"))


@dataclass(frozen=True, slots=True)
class KeptRanks:
    """`roles` are ranks by role, `common` is that of every other one; None: nothing is asked of those.

    `lead` is what the largest of all these ranks has become by steps, the others in proportion; 0: they are as given.
    """

    common: int | None = None
    roles: tuple[tuple[str, int], ...] = ()
    lead: int = 0

    def of(self, p: Projection) -> int | None:
        """The rank of a projection; None where none is asked of it. It may be above its full rank."""
        return self.of_role(p.role)

    def of_role(self, role: str) -> int | None:
        """The rank of the projections of a role."""
        given = next((k for name, k in self.roles if name == role), self.common)
        return None if given is None else self._scaled(given)

    def names(self, role: str) -> bool:
        """Whether a role has a rank of its own."""
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
        """`512`, or `k` where roles have ranks of their own."""
        return "k" if self.roles else self.text

    def column(self, name: str) -> str:
        """What a number at these ranks is called in files: `energy_512`; where roles have ranks of their own `energy`,
        and each row says its rank."""
        return name if self.roles else f"{name}_{self.common}"

    def stepped(self, steps: int, most: int) -> KeptRanks:
        """So many steps further, each a hundredth of the largest rank, at least 1; that stays from 1 to `most`."""
        lead = self.lead or self._largest
        lead = max(1, min(max(most, 1), lead + steps * rank_step(lead)))
        return replace(self, lead=lead) if self.roles else KeptRanks(lead)

    def named(self, roles: Collection[str]) -> KeptRanks:
        """The same with the roles of a model in the place of short names.

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
    """How far one step of a rank goes."""
    return max(1, k // 100)


def _roles_of(name: str, roles: Collection[str]) -> Iterator[str]:
    """The roles that a name stands for: its own first, of `kv` that of both together before each of them."""
    if name == "kv":
        both = next((found for found in KEYS_AND_VALUES if all(role in roles for role in found)), None)
    else:
        both = next(((role,) for role in (name, SHORT.get(name, name)) if role in roles), None)
    if both is None:
        raise InputError(f"no role {printable(name)!r} here: {' '.join(map(printable, roles))}")
    yield from both
