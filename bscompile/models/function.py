"""y = x Wᵀ with W = Σᵢ Cᵢ ⊗ Bᵢ, C = S∘A, forward and backward, saving only x and the factors.

Between the two contractions activations are feature-major (xᵀ [n, N]): then both are plain
matrix products on views, without moving the intermediate tensor.

    B first   Z[p] = B x[p]   [n1, r bh, N]     y = C Z   [m1, bh N]
    A first   U    = C x      [m1, r bw, N]     y[q] = B U[q]   [bh, N]
    built     W    = merge(C, B)                y = W x

Z and U are r times as large as the activations, so backward computes them again.
Multiply-adds per row, with square brackets for what a batch pays once:
B first r (n bh + m n / bw), A first r (m n / bh + m bw), built m n [+ r m n].
On a GPU, form "fused" is B first in kernels that never store Z (``fused``); on request only.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, merge_factors, to_blocks

Form = Literal["b_first", "a_first", "built", "fused"]
FORMS: tuple[Form, ...] = ("b_first", "a_first", "built")  # those chosen from by cost


def macs_per_row(shape: tuple[int, int], block: Block, rank: int) -> dict[Form, int]:
    """Multiply-adds of one row of x in each form, all blocks counted as live.

    Args:
        shape: (out, in) of W.
        block: (bh, bw).
        rank: Number of Kronecker terms.
    """
    (out, inner), (bh, bw) = shape, block
    b_first = rank * (inner * bh + out * inner // bw)
    return {
        "b_first": b_first,
        "a_first": rank * (out * inner // bh + out * bw),
        "built": out * inner,
        "fused": b_first,
    }


def cheapest_form(shape: tuple[int, int], block: Block, rank: int) -> Form:
    """The form with the fewest multiply-adds a row."""
    cost = macs_per_row(shape, block, rank)
    return min(FORMS, key=cost.__getitem__)


def kronecker_linear(
    x: Tensor, S: Tensor, mask: Tensor, A: Tensor, B: Tensor, form: Form
) -> Tensor:
    """Apply Σᵢ (S∘mask∘Aᵢ) ⊗ Bᵢ to the last dimension of x.

    Args:
        x: Float [..., n1 bw].
        S: Float [m1, n1].
        mask: Bool [m1, n1]; gets no gradient.
        A: Float [r, m1, n1].
        B: Float [r, bh, bw].
        form: How to contract; the result is the same up to rounding.

    Returns:
        Float [..., m1 bh], in the autocast dtype if autocast is on.

    Raises:
        UsageError: The last dimension of x is not n1 bw, or the form is unknown.
    """
    inner = A.shape[2] * B.shape[2]
    if x.shape[-1] != inner:
        raise UsageError(f"block-sparse layer: wanted input [..., {inner}], got {list(x.shape)}")
    if form not in get_args(Form):
        raise UsageError(f"form: wanted one of {', '.join(get_args(Form))}, got {form!r}")
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        # Cast here, so that backward, which runs without autocast, sees the same dtypes.
        dtype = torch.get_autocast_dtype(kind)
        x, S, A, B = (t.to(dtype) for t in (x, S, A, B))
    rows = x.reshape(-1, inner)
    if form == "fused":
        from bscompile.models.fused import fused_product

        y = fused_product(rows, S * mask * A, B)
    else:
        y = _KroneckerProduct.apply(rows, S, mask, A, B, form)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


class _KroneckerProduct(torch.autograd.Function):
    """Rows [N, n], S, mask, A, B -> [N, m]."""

    @staticmethod
    def forward(x: Tensor, S: Tensor, mask: Tensor, A: Tensor, B: Tensor, form: Form) -> Tensor:
        contract = {"b_first": _b_first, "a_first": _a_first, "built": _built}[form]
        return contract(x, S * mask * A, B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, S, mask, A, B, ctx.form = inputs
        ctx.save_for_backward(x, S, mask, A, B)

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor, None, Tensor, Tensor, None]:
        x, S, mask, A, B = ctx.saved_tensors
        scale = S * mask
        gradient = {"b_first": _b_first_grad, "a_first": _a_first_grad, "built": _built_grad}
        with_dx = ctx.needs_input_grad[0]  # the first layer of a model need not pay for it
        dx, dc, dB = gradient[ctx.form](grads[0], x, scale * A, B, with_dx)
        return dx, (dc * A).sum(0) * mask, None, dc * scale, dB, None


Gradients = tuple[Tensor | None, Tensor, Tensor]


def _b_first(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    # A strided xᵀ is as good as a copy here, where it is read once and in short columns.
    z = _each(b.reshape(r * bh, bw), x.reshape(rows, n1, bw).permute(1, 2, 0))  # [n1, r bh, N]
    return _swap(_terms_last(c) @ z.view(n1 * r, bh * rows), m1 * bh, rows)


def _b_first_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    stacked, terms = b.reshape(r * bh, bw), _terms_last(c)
    xt, gt = _swap(x, rows, n1 * bw).view(n1, bw, rows), _swap(g, rows, m1 * bh).view(m1, bh * rows)
    z = _each(stacked, xt).view(n1, r, bh * rows)
    # One product a term gives dC in the layout of A; gᵀ zᵀ at once would interleave the terms.
    dc = torch.bmm(gt.expand(r, -1, -1), z.permute(1, 2, 0))
    dz = (terms.T @ gt).view(n1, r * bh, rows)
    dx = _swap(_each(stacked.T, dz), n1 * bw, rows) if with_dx else None
    # The longer side last: the products are small, and wide rows are what they vectorise over.
    db = torch.bmm(xt, dz.transpose(1, 2)).sum(0).view(bw, r, bh).permute(1, 2, 0)
    return dx, dc, db


def _a_first(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    u = _terms_inner(c) @ _swap(x, rows, n1 * bw).view(n1, bw * rows)  # [m1 r, bw N]
    return _swap(_each(_side_by_side(b), u.view(m1, r * bw, rows)), m1 * bh, rows)


def _a_first_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    side, terms = _side_by_side(b), _terms_inner(c)
    xt, gt = _swap(x, rows, n1 * bw).view(n1, bw * rows), _swap(g, rows, m1 * bh).view(m1, bh, rows)
    u = (terms @ xt).view(m1, r * bw, rows)
    db = torch.bmm(gt, u.transpose(1, 2)).sum(0).view(bh, r, bw).permute(1, 0, 2)
    du = _each(side.T, gt).view(m1 * r, bw * rows)
    dc = (du @ xt.T).view(m1, r, n1).permute(1, 0, 2)
    dx = _swap(terms.T @ du, n1 * bw, rows) if with_dx else None
    return dx, dc, db


def _built(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    return x @ merge_factors(c, b).T


def _built_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw) = c.shape, b.shape
    dw = to_blocks(g.T @ x, (bh, bw)).reshape(m1 * n1, bh * bw)
    dc = (b.reshape(r, bh * bw) @ dw.T).view(r, m1, n1)
    db = (c.reshape(r, m1 * n1) @ dw).view(r, bh, bw)
    return g @ merge_factors(c, b) if with_dx else None, dc, db


def _swap(t: Tensor, rows: int, columns: int) -> Tensor:
    """The entries of t, read as [rows, columns], with both axes swapped in memory."""
    return t.reshape(rows, columns).T.contiguous()


def _each(small: Tensor, batch: Tensor) -> Tensor:
    """One small matrix [k, l] times each of [p, l, N], without copying it p times."""
    return torch.bmm(small.expand(batch.shape[0], -1, -1), batch)


def _terms_last(c: Tensor) -> Tensor:
    """[r, m1, n1] -> [m1, n1 r]: the order in which B-first lays out Z."""
    r, m1, n1 = c.shape
    return c.permute(1, 2, 0).reshape(m1, n1 * r)


def _terms_inner(c: Tensor) -> Tensor:
    """[r, m1, n1] -> [m1 r, n1]: the order in which A-first lays out U."""
    r, m1, n1 = c.shape
    return c.permute(1, 0, 2).reshape(m1 * r, n1)


def _side_by_side(b: Tensor) -> Tensor:
    """[r, bh, bw] -> [bh, r bw]."""
    r, bh, bw = b.shape
    return b.permute(1, 0, 2).reshape(bh, r * bw)
