"""Triton kernels of the fused product: the intermediate Z never leaves the chip.

Everything is row-major as torch holds it: x [N, n1 bw], y and g [N, m1 bh]. A tile of rows is
contracted with B into Z [TN, TQ, bh], turned into [TN bh, TQ] in registers, and contracted with
a tile of C. Blocks are taken G at a time, b = diag(B, ..., B), so that the small products are
wide enough for tensor cores.

Sizes in capitals are powers of two known to the compiler: BH, BW the block, G blocks at a time,
TN rows, TP and TQ block rows and block columns of a tile. C is read through strides, so its
transpose costs nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_groups(
    x, row, q, rows, blocks, TN: tl.constexpr, TQ: tl.constexpr, G: tl.constexpr, B: tl.constexpr
):
    """Rows row.. and blocks q.. of x [rows, blocks B] as [TN TQ / G, G B], zero outside."""
    line = tl.arange(0, TN * TQ // G)
    lane = tl.arange(0, G * B)
    n = row + line // (TQ // G)
    block = q + line % (TQ // G) * G
    place = n.to(tl.int64)[:, None] * (blocks * B) + block[:, None] * B + lane[None, :]
    inside = (n < rows)[:, None] & (block[:, None] + lane[None, :] // B < blocks)
    return tl.load(x + place, mask=inside, other=0.0)


@triton.jit
def _blocks_last(t, TN: tl.constexpr, TQ: tl.constexpr, B: tl.constexpr):
    """[.., ..] holding rows, blocks, sides in this order -> [TN B, TQ]."""
    return tl.reshape(tl.permute(tl.reshape(t, (TN, TQ, B)), (0, 2, 1)), (TN * B, TQ))


@triton.jit
def _load_terms(c, p, q, s_p, s_q, m1, n1, P: tl.constexpr, Q: tl.constexpr):
    """Entries p.., q.. of one term of C as [P, Q], zero outside."""
    i, j = p + tl.arange(0, P), q + tl.arange(0, Q)
    inside = (i < m1)[:, None] & (j < n1)[None, :]
    return tl.load(c + i[:, None] * s_p + j[None, :] * s_q, mask=inside, other=0.0)


@triton.jit
def _square(side0: tl.constexpr, side1: tl.constexpr):
    """Offsets of a row-major matrix [side0, side1]."""
    return tl.arange(0, side0)[:, None] * side1 + tl.arange(0, side1)[None, :]


@triton.jit
def product(
    x, c, b, y, rows, n1, m1, s_i, s_p, s_q,
    RANK: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, G: tl.constexpr,
    TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The forward pass: y[n, p, k] = Σ c[i, p, q] x[n, q, l] B[i, k, l].

    b: [RANK, G BW, G BH]. Grid: tiles of rows, tiles of block rows of y; where one tile holds all
    block rows, Z is computed exactly once.
    """
    row, p = tl.program_id(0) * TN, tl.program_id(1) * TP
    total = tl.full((TN * BH, TP), 0.0, dtype=tl.float32)
    for q in range(0, n1, TQ):
        tile = _load_groups(x, row, q, rows, n1, TN, TQ, G, BW)
        for i in tl.static_range(RANK):
            pattern = tl.load(b + i * G * BW * G * BH + _square(G * BW, G * BH))
            z = tl.dot(tile, pattern, input_precision=PRECISION).to(tile.dtype)
            terms = _load_terms(c + i * s_i, q, p, s_q, s_p, n1, m1, TQ, TP)
            z = _blocks_last(z, TN, TQ, BH)
            total = tl.dot(z, terms, total, input_precision=PRECISION)
    sides_last = tl.permute(tl.reshape(total, (TN, BH, TP)), (0, 2, 1))
    n = row + tl.arange(0, TN)
    column = p * BH + tl.arange(0, TP * BH)
    tl.store(
        y + n.to(tl.int64)[:, None] * (m1 * BH) + column[None, :],
        tl.reshape(sides_last, (TN, TP * BH)).to(y.dtype.element_ty),
        mask=(n < rows)[:, None] & (column < m1 * BH)[None, :],
    )


@triton.jit
def terms_gradient(
    x, g, b, dc, rows, n1, m1, splits,
    RANK: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, G: tl.constexpr,
    TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of C: dc[s, i, p, q] = Σ g[n, p, k] Z[i, n, q, k] over the rows of part s.

    Grid: tiles of block rows, tiles of block columns, parts times terms. The parts are added up
    afterwards, in a fixed order, so that the result is the same in every run.
    """
    p, q = tl.program_id(0) * TP, tl.program_id(1) * TQ
    part, i = tl.program_id(2) // RANK, tl.program_id(2) % RANK
    pattern = tl.load(b + i * G * BW * G * BH + _square(G * BW, G * BH))
    total = tl.full((TP, TQ), 0.0, dtype=tl.float32)
    for row in range(part * TN, rows, splits * TN):
        tile = _load_groups(x, row, q, rows, n1, TN, TQ, G, BW)
        z = tl.dot(tile, pattern, input_precision=PRECISION).to(tile.dtype)
        slopes = _blocks_last(_load_groups(g, row, p, rows, m1, TN, TP, G, BH), TN, TP, BH)
        z = _blocks_last(z, TN, TQ, BH)
        total = tl.dot(tl.trans(slopes), z, total, input_precision=PRECISION)
    i1, i2 = p + tl.arange(0, TP), q + tl.arange(0, TQ)
    inside = (i1 < m1)[:, None] & (i2 < n1)[None, :]
    base = dc + tl.program_id(2) * m1 * n1
    tl.store(base + i1[:, None] * n1 + i2[None, :], total, mask=inside)


@triton.jit
def input_and_pattern_gradients(
    x, g, c, b, dx, db, rows, n1, m1, s_i, s_p, s_q,
    RANK: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, G: tl.constexpr,
    TN: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, WITH_DX: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The other gradients: dZ = Cᵀ g in registers, then dx = Σ dZ B and the tile's share of dB.

    b: [RANK, G BH, G BW], transposed against ``product``; db: [tiles, RANK, G BW, G BH], whose
    diagonal blocks are added up afterwards. Grid: tiles of rows, tiles of block columns.
    """
    row, q = tl.program_id(0) * TN, tl.program_id(1) * TQ
    tile = _load_groups(x, row, q, rows, n1, TN, TQ, G, BW)
    slope = tl.full((TN * TQ // G, G * BW), 0.0, dtype=tl.float32)
    share = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    for i in tl.static_range(RANK):
        dz = tl.full((TN * BH, TQ), 0.0, dtype=tl.float32)
        for p in range(0, m1, TP):
            slopes = _blocks_last(_load_groups(g, row, p, rows, m1, TN, TP, G, BH), TN, TP, BH)
            terms = _load_terms(c + i * s_i, p, q, s_p, s_q, m1, n1, TP, TQ)
            dz = tl.dot(slopes, terms, dz, input_precision=PRECISION)
        sides_last = tl.permute(tl.reshape(dz, (TN, BH, TQ)), (0, 2, 1))
        dz = tl.reshape(sides_last, (TN * TQ // G, G * BH)).to(tile.dtype)
        both = tl.dot(tl.trans(tile), dz, input_precision=PRECISION)
        place = (share * RANK + i) * G * BW * G * BH
        tl.store(db + place + _square(G * BW, G * BH), both)
        if WITH_DX:
            pattern = tl.load(b + i * G * BH * G * BW + _square(G * BH, G * BW))
            slope = tl.dot(dz, pattern, slope, input_precision=PRECISION)
    if WITH_DX:
        line, lane = tl.arange(0, TN * TQ // G), tl.arange(0, G * BW)
        n, block = row + line // (TQ // G), q + line % (TQ // G) * G
        tl.store(
            dx + n.to(tl.int64)[:, None] * (n1 * BW) + block[:, None] * BW + lane[None, :],
            slope.to(dx.dtype.element_ty),
            mask=(n < rows)[:, None] & (block[:, None] + lane[None, :] // BW < n1),
        )
