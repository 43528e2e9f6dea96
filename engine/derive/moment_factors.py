"""Second moments as factors: S with S S^T = C, so that the singular values of W S are those of W C^1/2."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from ..errors import WeightsError
from ..spectrum import Operand, Values
from .slabs import Array

ToDevice: TypeAlias = Callable[[Values], Array]

MOST_NEGATIVE = 1e-5
"""How far the smallest eigenvalue of a second moment may lie below 0, relative to the largest: float32 sums round."""
_KEPT_BYTES = 1 << 30


class Factor(Protocol):
    """S, shape (n, n). C is in units of 4^`exponent`, S in units of 2^`exponent`: their largest entries are near 1.

    `norm` is an upper bound of the spectral norm of C. `clipped` is the share of its trace that lay in negative
    eigenvalues, which count as 0. `is_exact`: C is diagonal, so the entries of W S have relative errors of an eps.
    `diagonal` is the diagonal of C, shape (n,).
    """

    exponent: int
    norm: float
    clipped: float
    is_exact: bool
    diagonal: Array

    def times(self, rows: Array) -> Array:
        """w S for some rows w of a matrix, shape (k, n), as a new array of that shape."""
        ...

    def energy(self, rows: Array) -> float:
        """The trace of w C w^T, computed from C, not by `times`."""
        ...

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        ...


class Diagonal:
    """The factor of C = diag(d)."""

    clipped, is_exact = 0.0, True

    def __init__(self, numbers: Sequence[Values], place: ToDevice) -> None:
        (diagonal,) = numbers
        if (diagonal < 0).any():
            raise WeightsError(f"a mean square cannot be negative: {float(diagonal.min()):.3g} among the moments")
        self.exponent = _exponent(math.sqrt(float(diagonal.max(initial=0.0))))
        self._root = place(_scaled(np.sqrt(diagonal), self.exponent))
        self.diagonal = place(_scaled(diagonal, 2 * self.exponent))
        self.norm = float(self.diagonal.max()) if len(diagonal) else 0.0
        self.size = 16 * len(diagonal)

    def times(self, rows: Array) -> Array:
        return rows * self._root

    def energy(self, rows: Array) -> float:
        return float(((rows * rows) @ self.diagonal).sum())


class LayerNorm:
    """The factor of C = diag(g) (I - u u^T) diag(g) + b b^T, u = 1 / sqrt n.

    W C W^T = A (I - u u^T) A^T + (W b) (W b)^T, A = W diag(g). The reflection H that takes u to -e_1 turns
    A (I - u u^T) into A H without its first column, whose place W b takes: n columns are enough.
    """

    clipped, is_exact = 0.0, False

    def __init__(self, numbers: Sequence[Values], place: ToDevice) -> None:
        gain, bias = numbers
        n = len(gain)
        self.exponent = _exponent(float(np.abs(numbers).max(initial=0.0)))
        gain, bias = (_scaled(v, self.exponent) for v in (gain, bias))
        mirror = np.full(n, n**-0.5 if n else 0.0)
        mirror[:1] += 1.0
        self._gain, self._bias = place(gain), place(bias)
        self._mirror = place(mirror)
        self._double = place(mirror * (2.0 / max(float(mirror @ mirror), 1.0)))
        self.norm = float((gain**2).max(initial=0.0) + bias @ bias)
        self.diagonal = place(gain**2 * (1 - 1 / max(n, 1)) + bias**2)
        self.size = 40 * n

    def times(self, rows: Array) -> Array:
        made = rows * self._gain
        made -= (made @ self._mirror)[:, None] * self._double
        made[:, 0] = rows @ self._bias
        return made

    def energy(self, rows: Array) -> float:
        centred = rows * self._gain
        centred -= centred.mean(1)[:, None]
        return float((centred**2).sum() + ((rows @ self._bias) ** 2).sum())


class Full:
    """The factor of C = Q L Q^T: S = Q L^1/2, with negative eigenvalues set to 0."""

    is_exact = False

    def __init__(self, numbers: Sequence[Values], place: ToDevice) -> None:
        (moments,) = numbers
        self.exponent = _exponent(math.sqrt(float(np.abs(moments).max(initial=0.0))))
        self._moments = place(_scaled(moments, 2 * self.exponent))
        self.diagonal = place(_scaled(np.ascontiguousarray(np.diagonal(moments)), 2 * self.exponent))
        values, vectors = _eigh(self._moments)
        low, top = (float(values[0]), float(values[-1])) if len(moments) else (0.0, 0.0)
        if low < -MOST_NEGATIVE * max(top, 0.0):
            over = f"{low / top:.1e} of the largest" if top > 0 else "and the largest is not positive"
            raise WeightsError(f"no second moments: their smallest eigenvalue is negative, {over}")
        below = values < 0
        self._factor = vectors * values.clip(min=0) ** 0.5
        # Negative eigenvalues that are mere rounding of a singular matrix are within the tolerance of the trace.
        gone = values < -len(moments) * _EPS * top
        self._gone = vectors[:, gone] * (-values[gone]) ** 0.5
        trace = float(values.abs().sum() if hasattr(values, "abs") else np.abs(values).sum())
        self.norm, self.clipped = max(top, 0.0), float(-values[below].sum()) / trace if trace > 0 else 0.0
        self.size = 16 * moments.size

    def times(self, rows: Array) -> Array:
        return rows @ self._factor

    def energy(self, rows: Array) -> float:
        return float(((rows @ self._moments) * rows).sum() + ((rows @ self._gone) ** 2).sum())


_EPS = float(np.finfo(np.float64).eps)
_FORMS: dict[str, Callable[[Sequence[Values], ToDevice], Factor]] = {
    "diagonal": Diagonal,
    "layer_norm": LayerNorm,
    "full": Full,
}


class Factors:
    """A cache of factors, on their devices: the projections of a block share one, and it costs more than all of their
    spectra. Thread-safe: a thread waits while another makes the same factor, not while it makes other ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)
        self._kept: OrderedDict[tuple[str, ...], Factor] = OrderedDict()

    def get(self, form: str, operands: Sequence[Operand], held: str, place: ToDevice) -> Factor:
        """The factor of a moment of this form. `place` moves its numbers to a device, and `held` names that device.

        Raises:
            WeightsError: the numbers cannot be loaded, or are no second moments.
            RuntimeError: no room on the device.
        """
        key = (form, held, *(operand.digest for operand in operands))
        with self._lock:
            making = self._making[key]
        with making:
            with self._lock:
                found = self._kept.get(key)
                if found is not None:
                    self._kept.move_to_end(key)
                    return found
            made = _FORMS[form](numbers_of(operands), place)
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > 1 and sum(factor.size for factor in self._kept.values()) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
                self._making.pop(key, None)
            return made


def numbers_of(operands: Sequence[Operand]) -> list[Values]:
    """Load the numbers of operands, as float64.

    Raises:
        WeightsError: they cannot be loaded, or hold NaN or infinite values.
    """
    found = []
    for operand in operands:
        if operand.load is None:
            raise WeightsError("only the digest of its second moments is known: name their file with --weight FILE")
        numbers = np.asarray(operand.load(), np.float64)
        if not np.isfinite(numbers).all():
            raise WeightsError("the second moments hold NaN or infinite values")
        found.append(numbers)
    return found


def _eigh(moments: Array) -> tuple[Array, Array]:
    """The eigenvalues of a symmetric matrix, ascending, and its eigenvectors.

    Raises:
        WeightsError: LAPACK does not converge.
    """
    if isinstance(moments, np.ndarray):
        try:
            return np.linalg.eigh(moments)
        except np.linalg.LinAlgError as error:
            raise WeightsError(f"the eigenvalues of the second moments cannot be computed: {error}") from None
    import torch

    values, vectors = torch.linalg.eigh(moments)
    return values, vectors


def _exponent(top: float) -> int:
    """The exponent of the power of two next above `top`; 0 for 0."""
    return math.frexp(top)[1] if top > 0 else 0


def _scaled(values: Values, exponent: int) -> Values:
    """values / 2^exponent, exact but for results below the smallest normal number."""
    return np.ldexp(values, -exponent)
