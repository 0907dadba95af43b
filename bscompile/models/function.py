"""y = x Wᵀ with W = Σᵢ Cᵢ ⊗ Bᵢ, C = S∘A, forward and backward, saving only x and the factors.

Rows x [N, n] are cut into [N, n1, bw]. One of the two contractions reads or writes them as they
are, the other has the place in the block first, [side, N, blocks]: then both are plain products
of matrices, and each term is one of its own, without moving the intermediate tensor.

    B first   Zᵢ = Bᵢ x   [bh, N, n1]     y = Σᵢ Zᵢ Cᵢᵀ   [bh, N, m1]
    A first   Uᵢ = x Cᵢᵀ  [bw, N, m1]     y = Σᵢ Bᵢ Uᵢ    [bh, N, m1]
    built     W  = merge(C, B)            y = x Wᵀ

Z and U are r times as large as the activations, so backward computes them again.
Multiply-adds per row, with square brackets for what a batch pays once:
B first r (n bh + m n / bw), A first r (m n / bh + m bw), built m n [+ r m n].
On a GPU, form "fused" is B first in kernels that never store Z (``fused``); on request only.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, merge_factors, to_blocks

Form = Literal["b_first", "a_first", "built", "fused"]
FORMS: tuple[Form, ...] = ("b_first", "a_first", "built")  # those chosen from by cost
_KNOWN: tuple[Form, ...] = get_args(Form)
_VECTOR = 16  # floats: products by small matrices are fast whose last axis is as long as this


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
    x: Tensor,
    S: Tensor,
    mask: Tensor,
    A: Tensor,
    B: Tensor,
    form: Form,
    bias: Tensor | None = None,
) -> Tensor:
    """Apply Σᵢ (S∘mask∘Aᵢ) ⊗ Bᵢ to the last dimension of x, and add the bias.

    Args:
        x: Float [..., n1 bw].
        S: Float [m1, n1].
        mask: Bool [m1, n1]; gets no gradient.
        A: Float [r, m1, n1].
        B: Float [r, bh, bw].
        form: How to contract; the result is the same up to rounding.
        bias: Float [m1 bh].

    Returns:
        Float [..., m1 bh], in the autocast dtype if autocast is on.

    Raises:
        UsageError: The last dimension of x is not n1 bw, or the form is unknown.
    """
    inner = A.shape[2] * B.shape[2]
    if x.shape[-1] != inner:
        raise UsageError(f"block-sparse layer: wanted input [..., {inner}], got {list(x.shape)}")
    if form not in _KNOWN:
        raise UsageError(f"form: wanted one of {', '.join(_KNOWN)}, got {form!r}")
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        # Cast here, so that backward, which runs without autocast, sees the same dtypes.
        dtype = torch.get_autocast_dtype(kind)
        x, S, A, B = (t.to(dtype) for t in (x, S, A, B))
        bias = None if bias is None else bias.to(dtype)
    if torch.onnx.is_in_onnx_export():  # whoever exports; the form is the compiler's choice
        y = spelled_product(x, *spelled_factors(torch.where(mask, S, 0) * A, B))
        return y if bias is None else y + bias
    rows = x.reshape(-1, inner)
    if form == "fused":
        from bscompile.models.fused import fused_product

        y = fused_product(rows, S * mask * A, B)
        y = y if bias is None else y + bias
    else:
        y = _KroneckerProduct.apply(rows, S, mask, A, B, bias, form)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def spelled_factors(c: Tensor, b: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """C [r, m1, n1] and B [r, bh, bw] as ``spelled_product`` takes them.

    Returns:
        ([bw, r bh], [r n1, m1], (m1, n1, bh, bw, r)).
    """
    (r, m1, n1), (_, bh, bw) = c.shape, b.shape
    patterns = b.permute(2, 0, 1).reshape(bw, r * bh)
    return patterns, c.permute(0, 2, 1).reshape(r * n1, m1), (m1, n1, bh, bw, r)


def spelled_product(
    x: Tensor, patterns: Tensor, coefficients: Tensor, sizes: tuple[int, ...]
) -> Tensor:
    """[..., n] -> [..., m] in the few plain operators that an ONNX file shall hold: spelling.py."""
    m1, n1, bh, bw, r = sizes
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    z = x.reshape(rows, n1, bw) @ patterns
    z = z.reshape(rows, n1, r, bh).permute(0, 3, 2, 1)
    y = z.reshape(rows * bh, r * n1) @ coefficients
    return y.reshape(rows, bh, m1).transpose(1, 2).reshape(*x.shape[:-1], m1 * bh)


class _KroneckerProduct(torch.autograd.Function):
    """Rows [N, n], S, mask, A, B, bias -> [N, m]."""

    @staticmethod
    def forward(
        x: Tensor,
        S: Tensor,
        mask: Tensor,
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        form: Form,
    ) -> Tensor:
        contract = {"b_first": _b_first, "a_first": _a_first, "built": _built}[form]
        y = contract(x, torch.where(mask, S, 0) * A, B)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, S, mask, A, B, _, ctx.form = inputs
        ctx.save_for_backward(x, S, mask, A, B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, S, mask, A, B = ctx.saved_tensors
        (g,) = grads
        scale = torch.where(mask, S, 0)
        gradient = {"b_first": _b_first_grad, "a_first": _a_first_grad, "built": _built_grad}
        with_dx = ctx.needs_input_grad[0]  # the first layer of a model need not pay for it
        dx, dc, dB = gradient[ctx.form](g, x, scale * A, B, with_dx)
        dbias = g.sum(0) if ctx.needs_input_grad[5] else None
        return dx, torch.where(mask, (dc * A).sum(0), 0), None, dc * scale, dB, dbias, None


# apply() asks for the signature at every call, and works it out anew unless it finds it here.
_KroneckerProduct.forward.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    _KroneckerProduct.forward
)


Gradients = tuple[Tensor | None, Tensor, Tensor]


def _b_first(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    z = (b.reshape(r * bh, bw) @ x.reshape(rows * n1, bw).T).view(r, bh * rows, n1)
    return _to_rows(_sum_of_products(z, c.transpose(1, 2)).view(bh, rows, m1))


def _b_first_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    stacked, xb = b.reshape(r * bh, bw), x.reshape(rows * n1, bw)
    z = (stacked @ xb.T).view(r, bh * rows, n1)
    gt = _to_sides(g, m1, bh).expand(r, -1, -1)
    dc = torch.bmm(gt.transpose(1, 2), z)
    dz = torch.bmm(gt, c).view(r * bh, rows * n1)
    dx = _blockwise(stacked.T, dz, (rows, n1)) if with_dx else None
    return dx, dc, _over_blocks(dz, xb).view(r, bh, bw)


def _a_first(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    (r, m1, n1), bw, rows = c.shape, b.shape[2], x.shape[0]
    xt = _to_sides(x, n1, bw).expand(r, -1, -1)
    u = torch.bmm(xt, c.transpose(1, 2)).view(r * bw, rows * m1)
    return _blockwise(_side_by_side(b), u, (rows, m1))


def _a_first_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw), rows = c.shape, b.shape, x.shape[0]
    xt, gb = _to_sides(x, n1, bw).expand(r, -1, -1), g.reshape(rows * m1, bh)
    u = torch.bmm(xt, c.transpose(1, 2)).view(r * bw, rows * m1)
    du = (_side_by_side(b).T @ gb.T).view(r, bw * rows, m1)
    dc = torch.bmm(du.transpose(1, 2), xt)
    db = _over_blocks(u, gb).view(r, bw, bh).transpose(1, 2)
    dx = _to_rows(_sum_of_products(du, c).view(bw, rows, n1)) if with_dx else None
    return dx, dc, db


def _built(x: Tensor, c: Tensor, b: Tensor) -> Tensor:
    return x @ merge_factors(c, b).T


def _built_grad(g: Tensor, x: Tensor, c: Tensor, b: Tensor, with_dx: bool) -> Gradients:
    (r, m1, n1), (_, bh, bw) = c.shape, b.shape
    dw = to_blocks(g.T @ x, (bh, bw)).reshape(m1 * n1, bh * bw)
    dc = (b.reshape(r, bh * bw) @ dw.T).view(r, m1, n1)
    db = (c.reshape(r, m1 * n1) @ dw).view(r, bh, bw)
    return g @ merge_factors(c, b) if with_dx else None, dc, db


def _to_sides(t: Tensor, blocks: int, side: int) -> Tensor:
    """Rows [N, blocks side] -> [side N, blocks]."""
    parts = t.reshape(t.shape[0], blocks, side).permute(2, 0, 1)
    return parts.reshape(side * t.shape[0], blocks)


def _to_rows(t: Tensor) -> Tensor:
    """[side, N, blocks] -> rows [N, blocks side]."""
    side, rows, blocks = t.shape
    return t.permute(1, 2, 0).reshape(rows, blocks * side)


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """Σᵢ leftᵢ rightᵢ of [r, k, l] and [r, l, m], adding up in place of the sum."""
    total = left[0] @ right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total = torch.addmm(total, a, b)
    return total


def _blockwise(small: Tensor, t: Tensor, size: tuple[int, int]) -> Tensor:
    """One small matrix [side, k] times every column of t [k, N blocks], as rows."""
    rows, blocks = size
    side = small.shape[0]
    if side >= _VECTOR:
        return (t.T @ small.T).view(rows, blocks * side)
    return _to_rows((small @ t).view(side, rows, blocks))


def _over_blocks(t: Tensor, parts: Tensor) -> Tensor:
    """The product [k, side] of t [k, N blocks] and the blocks [N blocks, side] of rows."""
    return t @ parts if parts.shape[1] >= _VECTOR else (parts.T @ t.T).T


def _side_by_side(b: Tensor) -> Tensor:
    """[r, bh, bw] -> [bh, r bw]."""
    r, bh, bw = b.shape
    return b.permute(1, 0, 2).reshape(bh, r * bw)
