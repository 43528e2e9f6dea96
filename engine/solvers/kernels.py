"""Triton kernels of the two-stage eigensolver. Imported only by the functions that launch them.

Every kernel has a twin in plain torch next to its launcher, and tests compare the two under Triton's interpreter.
Blocks are float64 and stay in registers; sums replace tl.dot, which not every Triton has for float64. Sums of squares
below TINY count as zero: the matrices are scaled to entries of at most 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY: tl.constexpr = tl.constexpr(1e-280)


@triton.jit
def _reflector(alpha, square):
    """(tau, scale, beta): I - tau v v^T with v = (1, scale * tail) takes (alpha, tail) to (beta, 0)."""
    live = square > TINY
    norm = tl.sqrt(alpha * alpha + square)
    beta = tl.where(live, tl.where(alpha > 0, -norm, norm), alpha)
    scale = tl.where(live, 1.0 / tl.where(live, alpha - beta, 1.0), 0.0)
    tau = tl.where(live, (beta - alpha) / tl.where(live, beta, 1.0), 0.0)
    return tau, scale, beta


@triton.jit
def _total(x):
    """The sum of all numbers of a block of rows."""
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit(do_not_specialize=["rows", "cols", "stride_matrix", "stride_col", "tiles"])
def tile_qr(
    x,
    q,
    r,
    rows,
    cols,
    stride_matrix,
    stride_col,
    tiles,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Householder QR of one tile of ROWS rows: q (batch, tiles, cols, ROWS), r (batch, cols, tiles * cols).

    All is stored by columns. Rows have two dimensions, (LANES, ROWS / LANES), so that a warp holds whole columns. Warps
    meet once a step, when they share the next column through q. Then q keeps the reflectors, with tau in place of the
    1, from which the second loop makes Q out of the identity, each warp separately.
    """
    LANES: tl.constexpr = 32 if ROWS > 32 else ROWS
    tile = tl.program_id(0)
    matrix = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, LANES)[:, None] + tl.arange(0, ROWS // LANES)[None, :] * LANES
    i3 = i[:, None, :]
    j3 = tl.arange(0, COLS)[None, :, None]
    row = tile * ROWS + i3
    a = tl.load(
        x + matrix * stride_matrix + row + j3.to(tl.int64) * stride_col, mask=(row < rows) & (j3 < cols), other=0.0
    )
    own = q + (matrix * tiles + tile) * ROWS * cols
    tl.store(own + i3 + j3 * 0, a, mask=j3 == 0)
    tl.debug_barrier()
    for k in range(cols):
        column = own + k * ROWS
        c = tl.where(i > k, tl.load(column + i), 0.0)
        tau, scale, _ = _reflector(tl.load(column + k), _total(c * c))
        v = tl.where(i == k, 1.0, c * scale)
        z = tau * tl.sum(tl.sum(v[:, None, :] * a, 2), 0)
        a -= v[:, None, :] * z[None, :, None]
        tl.store(column + ROWS + i3 + j3 * 0, a, mask=(j3 == k + 1) & (j3 < cols))
        tl.debug_barrier()
        tl.store(column + i, tl.where(i == k, tau, v))
    at = r + matrix * cols * cols * tiles + tile * cols + j3 * cols * tiles + i3
    tl.store(at, tl.where(i3 <= j3, a, 0.0), mask=(i3 < cols) & (j3 < cols))
    tl.debug_barrier()
    a = tl.where(i3 == j3, 1.0, a - a)  # a zero that keeps the layout of a
    for step in range(cols):
        column = own + (cols - 1 - step) * ROWS
        v = tl.where(i == cols - 1 - step, 1.0, tl.load(column + i))
        z = tl.load(column + cols - 1 - step) * tl.sum(tl.sum(v[:, None, :] * a, 2), 0)
        a -= v[:, None, :] * z[None, :, None]
    tl.debug_barrier()
    tl.store(own + j3 * ROWS + i3, a, mask=j3 < cols)


@triton.jit(do_not_specialize=["size", "q_matrix", "q_row", "q_col", "r_matrix", "r_row", "r_col"])
def rebuild(
    q,
    r,
    x,
    size,
    q_matrix,
    q_row,
    q_col,
    r_matrix,
    r_row,
    r_col,
    SIZE: tl.constexpr,
):
    """Overwrite Q by V and R by -S R, and compute X = S (Q1 + S)^-T. The inverse is by Gauss-Jordan; each sign of S is
    that of its pivot when it is reached.
    """
    matrix = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    i2 = i[:, None]
    j2 = i[None, :]
    inside = (i2 < size) & (j2 < size)
    top = q + matrix * q_matrix
    a = tl.load(top + i2 * q_row + j2 * q_col, mask=inside, other=0.0)
    sign = tl.zeros([SIZE], tl.float64)
    for k in range(size):
        row = tl.sum(tl.where(i2 == k, a, 0.0), 0)
        col = tl.sum(tl.where(j2 == k, a, 0.0), 1)
        pivot = tl.sum(tl.where(i == k, row, 0.0), 0)
        s = tl.where(pivot < 0, -1.0, 1.0).to(tl.float64)
        sign = tl.where(i == k, s, sign)
        over = 1.0 / (pivot + s)
        row = tl.where(i == k, 1.0, row) * over
        col = tl.where(i == k, 0.0, col)
        a = tl.where(j2 == k, 0.0, a) - col[:, None] * row[None, :]
        a = tl.where(i2 == k, row[None, :], a)
    tl.store(x + matrix * size * size + j2 * size + i2, sign[None, :] * a, mask=inside)
    diagonal = top + i * (q_row + q_col)
    tl.store(diagonal, tl.load(diagonal, mask=i < size, other=0.0) + sign, mask=i < size)
    corner = r + matrix * r_matrix + i2 * r_row + j2 * r_col
    tl.store(corner, -sign[:, None] * tl.load(corner, mask=inside, other=0.0), mask=inside)


@triton.jit
def _turned(v, B: tl.constexpr):
    """A vector over rows, (LANES, B / LANES), as a vector over columns, (B,)."""
    return tl.reshape(tl.trans(v), [B])


@triton.jit
def _two_sided(at, d, v, tau, i, B: tl.constexpr):
    """Replace the diagonal block d, whose lower half is stored at `at`, by H D H with H = I - tau v v^T."""
    i3 = i[:, None, :]
    j3 = tl.arange(0, B)[None, :, None]
    v3 = v[:, None, :]
    across = tl.sum(tl.sum(tl.where(i3 > j3, d, 0.0) * v3, 2), 0)
    vj3 = _turned(v, B)[None, :, None]
    p = tau * (tl.sum(d * vj3, 1) + tl.trans(tl.reshape(across, [v.shape[1], v.shape[0]])))
    w = p - (0.5 * tau * _total(p * v)) * v
    d = d - v3 * _turned(w, B)[None, :, None] - w[:, None, :] * vj3
    tl.store(at, d, mask=i3 >= j3)


@triton.jit
def _first(column, i):
    """The reflector of a column: (v, tau, the column reflected)."""
    alpha = _total(tl.where(i == 0, column, 0.0))
    square = _total(tl.where(i > 0, column * column, 0.0))
    tau, scale, beta = _reflector(alpha, square)
    v = tl.where(i == 0, 1.0, column * scale)
    return v, tau, tl.where(i == 0, beta, 0.0)


@triton.jit(do_not_specialize=["n", "batch", "total", "stride_matrix"])
def chase(
    band,
    progress,
    ticket,
    n,
    batch,
    total,
    stride_matrix,
    B: tl.constexpr,
):
    """Band -> tridiagonal: each ticket is one sweep of one matrix, chased from its column to the end.

    Step k of a sweep waits until the sweep before it has finished step k + 1. Tickets are drawn in order, so whatever a
    program waits for has been started: there is no deadlock, however few programs are resident. Rows have two
    dimensions, (LANES, B / LANES), so that a warp holds whole columns of a block, and sums over rows stay inside it.
    """
    LD: tl.constexpr = 2 * B
    LANES: tl.constexpr = 32 if B > 32 else B
    i = tl.arange(0, LANES)[:, None] + tl.arange(0, B // LANES)[None, :] * LANES
    i3 = i[:, None, :]
    j3 = tl.arange(0, B)[None, :, None]
    drawn = tl.atomic_add(ticket, 1, sem="relaxed")
    while drawn < total:
        s = drawn // batch
        matrix = (drawn % batch).to(tl.int64)
        base = band + matrix * stride_matrix
        flag = progress + matrix * n + s
        seen = tl.atomic_add(flag, 0, sem="acquire")
        while seen < 2:
            seen = tl.atomic_add(flag, 0, sem="acquire")
        top = base + s * LD + 1 + i
        v, tau, column = _first(tl.load(top, cache_modifier=".cg"), i)
        tl.store(top, column)
        at = base + (s + 1) * LD + i3 + j3 * (LD - 1)
        _two_sided(at, tl.load(at, mask=i3 >= j3, other=0.0, cache_modifier=".cg"), v, tau, i, B)
        tl.debug_barrier()
        tl.atomic_xchg(flag + 1, 1, sem="release")
        for k in range(1, 1 + (n - 2 - s) // B):
            while seen < k + 2:
                seen = tl.atomic_add(flag, 0, sem="acquire")
            left = base + (s + 1 + (k - 1) * B) * LD + B
            at = left + i3 + j3 * (LD - 1)
            b = tl.load(at, cache_modifier=".cg")  # loaded together, before the sums: memory is slow, and
            column = tl.load(left + i, cache_modifier=".cg")  # the sum over columns separates reads from writes
            below = base + (s + 1 + k * B) * LD + i3 + j3 * (LD - 1)
            d = tl.load(below, mask=i3 >= j3, other=0.0, cache_modifier=".cg")
            vj3 = _turned(v, B)[None, :, None]
            u = tau * tl.sum(b * vj3, 1)
            b = b - u[:, None, :] * vj3
            v, tau, column = _first(column - u, i)
            z = tau * tl.sum(tl.sum(b * v[:, None, :], 2), 0)
            b = b - v[:, None, :] * z[None, :, None]
            tl.store(at, tl.where(j3 == 0, column[:, None, :], b))
            _two_sided(below, d, v, tau, i, B)
            tl.debug_barrier()
            tl.atomic_xchg(flag + 1, k + 1, sem="release")
        tl.atomic_xchg(flag + 1, 1 << 30, sem="release")
        drawn = tl.atomic_add(ticket, 1, sem="relaxed")


@triton.jit
def _exponent(x):
    """The biased exponent of a float64."""
    return (x.to(tl.int64, bitcast=True) >> 52) & 2047


@triton.jit(do_not_specialize=["n", "padded", "halvings"])
def bisect(
    tridiagonal,
    bounds,
    out,
    n,
    padded,
    halvings,
    LANES: tl.constexpr,
):
    """One lane per eigenvalue: halve its interval by the sign changes among the leading minors of T - x.

    The minors are computed by their three-term recurrence, without a division, and scaled to near 1 every 8 steps.
    """
    matrix = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    base = tridiagonal + matrix * padded * 2
    low = tl.zeros([LANES], tl.float64) + tl.load(bounds + matrix * 2)
    high = tl.zeros([LANES], tl.float64) + tl.load(bounds + matrix * 2 + 1)
    for _ in range(halvings):
        x = 0.5 * (low + high)
        count = tl.zeros([LANES], tl.int32)
        minor = tl.zeros([LANES], tl.float64) + 1.0
        before = tl.zeros([LANES], tl.float64)
        for i in range(0, padded, 8):
            for step in tl.static_range(8):
                d = tl.load(base + 2 * (i + step))
                square = tl.load(base + 2 * (i + step) + 1)
                after = tl.fma(d - x, minor, -(square * before))
                turned = after.to(tl.int64, bitcast=True) ^ minor.to(tl.int64, bitcast=True)
                count -= (turned >> 63).to(tl.int32)
                before = minor
                minor = after
            power = 2046 - tl.maximum(_exponent(minor), _exponent(before))
            factor = (power << 52).to(tl.float64, bitcast=True)
            minor *= factor
            before *= factor
        above = count > lane
        high = tl.where(above, x, high)
        low = tl.where(above, low, x)
    tl.store(out + matrix * n + lane, 0.5 * (low + high), mask=lane < n)
