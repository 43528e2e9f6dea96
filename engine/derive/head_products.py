"""The matrices of single heads: rows of a projection, and products of two factors by QR, which are never formed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import WeightsError
from ..spectrum import Projection, Values
from ..weights import Weights, host_array
from .balance import centre
from .gauge import CENTRED
from .moment_factors import numbers_of
from .rotation import RotaryLayout, rows_of
from .slabs import exponent_of, joined, placed, slabs
from .stack import triangle
from .weigh import ValuesCheck, Weighed, weigh
from .weighting import WEIGHED, by_moment


def head_rows(projection: Projection, matrices: Sequence[Weights]) -> Weights | Weighed:
    """The rows of one head of a projection, in the state of that projection."""
    assert projection.derived is not None
    start, count = map(int, numbers_of(projection.derived.operands[:1])[0])
    return _in_state(projection, matrices[0][start : start + count])


def multiply_qk(projection: Projection, matrices: Sequence[Weights]) -> Weighed:
    """W_q^T W_k of a head; under a weighting C^1/2 W_q^T W_k C^1/2; for tokens apart W_q^T R W_k, R the rotation."""
    made = projection.derived
    assert made is not None
    first, second, dim, is_turned = map(int, numbers_of(made.operands[:1])[0])
    query, key = matrices[0][first : first + dim], matrices[1][second : second + dim]
    if is_turned:
        rotated, is_interleaved, *angles = numbers_of(made.operands[1:2])[0]
        layout = RotaryLayout(1, dim, int(rotated), bool(is_interleaved))
        query, key = _turned(query, layout, np.array(angles)), _turned(key, layout, np.zeros(len(angles)))
    own = 1 + is_turned
    each = (len(made.operands) - own) // 2
    of_query = replace(projection, derived=replace(made, operands=made.operands[: own + each]))
    seen = [_factor(of_query, 0, query), _factor(projection, 1, key)]
    return _product(seen[0], seen[1], matrices[0])


def multiply_ov(projection: Projection, matrices: Sequence[Weights]) -> Weighed:
    """W_o W_v of a head, with W_v in its state; for several heads that share a value, their W_o stacked by rows."""
    made = projection.derived
    assert made is not None
    row, column, dim, heads = map(int, numbers_of(made.operands[:1])[0])
    value = _factor(projection, 0, matrices[0][row : row + dim])
    written = host_array(_double(matrices[1][:, column : column + heads * dim]))
    output = written.reshape(-1, heads, dim).transpose(2, 1, 0).reshape(dim, -1)
    as_it_is = replace(projection, derived=replace(made, formula=""))
    return _product(_factor(as_it_is, 1, output), value, matrices[0])


def _in_state(projection: Projection, rows: Weights) -> Weights | Weighed:
    """Rows of a projection under the weighting, or with the norm folded in, that its formula and last operands give."""
    made = projection.derived
    assert made is not None
    if WEIGHED in made.formula:
        return weigh(by_moment(projection), [rows])
    if made.formula.endswith(CENTRED):
        return centre(replace(projection, derived=replace(made, operands=made.operands[-1:])), [rows])
    return rows


def _factor(projection: Projection, parent: int, rows: Weights) -> tuple[Values, float]:
    """One factor in its state, shape (dim, n), and the share of its moment's trace that was negative.

    Raises:
        WeightsError: it has values that are not finite; the message names the parent.
    """
    try:
        found = _in_state(projection, rows)
        if isinstance(found, Weighed):
            return host_array(found.matrix), found.check.clipped
        exponent_of(found)
        return host_array(_double(found)), 0.0
    except WeightsError as error:
        raise WeightsError(f"{projection.parents[parent].address}: {error}") from None


def _product(left: tuple[Values, float], right: tuple[Values, float], like: Weights) -> Weighed:
    """R_A R_B^T, which has the singular values of A^T B for A (dim, m) and B (dim, n), on the device of `like`.

    Its norm is computed separately, as tr(A A^T B B^T). Its rounding error is bounded as under a weighting.
    """
    (a, of_a), (b, of_b) = left, right
    back = exponent_of(a) + exponent_of(b)
    a, b = (np.ldexp(m, -exponent_of(m)) for m in (a, b))
    first, second = triangle(a.T), triangle(b.T)
    energy = float(((a @ a.T) * (b @ b.T)).sum())
    check = ValuesCheck(
        norm=math.ldexp(math.sqrt(max(energy, 0.0)), back),
        reach=math.ldexp(float(np.linalg.norm(first, 2) * np.linalg.norm(second, 2)), back),
        whole=math.ldexp(float(np.linalg.norm(a) * np.linalg.norm(b)), back),
        cols=max(a.shape[1], b.shape[1]),
        clipped=max(of_a, of_b),
        is_exact=False,
    )
    return Weighed(placed(np.ldexp(first @ second.T, back), like), check)


def _turned(rows: Weights, layout: RotaryLayout, angles: Values) -> Weights:
    """The rows of one head: first those that RoPE leaves as they are, then its pairs, rotated by their angles."""
    held = host_array(_double(rows))
    pairs = layout.pairs(held)[:, 0] * np.exp(1j * angles)[:, None]
    turned: Weights = placed(np.concatenate([layout.unrotated(held), rows_of(pairs)]), rows)
    return turned


def _double(matrix: Weights) -> Weights:
    made: Weights = joined(list(slabs(matrix)))
    return made
