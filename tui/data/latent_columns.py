"""What latent attention (MLA) would keep of a token, as columns of the metric table: numbers of the stacks alone."""

from __future__ import annotations

from collections.abc import Callable

from rankscope.engine.derive.latent import KEY_VALUE, is_latent
from rankscope.engine.spectrum import Projection, Values

from .measures import Measure
from .quantities import RANK, Quantity
from .session import Session


def is_joint(p: Projection) -> bool:
    """Whether its rank is a kv_lora_rank: a stack of keys and values, or a product of latent attention's factors."""
    return p.role == KEY_VALUE and p.derived is not None and p.derived.is_further


def _of_rank(of: Callable[[Projection, float], float | None]) -> Quantity:
    """A number that the rank of such a matrix gives."""

    def one(session: Session, p: Projection, threshold: float) -> float | None:
        rank = RANK(session, p, threshold) if is_joint(p) else None
        return None if rank is None else of(p, rank)

    def every(session: Session, threshold: float) -> Values:
        return session.columns.of_keys({p.key: one(session, p, threshold) for p in session.model.further})

    return Quantity(one, every)


def _cache(_: Session, p: Projection, __: float) -> float | None:
    return p.rows if is_latent(p) else None


def _caches(session: Session, threshold: float) -> Values:
    return session.columns.of_keys({p.key: _cache(session, p, threshold) for p in session.model.further})


def _saved(p: Projection, rank: float) -> float | None:
    return 100 * (1 - rank / p.rows) if is_latent(p) and p.rows else None


LATENT_MEASURES = (
    Measure("kv_lora_rank", "kv_lora", "numbers a token from which keys and values keep {t} % of their energy", 0,
            _of_rank(lambda _, rank: rank)),
    Measure("cache", "cache", "numbers that a layer keeps of a token as it is: KV heads (d_k + d_v)", 0,
            Quantity(_cache, _caches)),
    Measure("saved", "saved %", "100 (1 - kv_lora / cache) at {t} %: what a latent cache would not keep", 1,
            _of_rank(_saved)),
)  # fmt: skip
