"""Matrices for checking stated error bounds: hard ones, plain ones, long ones, and those of the demo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.fft
import scipy.linalg
from extended_reference import Extended, singular_values
from numpy.typing import NDArray

from rankscope.engine.catalogue.rules import cut
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.spectrum import Projection
from rankscope.engine.weights import host_array

Array: TypeAlias = NDArray[np.float64]
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 100, 128, 192, 200, 256, 300)
LARGE = ((512, 512), (1024, 1024), (1024, 2816), (256, 16384), (32, 131_072))
LONG = ((2, 1_000_000), (4, 1_000_000), (8, 100_000), (64, 50_000), (1, 100_000))
ADDENDS = (1.0, 0.1, 1 / 3, 0.7, 0.9, 2**-0.5, 0.123, 0.57)


class Case(NamedTuple):
    """A matrix by name; `exact` gives its singular values in extended precision where they are known."""

    family: str
    name: str
    make: Callable[[], Array]
    exact: Callable[[], Extended] | None = None


def all_cases(demo: bool) -> Iterator[Case]:
    """More than 800 cases; with `demo` also its 210, at the end."""
    yield from _classics()
    yield from _random()
    yield from _planted()
    yield from _long()
    if demo:
        yield from _demo()


def _rng(*seed: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(seed).encode()))


def _classics() -> Iterator[Case]:
    for n in SIZES:
        for kind in (2, 3, 4):
            if n > 1:
                yield Case("dct", f"{kind} {n}", partial(scipy.fft.dct, np.eye(n), kind, norm="ortho"))
        yield Case("minimum", f"{n}", partial(_minimum, n))
        for addend in (1.0, 0.1):
            yield Case("triangle", f"{addend} {n}", partial(np.tril, np.full((n, n), addend)))
        for long in (n, 3 * n, 16 * n):
            for addend in ADDENDS[:3]:
                exact = partial(_one_value, addend, n, long)
                yield Case("constant", f"{addend:.3g} {n}x{long}", partial(np.full, (n, long), addend), exact)
        if n <= 64:
            yield Case("hilbert", f"{n}", partial(scipy.linalg.hilbert, n))
            for angle in (0.3, 0.8, 1.2):
                yield Case("kahan", f"{angle} {n}", partial(_kahan, n, angle))
    for rows, cols in LARGE:
        for addend in ADDENDS[:3]:
            exact = partial(_one_value, addend, rows, cols)
            make = partial(np.full, (rows, cols), addend)
            yield Case("large, constant", f"{addend:.3g} {rows}x{cols}", make, exact)
    for blocks in (2, 3, 5, 8):
        for low in (0.3, 1e-2, 1e-3, 1e-5):
            for rows, cols in ((4, 60), (12, 100)):
                yield Case("blocks", f"{blocks} {low} {rows}x{cols}", partial(_blocks, blocks, low, rows, cols))
    for a, b in ((4, 5), (16, 12), (16, 20), (32, 32), (32, 40)):
        yield Case("kronecker", f"{a} x {b}", partial(_kronecker, a, b), partial(_exact_kronecker, a, b))
    for power in range(1, 10):
        yield Case("hadamard", f"{1 << power}", partial(_hadamard, 1 << power), partial(_flat, 1 << power))


def _minimum(n: int) -> Array:
    return np.minimum.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1))


def _kahan(n: int, angle: float) -> Array:
    s, c = math.sin(angle), math.cos(angle)
    return np.asarray((s ** np.arange(n))[:, None] * (np.eye(n) - c * np.triu(np.ones((n, n)), 1)))


def _kronecker(a: int, b: int) -> Array:
    """A Kronecker product of whole-number matrices; its singular values are the products of those of the factors."""
    return np.asarray(np.kron(*_factors(a, b)))


def _exact_kronecker(a: int, b: int) -> Extended:
    products = np.multiply.outer(*map(singular_values, _factors(a, b)))
    return np.sort(products.ravel())[::-1]


def _factors(a: int, b: int) -> tuple[Array, Array]:
    rng = _rng("kronecker", a, b)
    return rng.integers(-9, 10, (a, a)).astype(float), rng.integers(-9, 10, (b, b)).astype(float)


def _blocks(blocks: int, low: float, rows: int, cols: int) -> Array:
    """Constant blocks, each rows x cols, with values that give singular values from 1 to `low`."""
    return np.kron(planted(np.geomspace(1, low, blocks), blocks, blocks, 7), np.ones((rows, cols)))


def _hadamard(n: int) -> Array:
    return np.asarray(scipy.linalg.hadamard(n), float)


def _flat(n: int) -> Extended:
    return np.full(n, np.sqrt(np.longdouble(n)))


def _one_value(addend: float, rows: int, cols: int) -> Extended:
    values = np.zeros(min(rows, cols), np.longdouble)
    values[0] = np.longdouble(addend) * np.sqrt(np.longdouble(rows * cols))
    return values


def _random() -> Iterator[Case]:
    shapes = [(n, n * wide) for n in SIZES for wide in (1, 2, 4) if n * wide <= 400]
    for rows, cols in shapes:
        for kind, make in _KINDS.items():
            yield Case(kind, f"{rows}x{cols}", partial(make, rows, cols))
    for rows, cols in ((1024, 1024), (512, 1500), (256, 9000), (64, 30_000)):
        yield Case("two values", f"{rows}x{cols}", partial(_two_values, rows, cols))
    for exponent in (-310, -318, -200, 200):
        for rows, cols in ((3, 4), (20, 30), (64, 64)):
            yield Case("small and large", f"1e{exponent} {rows}x{cols}", partial(_times_ten_to, exponent, rows, cols))
    for seed in range(40):
        yield Case("gaussian 256x1024", f"{seed}", partial(_gaussian, 256, 1024, seed))
    for seed in range(4):
        yield Case("gaussian 1024", f"{seed}", partial(_gaussian, 1024, 1024, seed))


def _gaussian(rows: int, cols: int, seed: int = 0) -> Array:
    return _rng(rows, cols, seed).standard_normal((rows, cols))


def _times_ten_to(exponent: int, rows: int, cols: int) -> Array:
    return 10.0**exponent * _gaussian(rows, cols)


def _bfloat16(rows: int, cols: int) -> Array:
    """A heavy-tailed matrix with 8 bits a number."""
    mantissa, exponent = np.frexp(_rng("bf16", rows, cols).standard_t(3, (rows, cols)))
    return np.asarray(np.ldexp(np.round(mantissa * 256) / 256, exponent))


def _one_sign(rows: int, cols: int) -> Array:
    return 1 + _rng("sign", rows, cols).random((rows, cols))


def _orthogonal(rows: int, cols: int) -> Array:
    return np.linalg.qr(_rng("q", rows, cols).standard_normal((cols, rows)))[0].T


def _two_values(rows: int, cols: int) -> Array:
    """A matrix of 0.1 with random signs: every sum on the diagonal of the Gram matrix is a sum of equal terms."""
    return np.where(_rng("signs", rows, cols).random((rows, cols)) < 0.5, 0.1, -0.1)


def _three_values(rows: int, cols: int) -> Array:
    return 0.3 * _rng("three", rows, cols).integers(-1, 2, (rows, cols)) + 0.1 * np.eye(rows, cols)


_KINDS: dict[str, Callable[[int, int], Array]] = {
    "gaussian": _gaussian,
    "bfloat16": _bfloat16,
    "one sign": _one_sign,
    "orthogonal": _orthogonal,
    "two values": _two_values,
    "three values": _three_values,
}


def planted(sigma: Array, rows: int, cols: int, seed: int) -> Array:
    """A random matrix with singular values near these."""
    rng = _rng("planted", rows, cols, seed)
    left = np.linalg.qr(rng.standard_normal((rows, sigma.size)))[0]
    right = np.linalg.qr(rng.standard_normal((cols, sigma.size)))[0]
    return np.asarray((left * sigma) @ right.T)


def _planted() -> Iterator[Case]:
    for rows, cols in ((6, 9), (16, 16), (40, 60), (100, 100), (128, 300)):
        n = min(rows, cols)
        for decades in range(1, 13):
            sigma = np.geomspace(1, 10.0**-decades, n)
            yield Case("geometric", f"{decades} {rows}x{cols}", partial(planted, sigma, rows, cols, decades))
        for gap in (0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3):
            sigma = np.where(np.arange(n) < n / 2, 3.0, 1 + gap * np.arange(n))
            yield Case("clustered", f"{gap:.0e} {rows}x{cols}", partial(planted, sigma, rows, cols, 0))
        for rank in (1, n // 3):
            yield Case("low rank", f"{rank} {rows}x{cols}", partial(planted, np.ones(rank), rows, cols, rank))
        sigma = np.where(np.arange(n) == 0, 1e4, 1.0)
        yield Case("outlier", f"{rows}x{cols}", partial(planted, sigma, rows, cols, 0))


def _long() -> Iterator[Case]:
    for rows, cols in LONG:
        for addend in ADDENDS:
            exact = partial(_one_value, addend, rows, cols)
            yield Case("long, constant", f"{addend:.3g} {rows}x{cols}", partial(np.full, (rows, cols), addend), exact)
        for kind in ("gaussian", "one sign", "two values"):
            yield Case(f"long, {kind}", f"{rows}x{cols}", partial(_KINDS[kind], rows, cols))


def _demo() -> Iterator[Case]:
    for address in _opened()[1]:
        yield Case("demo", address, partial(_of_the_demo, address))


@cache
def _opened() -> tuple[Checkpoint, dict[str, Projection]]:
    checkpoint = open_checkpoint("demo")
    return checkpoint, {p.address: p for p in build_tree(checkpoint).scanned()}


def _of_the_demo(address: str) -> Array:
    checkpoint, projections = _opened()
    p = projections[address]
    weights, _ = checkpoint.read(next(tensor for tensor in checkpoint.tensors if tensor.name == p.tensor))
    return host_array(weights if p.slice is None else cut(weights, p.slice)).astype(np.float64)
