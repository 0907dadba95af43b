"""The fused form of the Kronecker product, for GPUs: one kernel forward, two backward.

The intermediates Z and dZ stay on the chip, so that the traffic is that of x, y and the factors
alone; nothing is transposed in memory. The kernels are in ``fused_kernels``; here are their
launches, and the sums over what the tiles leave. Needs Triton and blocks of powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bscompile.errors import UsageError

_WIDE = 16  # sides of the smallest product of tensor cores
_LARGEST = 64  # block side
# Rows times block side, block rows and block columns of a tile: the largest that keep their sums
# in registers and fit the shared memory (benchmarks/fused_kernels.py), by bytes of a number.
_TILES = {
    "product": {2: (128, 128, 32), 4: (128, 64, 32)},
    "terms_gradient": {2: (64, 64, 64), 4: (64, 64, 64)},
    "input_and_pattern_gradients": {2: (64, 64, 64), 4: (64, 32, 32)},
}
_SPLITS = 16  # parts of the rows in the gradient of C; their sums take splits times its memory


def check_fused(x: Tensor, bh: int, bw: int) -> None:
    """Say why the fused form cannot run, if it cannot.

    Raises:
        UsageError: No Triton, not on a GPU (and not under Triton's interpreter), or a block
            side that is no power of two up to 64.
    """
    hint = "use_form(None) takes the cheapest of the others"
    try:
        from triton import knobs
    except ImportError as error:
        raise UsageError("form 'fused' needs triton, which is not installed", hint=hint) from error
    if not x.is_cuda and not knobs.runtime.interpret:
        raise UsageError(f"form 'fused' runs on a GPU, got a tensor on {x.device}", hint=hint)
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(
            f"form 'fused' wants float32, bfloat16 or float16, got {x.dtype}", hint=hint
        )
    if any(side & (side - 1) or side > _LARGEST for side in (bh, bw)):
        raise UsageError(
            f"form 'fused' wants block sides that are powers of two up to {_LARGEST}, "
            f"got {bh}x{bw}",
            hint=hint,
        )


def fused_product(x: Tensor, c: Tensor, B: Tensor) -> Tensor:
    """The product x Wᵀ with W = Σᵢ cᵢ ⊗ Bᵢ by the fused kernels; differentiable once.

    Args:
        x: Float [N, n1 bw].
        c: Float [r, m1, n1].
        B: Float [r, bh, bw].

    Raises:
        UsageError: See ``check_fused``.
    """
    check_fused(x, B.shape[1], B.shape[2])
    y: Tensor = _FusedProduct.apply(x, c, B)  # type: ignore[no-untyped-call]
    return y


class _FusedProduct(torch.autograd.Function):
    """x [N, n], c, B -> [N, m]; saves its inputs alone."""

    @staticmethod
    def forward(x: Tensor, c: Tensor, B: Tensor) -> Tensor:
        return _product(x.contiguous(), c, B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, c, B = ctx.saved_tensors
        x, g = x.contiguous(), grads[0].contiguous()
        dx, dB = _input_and_pattern_gradients(x, g, c, B, ctx.needs_input_grad[0])
        return dx, _terms_gradient(x, g, c, B), dB


def _product(x: Tensor, c: Tensor, B: Tensor) -> Tensor:
    from bscompile.models.fused_kernels import product

    (_, m1, n1), (_, bh, bw), rows = c.shape, B.shape, x.shape[0]
    y = x.new_empty(rows, m1 * bh)
    how = launch_options("product", x.element_size(), c.shape, (bh, bw))
    if rows:
        grid = _parts(rows, how["TN"]), _parts(m1, how["TP"])
        product[grid](x, c, _grouped(B.mT), y, rows, n1, m1, *c.stride(), **how)
    return y


def _terms_gradient(x: Tensor, g: Tensor, c: Tensor, B: Tensor) -> Tensor:
    from bscompile.models.fused_kernels import terms_gradient

    (r, m1, n1), (_, bh, bw), rows = c.shape, B.shape, x.shape[0]
    how = launch_options("terms_gradient", x.element_size(), c.shape, (bh, bw))
    splits = min(_SPLITS, _parts(rows, how["TN"]))
    dc = x.new_empty(splits, r, m1, n1, dtype=torch.float32)
    if rows:
        grid = _parts(m1, how["TP"]), _parts(n1, how["TQ"]), splits * r
        terms_gradient[grid](x, g, _grouped(B.mT), dc, rows, n1, m1, splits, **how)
    return dc.sum(0).to(c.dtype)


def _input_and_pattern_gradients(
    x: Tensor, g: Tensor, c: Tensor, B: Tensor, with_dx: bool
) -> tuple[Tensor | None, Tensor]:
    from bscompile.models.fused_kernels import input_and_pattern_gradients

    (r, m1, n1), (_, bh, bw), rows = c.shape, B.shape, x.shape[0]
    how = launch_options("input_and_pattern_gradients", x.element_size(), c.shape, (bh, bw))
    group = how["G"]
    grid = _parts(rows, how["TN"]), _parts(n1, how["TQ"])
    shares = x.new_empty(grid[0] * grid[1], r, group * bw, group * bh, dtype=torch.float32)
    dx = torch.empty_like(x) if with_dx else None
    if rows:
        target = x if dx is None else dx  # never written without dx
        input_and_pattern_gradients[grid](
            *(x, g, c, _grouped(B), target, shares, rows, n1, m1, *c.stride()),
            WITH_DX=with_dx,
            **how,
        )
    both = shares.sum(0).view(r, group, bw, group, bh)
    return dx, both.diagonal(dim1=1, dim2=3).sum(-1).mT.to(B.dtype)


def _group(bh: int, bw: int) -> int:
    """Blocks taken together, so that both sides of the small product are wide enough."""
    return max(1, _WIDE // min(bh, bw))


def _grouped(patterns: Tensor) -> Tensor:
    """[r, k, l] -> diag(B, ..., B) [r, G k, G l]."""
    r, k, length = patterns.shape
    group = _group(k, length)
    wide = patterns.new_zeros(r, group, k, group, length)
    wide.diagonal(dim1=1, dim2=3).copy_(patterns[..., None].expand(-1, -1, -1, group))
    return wide.view(r, group * k, group * length)


def launch_options(
    kernel: str, width: int, terms: Sequence[int], block: tuple[int, int]
) -> dict[str, Any]:
    """Block, tile sizes and precision of a kernel, under the names it gives them.

    Products in float32 are three of TensorFloat-32, which come near full precision, unless
    torch.set_float32_matmul_precision asks for less.

    Args:
        kernel: Its name.
        width: Bytes of a number.
        terms: (r, m1, n1), the shape of C.
        block: (bh, bw).
    """
    (rank, m1, n1), (bh, bw) = terms, block
    tall, p, q = _TILES[kernel][width]
    group = _group(bh, bw)
    fast = torch.get_float32_matmul_precision() != "highest"
    return {
        "RANK": rank,
        "BH": bh,
        "BW": bw,
        "G": group,
        "TN": max(tall // bh, 1),
        "TP": _at_most(m1, p, group),
        "TQ": _at_most(n1, q, group),
        "PRECISION": "tf32" if fast else "tf32x3",
        "num_warps": 8,
        "num_stages": 2,
    }


def _at_most(size: int, limit: int, group: int) -> int:
    """The power of two that covers ``size``, within ``limit`` and not under a tensor core."""
    covering = 1 << max(size - 1, 0).bit_length()
    return max(min(covering, limit), _WIDE, group)


def _parts(size: int, tile: int) -> int:
    return -(-size // tile)
