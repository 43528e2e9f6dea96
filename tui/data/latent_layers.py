"""Converting a model's layers to latent attention (MLA): what has to be computed for each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.caches import Cache, Heads, HeadsOf, caches
from rankscope.engine.catalogue.tree import matches, model_order
from rankscope.engine.derive.gains import Gains
from rankscope.engine.derive.latent import (
    KEY_VALUE,
    QUERY_PRODUCT,
    RECOMPUTE,
    Way,
    latent_of,
    products_of,
)
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.errors import InputError, WeightsError, printable
from rankscope.engine.spectrum import Projection

from .model import Model
from .session import Session
from .stacks import stored_joints

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.engine.moment import Weighting

QUERY = "query"
_FACTORS = ("query", "query_a", "query_b", "kv_a", "key_b", "value_b")


@dataclass(frozen=True, slots=True)
class LatentLayer:
    """One layer that owns a cache.

    `joint` is the row whose rank is the kv_lora_rank: the stack of its keys and values or, if the model has latent
    attention, the product of the factors. `others` are the rows beside it: the query, or the factors and the product of
    those of the queries. `heads` are those of its key, if some rows are to keep RoPE. `bits` is the size of one stored
    number of its keys, None if the weights are not at hand. `leaves_bias`: its keys or values have biases, which are
    not included.
    """

    address: str
    joint: Projection
    others: tuple[Projection, ...]
    heads: Heads | None = None
    bits: float | None = None
    leaves_bias: bool = False

    @property
    def is_latent(self) -> bool:
        """Whether the model has latent attention in this layer."""
        return not self.joint.address.endswith(KEY_VALUE) or any(p.role == "kv_a" for p in self.others)

    @property
    def wanted(self) -> tuple[Projection, ...]:
        """All projections that have to be computed for this layer."""
        return (self.joint, *self.others)

    @property
    def full(self) -> int:
        """Numbers that the unconverted layer caches per token, keys and values."""
        return sum(p.rows for p in self.joint.parents)

    @property
    def roped(self) -> int:
        """Numbers beside the latent that would keep RoPE."""
        return self.full - self.joint.rows


def layers_of(model: Model, chosen: Way, under: Weighting | None, pattern: str | None = None) -> list[LatentLayer]:
    """The layers of a model that own a cache, or those of them that a filter matches.

    Raises:
        InputError: there are none, or the chosen way is unknown for one of them.
    """
    checkpoint = model.checkpoint
    assert checkpoint is not None
    every = caches(checkpoint, model.tree.projections)
    if not every:
        raise InputError(
            f"no layer of {printable(model.name)} keeps keys and values: there is no cache to make smaller"
        )
    found = [c for c in every if pattern is None or any(matches(at, pattern) for at in _addresses(c))]
    if not found:
        raise InputError(f"no layer with a cache matches {printable(pattern or '')!r}: see  rankscope tree MODEL")
    if chosen.bias and any(c.is_latent for c in found):
        raise InputError("--bias append is for keys and values: this attention is latent already")
    making = _LatentLayerMaker(checkpoint, chosen, under)
    try:
        return [making.layer(c) for c in found]
    except WeightsError as error:
        raise InputError(str(error)) from None


def derived_of(model: Model, under: Weighting | None, pattern: str | None = None) -> list[Projection]:
    """The rows that `scan --derived` computes beside a model's projections: for each layer the stack of its keys and
    values, all rotated after expansion, or the products of its factors, of which a filter may select some.

    Raises:
        InputError: see layers_of.
    """
    layers = layers_of(model, Way(), under, pattern)
    found = [p for layer in layers for p in layer.wanted if p.derived is not None and p.derived.is_further]
    return [p for p in found if pattern is not None and matches(p.address, pattern)] or found


def _addresses(cache: Cache) -> list[str]:
    made = (KEY_VALUE, QUERY_PRODUCT) if cache.is_latent else (KEY_VALUE,)
    return [*(f"{cache.address}.{role}" for role in made), *(p.address for p in cache.roles.values())]


def stored_layers(session: Session, chosen: Way, pattern: str | None = None) -> list[LatentLayer]:
    """The layers of a model whose weights are not at hand, as stored under the weighting that is shown."""
    states = {p.address: p for p in session.model.tree.projections}
    joints: dict[str, Projection] = {}
    products: dict[str, Projection] = {}
    for p in stored_joints(session.store.stored(), chosen, session.weighting):
        (joints if p.role == KEY_VALUE else products)[p.address] = p
    found = []
    for p in sorted(joints.values(), key=model_order):
        address = p.address.rpartition(".")[0]
        others = [states[at] for role in _FACTORS if (at := f"{address}.{role}") in states]
        others += [products[at] for at in (f"{address}.{QUERY_PRODUCT}",) if at in products]
        if pattern is None or any(matches(q.address, pattern) for q in (p, *p.parents)):
            found.append(LatentLayer(address, p, tuple(others)))
    return found


class _LatentLayerMaker:
    """Makes layers of a checkpoint latent in the chosen way, under a weighting."""

    def __init__(self, checkpoint: Checkpoint, chosen: Way, under: Weighting | None) -> None:
        from rankscope.engine.derive.biases import Biases  # imports numpy

        self._chosen, self._under = chosen, under
        self._heads, self._biases = HeadsOf(checkpoint), Biases(checkpoint)
        self._gains = Gains(checkpoint)
        self._bits = {t.name: 8 * t.stored_bytes / count for t in checkpoint.tensors if (count := prod(t.shape))}

    def layer(self, cache: Cache) -> LatentLayer:
        """Make one layer latent.

        Raises:
            InputError: it has fewer rotated rows than wanted.
            WeightsError: how its keys are rotated, or its biases, are unknown.
        """
        return self._of_factors(cache) if cache.is_latent else self._of_keys(cache)

    def _of_keys(self, cache: Cache) -> LatentLayer:
        chosen, under = self._chosen, self._under
        heads = None if chosen.rope == RECOMPUTE else self._heads.of(cache)
        both = [cache.roles[role] for role in ("key", "value")]
        others = tuple(self._state(cache.roles[role]) for role in (QUERY,) if role in cache.roles)
        bits, has_bias = self._bits.get(both[0].tensor), any(map(self._biases.has, both))
        if not chosen.bias:
            return LatentLayer(cache.address, latent_of(cache, chosen, heads, under), others, heads, bits, has_bias)
        if not has_bias:
            raise WeightsError(f"{cache.address} has no biases: leave out --bias append")
        columns = tuple(map(self._biases.operand, both))
        joint = latent_of(cache, chosen, heads, _appended(under, both[0]), columns)
        return LatentLayer(cache.address, joint, others, heads, bits)

    def _of_factors(self, cache: Cache) -> LatentLayer:
        factors = tuple(self._state(cache.roles[role]) for role in _FACTORS if role in cache.roles)
        joint, *queries = products_of(cache, self._gains.before, self._under)
        return LatentLayer(cache.address, joint, (*factors, *queries))

    def _state(self, projection: Projection) -> Projection:
        return projection if self._under is None else weighted(projection, self._under)


def _appended(under: Weighting | None, projection: Projection) -> Weighting:
    """A file of moments as a weighting of inputs with an additional last feature that is always 1.

    Raises:
        WeightsError: it is no such file, or has no mean of a projection's input.
    """
    from rankscope.engine.calibration.appended import AppendedWeighting
    from rankscope.engine.calibration.file_weighting import FileWeighting

    if not isinstance(under, FileWeighting):
        raise WeightsError("--bias append needs the means of the inputs: name a file of moments with --weight FILE")
    under.mean(projection)
    return AppendedWeighting(under)
