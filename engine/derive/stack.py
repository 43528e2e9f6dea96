"""The matrices for latent attention: keys and values stacked, and the products of a latent attention's factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import WeightsError
from ..spectrum import Projection, Values
from ..weights import Weights, host_array
from .latent import DECOUPLED, LATENT, RECOMPUTE, Way, norms_note, ways
from .moment_factors import numbers_of
from .rotation import RotaryLayout, head_kept, rows_of, shared_basis, shared_kept
from .slabs import exponent_of, joined, placed, slabs
from .weigh import NotedMatrix, Weighed, weigh
from .weighting import WEIGHED, by_moment

_WAYS = {chosen.stem: chosen for chosen in ways()}


def stack_latent(projection: Projection, matrices: Sequence[Weights]) -> NotedMatrix:
    """[K_rest / |K| ; V / |V|] of a key and a value, divided as Way.balance says; the note has the norms.

    K_rest are the rows of the key that do not keep RoPE. Nothing is divided by a norm of 0.
    """
    made = projection.derived
    assert made is not None
    chosen = _WAYS[made.formula.removeprefix(LATENT).partition(f"_{WEIGHED}")[0]]
    key, value = (joined(list(slabs(host_array(matrix)))) for matrix in matrices)
    if chosen.bias:
        biases = numbers_of(made.operands[: -1 if made.weighting else None][-2:])
        key, value = (np.column_stack(pair) for pair in zip((key, value), biases, strict=True))
    there = [placed(key, matrices[0]), placed(value, matrices[1])]
    whole, values = _norms(projection, there)
    if chosen.rope == RECOMPUTE:
        rest, left = key, whole
    else:
        rest = _without_rope(projection, chosen, key, there[0])
        left = norm_as(projection, placed(rest, there[0])) if rest.size else 0.0
    if chosen.balance != "none":
        rest = _over(rest, whole if chosen.balance == "whole" else left)
        value = _over(value, values)
    stacked = placed(np.concatenate([rest, value]), matrices[0])
    return NotedMatrix(weighed_as(projection, stacked), norms_note(whole, left, values))


def multiply_latent(projection: Projection, matrices: Sequence[Weights]) -> Weights | Weighed:
    """R_b diag(gain) R_a^T by QR of a latent attention's factors, which has the singular values of the second factors
    times the gain of the norm between them times the first. Under a weighting the second factors, weighted."""
    made = projection.derived
    assert made is not None
    if made.weighting:
        stacked = joined([joined(list(slabs(matrix))) for matrix in matrices])
        return weighed_as(projection, stacked)
    (gain,) = numbers_of(made.operands)
    *second, first = (joined(list(slabs(host_array(matrix)))) for matrix in matrices)
    for matrix in matrices:
        exponent_of(matrix)  # raises an error if it is not finite
    left, right = (triangle(matrix) for matrix in (np.concatenate(second), first.T))
    core: Weights = placed((left * gain) @ right.T, matrices[0])
    return core


def weighed_as(projection: Projection, matrix: Weights) -> Weights | Weighed:
    """A matrix under the moment of a derived projection, or itself if that has none."""
    made = projection.derived
    assert made is not None
    return weigh(by_moment(projection), [matrix]) if made.weighting else matrix


def _norms(projection: Projection, matrices: Sequence[Weights]) -> list[float]:
    """The norms of the parents' matrices.

    Raises:
        WeightsError: a matrix has values that are not finite; the message names its parent.
    """
    found = []
    for parent, matrix in zip(projection.parents, matrices, strict=True):
        try:
            found.append(norm_as(projection, matrix))
        except WeightsError as error:
            raise WeightsError(f"{parent.address}: {error}") from None
    return found


def norm_as(projection: Projection, matrix: Weights) -> float:
    """The Frobenius norm of a matrix, under the moment of the projection if it has one."""
    found = weighed_as(projection, matrix)
    if isinstance(found, Weighed):
        return found.check.norm
    exponent = exponent_of(matrix)
    squares = sum(float((slab * slab).sum()) for slab in slabs(matrix, exponent))
    return math.ldexp(math.sqrt(squares), exponent)


def _without_rope(projection: Projection, chosen: Way, key: Values, where: Weights) -> Values:
    """The rows of a key that do not keep RoPE; `where` is the key on its device."""
    made = projection.derived
    assert made is not None
    count, head_dim, rotated, is_interleaved, dims = map(int, numbers_of(made.operands[:1])[0])
    layout = RotaryLayout(count, head_dim, rotated, bool(is_interleaved))
    exponent = exponent_of(where)
    pairs = layout.pairs(np.ldexp(key, -exponent))
    under = weighed_as(projection, where)
    seen = layout.pairs(_near_one(host_array(under.matrix))) if isinstance(under, Weighed) else pairs
    if chosen.rope == DECOUPLED:
        basis, energies = shared_basis(seen, chosen.is_real)
        pairs = basis.conj().transpose(0, 2, 1) @ pairs
        kept = shared_kept(energies, dims)
    else:
        kept = head_kept(seen, dims, chosen.choice)
    return np.concatenate([layout.unrotated(key), np.ldexp(rows_of(pairs[~kept]), exponent)])


def _near_one(matrix: Values) -> Values:
    """The matrix divided by a power of two, so that squares stay in range."""
    return np.ldexp(matrix, -exponent_of(matrix))


def triangle(matrix: Values) -> Values:
    """R of the QR decomposition of a matrix."""
    return np.asarray(np.linalg.qr(matrix, "r"))


def _over(matrix: Values, norm: float) -> Values:
    return matrix / norm if norm > 0 else matrix
