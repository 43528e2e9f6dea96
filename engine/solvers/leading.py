"""The leading singular triplets of a matrix: values with both vectors, which the other solvers do not compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from ..spectrum import Values
from ..weights import Weights, host_array
from . import gram
from .ladder import NOT_FINITE, moved

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[np.float64] | torch.Tensor"

GRAM, KRYLOV = "gram-eigh", "block-krylov"
VERSION = 1
TOLERANCE = 1e-8
"""The most that |A v - sigma u| and |A^T u - sigma v| of a triplet may be, relative to sigma_1."""
GRAM_SIDE = 2048
"""Up to this smaller side all eigenvectors of the Gram matrix are computed."""
_BLOCK, _STEPS, _ROUNDS = 16, 32, 8
_ROUNDING = 1e-13
"""The rounding error of a product with A A^T, relative to sigma_1^2: values below 1e-5 sigma_1 are not known better
before `_refined`."""
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Triplets:
    """The k largest singular values, descending, with vectors `left`, shape (m, k), and `right`, (n, k); float64. The
    largest entry of each left vector is positive. `row_norms` (m,) and `column_norms` (n,) are those of the matrix.

    `residual` is the largest |A v - sigma u|: no value is further than that from a true one.
    """

    values: Values
    left: Values
    right: Values
    row_norms: Values
    column_norms: Values
    residual: float
    solver: str
    device: str


def leading_triplets(matrix: Weights, count: int, device: str = "cpu") -> Triplets:
    """The `count` largest singular values of a matrix with their vectors, at most min(m, n) of them.

    Computed on the device, or on the CPU if the device has no room or does not answer.

    Raises:
        WeightsError: the weights hold NaN or infinite values, or TOLERANCE was not reached.
    """
    try:
        return _found(_Operator(moved(matrix, device)), count, device)
    except (RuntimeError, MemoryError):
        if device == "cpu":
            raise
        return _found(_Operator(host_array(matrix)), count, "cpu")


class _Operator:
    """A scaled matrix with the smaller side first: A of shape (small, large), in slabs of the larger side.

    It is kept in float64 if that takes at most 1 GiB, else converted again for every product.
    """

    def __init__(self, matrix: Weights) -> None:
        self._matrix = matrix
        self.is_turned = matrix.shape[0] > matrix.shape[1]
        self.small, self.large = sorted(matrix.shape)
        self.xp: ModuleType = np
        if not isinstance(matrix, np.ndarray):
            import torch

            self.xp = torch
        top = max(-float(matrix.min()), float(matrix.max()))
        if not math.isfinite(top):
            raise WeightsError(NOT_FINITE)
        self.exponent = math.frexp(top)[1] if top > 0 else 0
        is_kept = 8 * self.small * self.large <= _KEPT_BYTES
        self._kept = list(self._made()) if is_kept else None

    def slabs(self) -> Iterator[Array]:
        """A in slabs of columns, float64."""
        return iter(self._kept) if self._kept is not None else self._made()

    def _made(self) -> Iterator[Array]:
        slabs: Iterator[Any] = gram.slabs(self._matrix)
        for slab in slabs:
            if isinstance(slab, np.ndarray):
                yield np.ldexp(slab.astype(np.float64), -self.exponent)
            else:
                yield slab.double() * 2.0**-self.exponent

    def times(self, right: Array) -> Array:
        """A X, shape (small, columns of X)."""
        product, start = self.zeros(self.small, right.shape[1]), 0
        for slab in self.slabs():
            product += slab @ right[start : start + slab.shape[1]]
            start += slab.shape[1]
        return product

    def transposed_times(self, left: Array) -> Array:
        """A^T Q, shape (large, columns of Q)."""
        found: Array = self.xp.concatenate([slab.T @ left for slab in self.slabs()])
        return found

    def zeros(self, rows: int, columns: int) -> Array:
        """Zeros on the device of the matrix."""
        return self.array(np.zeros((rows, columns)))

    def array(self, numbers: Values) -> Array:
        """Numbers on the device of the matrix."""
        if isinstance(self._matrix, np.ndarray):
            return numbers
        import torch

        return torch.as_tensor(numbers, device=self._matrix.device)

    def norms(self) -> tuple[Values, Values]:
        """The norms of the rows and of the columns of A."""
        small, large = np.zeros(self.small), []
        for slab in self.slabs():
            squares = slab * slab
            small += _host(squares.sum(1))
            large.append(_host(squares.sum(0)))
        return np.sqrt(small), np.sqrt(np.concatenate(large))


def _found(operator: _Operator, count: int, device: str) -> Triplets:
    count = min(count, operator.small)
    by_gram = operator.small <= GRAM_SIDE
    basis = _gram_basis(operator, count) if by_gram else _krylov_basis(operator, count)
    left, values, right, residual = _refined(operator, basis)
    if not residual <= TOLERANCE * float(values[0]):
        raise WeightsError("its leading directions were not found to 1e-8 of sigma_1")
    rows, columns = operator.norms()
    if operator.is_turned:
        left, right, rows, columns = right, left, columns, rows
    turn = np.where(left[np.abs(left).argmax(0), np.arange(count)] < 0, -1.0, 1.0)
    left, right = left * turn, right * turn
    values, rows, columns = (np.ldexp(x, operator.exponent) for x in (values, rows, columns))
    solver = GRAM if by_gram else KRYLOV
    return Triplets(values, left, right, rows, columns, math.ldexp(residual, operator.exponent), solver, device)


def _gram_basis(operator: _Operator, count: int) -> Array:
    """The leading eigenvectors of A A^T, shape (small, count)."""
    product = operator.zeros(operator.small, operator.small)
    for slab in operator.slabs():
        product += slab @ slab.T
    vectors: Array = operator.xp.linalg.eigh(product)[1][:, -count:]
    return vectors


def _krylov_basis(operator: _Operator, count: int) -> Array:
    """The leading eigenvectors of A A^T, found in the span of X, (A A^T) X, (A A^T)^2 X ... for a random block X. Each
    block is made orthogonal to all before it, twice. Neighbouring values differ by .5 %: iterating on one block would
    not separate them.

    If a span of _STEPS blocks is not enough, a new one begins with the best vectors so far.
    """
    xp = operator.xp
    start = np.random.default_rng(0).standard_normal((operator.small, _BLOCK))
    block: Array = xp.linalg.qr(operator.array(start))[0]
    for _ in range(_ROUNDS):
        basis, products = block, operator.zeros(operator.small, 0)
        for _ in range(min(_STEPS, operator.small // _BLOCK)):
            product = operator.times(operator.transposed_times(block))
            products = xp.concatenate([products, product], 1)
            squares, mixing = xp.linalg.eigh(_symmetric(basis.T @ products))
            squares, mixing = squares[-_BLOCK:], mixing[:, -_BLOCK:]
            best = basis @ mixing
            errors = _host(((products @ mixing - best * squares) ** 2).sum(0)) ** 0.5
            if _is_converged(_host(squares)[-count:], errors[-count:]):
                return _last(best, count)
            block = product
            for _ in range(2):
                block = xp.linalg.qr(block - basis @ (basis.T @ block))[0]
            basis = xp.concatenate([basis, block], 1)
        block = xp.linalg.qr(best)[0]
    return _last(best, count)


def _last(columns: Array, count: int) -> Array:
    return columns[:, -count:]


def _is_converged(squares: Values, errors: Values) -> bool:
    """Return whether |A A^T u - sigma^2 u| / sigma of all is below half of TOLERANCE sigma_1, or as small as rounding
    allows."""
    sigma = np.sqrt(np.maximum(squares, 0.0))
    top = float(sigma[-1])
    return bool((errors <= np.maximum(0.5 * TOLERANCE * top * sigma, _ROUNDING * top * top)).all())


def _refined(operator: _Operator, basis: Array) -> tuple[Values, Values, Values, float]:
    """Left vectors, values and right vectors of A in the span of orthonormal columns, and the largest |A v - sigma u|.

    By the SVD A^T Q = V S R^T and u = Q R: right vectors are orthonormal even if values are tiny.
    """
    right, values, mixing = operator.xp.linalg.svd(operator.transposed_times(basis), full_matrices=False)
    left = basis @ mixing.T
    errors = _host(((operator.times(right) - left * values) ** 2).sum(0))
    return _host(left), _host(values), _host(right), float(errors.max()) ** 0.5


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) * 0.5


def _host(array: Array) -> Values:
    return np.asarray(host_array(array), np.float64)
