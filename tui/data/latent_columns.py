"""Columns of the metric table for latent attention (MLA): how much its cache would save, from stacks of keys and
values; for models that have it already, how much of its ranks the factors and their products need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rankscope.engine.derive.latent import PRODUCT, is_latent
from rankscope.engine.spectrum import Projection, Values

from .measures import Measure
from .quantities import RANK, Quantity
from .session import Session

_FIRST, _SECOND = frozenset(("query_a", "kv_a")), frozenset(("query_b", "key_b", "value_b"))
"""Roles of the factors: those that write the latent, and those that read it."""


def lora_rank(p: Projection) -> int | None:
    """The width of the latent that a factor of latent attention writes or reads, or that a product of two passes
    through; None for any other projection."""
    made = p.derived
    if made is not None and made.is_further:
        return p.parents[0].cols if made.formula.startswith(PRODUCT) else None
    if p.block != "attention":
        return None
    return p.rows if p.role in _FIRST else p.cols if p.role in _SECOND else None


def _of_all(one: Callable[[Session, Projection, float], float | None], is_of: Callable[[Projection], bool]) -> Quantity:
    """A number that only some projections have."""

    def every(session: Session, threshold: float) -> Values:
        found = filter(is_of, session.model.every)
        return session.columns.of_keys({p.key: one(session, p, threshold) for p in found})

    return Quantity(one, every)


def _of_rank(is_of: Callable[[Projection], bool], of: Callable[[Projection, float], float | None]) -> Quantity:
    """A number that follows from the rank."""

    def one(session: Session, p: Projection, threshold: float) -> float | None:
        rank = RANK(session, p, threshold) if is_of(p) else None
        return None if rank is None else of(p, rank)

    return _of_all(one, is_of)


def _is_of_latent(p: Projection) -> bool:
    return lora_rank(p) is not None


def _cache(_: Session, p: Projection, __: float) -> float | None:
    return p.rows if is_latent(p) else None


def _lora(_: Session, p: Projection, __: float) -> float | None:
    return lora_rank(p)


_STACKS = (
    Measure("kv_lora_rank", "kv_lora", "numbers a token from which keys and values keep {t} % of their energy", 0,
            _of_rank(is_latent, lambda _, rank: rank)),
    Measure("cache", "cache", "numbers that a layer keeps of a token as it is: KV heads (d_k + d_v)", 0,
            _of_all(_cache, is_latent)),
    Measure("saved", "saved %", "100 (1 - kv_lora / cache) at {t} %: what a latent cache would not keep", 1,
            _of_rank(is_latent, lambda p, rank: 100 * (1 - rank / p.rows) if p.rows else None)),
)  # fmt: skip
_FACTORS = (
    Measure("lora_rank", "lora", "lora rank of latent attention: the width of the latent between two factors", 0,
            _of_all(_lora, _is_of_latent)),
    Measure("of_lora", "of lora %", "100 k{t} / lora: how much of that rank the factor, or the product, needs", 1,
            _of_rank(_is_of_latent, lambda p, rank: 100 * rank / (lora_rank(p) or 1))),
)  # fmt: skip


def latent_measures(projections: Iterable[Projection]) -> tuple[Measure, ...]:
    """The columns for which any of these projections has a number."""
    has_stack = has_factor = False
    for p in projections:
        has_stack = has_stack or is_latent(p)
        has_factor = has_factor or _is_of_latent(p)
    return (*(_STACKS if has_stack else ()), *(_FACTORS if has_factor else ()))
