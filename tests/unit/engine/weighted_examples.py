"""Second moments of every kind, and the singular values of W C^1/2 formed explicitly, in extended precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankscope.engine.moment import Moment
from rankscope.engine.spectrum import Projection, Source

Array: TypeAlias = NDArray[np.float64]
Long: TypeAlias = NDArray[np.longdouble]

SOURCE = Source("/models/a", "", "a.safetensors", "identity", 10, True)


@dataclass(frozen=True)
class Given:
    """A weighting that has one moment for every projection."""

    given: Moment
    name: str = "moments"
    label: str = "moments of a test"

    def moment(self, _: Projection) -> Moment:
        return self.given


def projection(rows: int, cols: int, **changes: Any) -> Projection:
    made = {"tensor": "t", "slice": None, "tower": None, "layer": 0, "block": "mlp", "role": "up", "expert": None}
    made |= {"address": "layers.0.mlp.up", "rows": rows, "cols": cols, "dtype": "F64", "dequantisation": ""}
    made |= {"transposed": False, "source": SOURCE, "key": f"{rows} x {cols}"}
    return Projection(**made | changes)


def eigen(matrix: Any) -> tuple[Long, Long]:
    """Eigenvalues and eigenvectors of a symmetric matrix by two-sided Jacobi in extended precision, in no order."""
    size = len(matrix)
    even = size + size % 2
    a = np.zeros((even, even), np.longdouble)
    a[:size, :size] = matrix
    v = np.eye(even, dtype=np.longdouble)
    for _ in range(30):
        off = np.abs(a - np.diag(a.diagonal())).max()
        if off <= even * np.finfo(np.longdouble).eps * np.abs(a).max():
            break
        for p, q in _rounds(even):
            _rotate(a, v, p, q)
    kept = list(range(size)) if even == size else _inside(v, size)
    return a.diagonal()[kept].copy(), v[:size, kept]


def _inside(v: Long, size: int) -> list[int]:
    """The columns without that of the padding."""
    outside = int(np.argmax(np.abs(v[size])))
    return [n for n in range(len(v)) if n != outside]


def _rounds(size: int) -> Any:
    """Every pair once, in rounds of pairs that share no column."""
    order = np.arange(size)
    for _ in range(size - 1):
        yield order[: size // 2], order[size // 2 :][::-1]
        order = np.concatenate([order[:1], np.roll(order[1:], 1)])


def _rotate(a: Long, v: Long, p: Any, q: Any) -> None:
    off, difference = a[p, q], a[q, q] - a[p, p]
    zeta = np.divide(difference, 2 * off, out=np.full(len(p), np.inf, np.longdouble), where=off != 0)
    with np.errstate(over="ignore"):
        t = np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    c = 1 / np.sqrt(1 + t * t)
    s = t * c
    for m in (a, a.T, v.T):
        x, y = m[p].copy(), m[q].copy()
        m[p], m[q] = c[:, None] * x - s[:, None] * y, s[:, None] * x + c[:, None] * y


def root(moments: Array) -> Long:
    """S with S S^T = C in extended precision, with the negative eigenvalues of C set to 0."""
    values, vectors = eigen(moments)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)))


def reference(matrix: Array, factor: Long) -> Long:
    """Singular values of W S, descending, shape (min(m, n),), in extended precision.

    Their squares have errors of some 1e-19 |W|^2 |C|.
    """
    product = matrix.astype(np.longdouble) @ factor
    gram = product @ product.T if len(product) <= product.shape[1] else product.T @ product
    return np.asarray(np.sqrt(np.sort(eigen(gram)[0])[::-1].clip(min=0)))


def rotation(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(np.linalg.qr(rng.standard_normal((n, n)))[0])


def _spread(rng: np.random.Generator, n: int, decades: float) -> Array:
    q = rotation(rng, n)
    made = (q * np.logspace(0, -decades, n)) @ q.T
    return (made + made.T) / 2


def _few_tokens(rng: np.random.Generator, n: int) -> Array:
    x = rng.standard_normal((max(1, n // 4), n)) * np.exp(rng.standard_normal(n))
    return x.T @ x / len(x)


def _float32_sums(rng: np.random.Generator, n: int) -> Array:
    """C from few tokens, summed in float32: its smallest eigenvalues are negative."""
    return _few_tokens(rng, n).astype(np.float32).astype(np.float64)


def _one_direction(rng: np.random.Generator, n: int) -> Array:
    u = rng.standard_normal(n)
    return np.eye(n) + 1e6 * np.outer(u, u)


MOMENTS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "identity": lambda _, n: np.eye(n),
    "few tokens": _few_tokens,
    "float32 sums": _float32_sums,
    "spread 1e12": lambda rng, n: _spread(rng, n, 12),
    "spread 1e18": lambda rng, n: _spread(rng, n, 18),
    "one direction": _one_direction,
    "all ones": lambda _, n: np.ones((n, n)),
    "tiny": lambda rng, n: _few_tokens(rng, n) * 1e-200,
}


def _blind(rng: np.random.Generator, m: int, c: Array) -> Array:
    """A matrix whose rows are nearly orthogonal to the leading direction of C."""
    q = np.linalg.eigh(c)[1][:, -1]
    w = rng.standard_normal((m, len(c)))
    return np.asarray(w - np.outer(w @ q, q))


MATRICES: dict[str, Callable[[np.random.Generator, int, Array], Array]] = {
    "gaussian": lambda rng, m, c: rng.standard_normal((m, len(c))),
    "decaying": lambda rng, m, c: (
        np.logspace(0, -6, m)[:, None] * rng.standard_normal((m, len(c))) @ rotation(rng, len(c))
    ),
    "constant": lambda _, m, c: np.ones((m, len(c))),
    "low rank": lambda rng, m, c: rng.standard_normal((m, 3)) @ rng.standard_normal((3, len(c))),
    "blind": _blind,
    "large": lambda rng, m, c: rng.standard_normal((m, len(c))) * 1e120,
}
