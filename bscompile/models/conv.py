"""BlockSparseConv2d: a convolution whose im2col weight is W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ.

W is [out, in/groups kh kw], the nn.Conv2d weight with its last three axes flattened; the
output at each position is the product of W with the patch there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, as_block
from bscompile.models.function import kronecker_linear
from bscompile.models.layers import KroneckerWeight

Pair = tuple[int, int]


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


class BlockSparseConv2d(KroneckerWeight):
    """A 2-D convolution with a factorized weight; grouped, strided and dilated as nn.Conv2d.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, or (height, width).
        block: Side of square blocks, or (side along out, side along in/groups kh kw).
        rank: Number of Kronecker terms.
        stride: As in nn.Conv2d.
        padding: As in nn.Conv2d, zeros only, given in numbers.
        dilation: As in nn.Conv2d.
        groups: As in nn.Conv2d; a block must not reach over a group.
        bias: Whether to add a bias [out].

    Raises:
        UsageError: The block does not divide the weight of a group, or the rank is too large.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        block: int | Block = 8,
        rank: int = 2,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = _pair(kernel_size)
        if in_channels % groups or out_channels % groups:
            raise UsageError(f"groups={groups} must divide {in_channels} and {out_channels}")
        side = as_block(block)[0]
        if (out_channels // groups) % side:
            raise UsageError(
                f"block side {side} reaches over a group of {out_channels // groups} channels"
            )
        patch = in_channels // groups * kernel[0] * kernel[1]
        super().__init__((out_channels, patch), block, rank, device, dtype)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = kernel, _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_factors()

    @classmethod
    def from_dense(
        cls, layer: nn.Conv2d, block: int | Block, rank: int, nearest: bool = True
    ) -> BlockSparseConv2d:
        """A factorized copy of a convolution: nearest factors, or random ones and its bias.

        Raises:
            UsageError: The padding is not zeros given in numbers.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise UsageError(
                f"convolution: wanted zero padding in numbers, got {layer.padding!r}, "
                f"{layer.padding_mode!r}"
            )
        options: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "bias": layer.bias is not None,
            "device": layer.weight.device,
            "dtype": layer.weight.dtype,
        }
        size = layer.in_channels, layer.out_channels, layer.kernel_size
        new = cls(*size, block, rank, **options)  # type: ignore[arg-type]
        if nearest:
            new.set_weight(layer.weight.flatten(1))
        if new.bias is not None and layer.bias is not None:
            with torch.no_grad():
                new.bias.copy_(layer.bias)
        return new.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The nn.Conv2d weight [out, in/groups, kh, kw], built on the spot."""
        return self.merged_weight().view(self.out_channels, -1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']."""
        patches = nn.functional.unfold(
            x, self.kernel_size, self.dilation, self.padding, self.stride
        )
        rows = patches.transpose(1, 2)  # [N, L, in kh kw], channels slowest
        if self.groups == 1:
            y = kronecker_linear(rows, self.S, self.mask, self.A, self.B, self.form)
        else:
            parts = zip(
                rows.chunk(self.groups, -1),
                self.S.chunk(self.groups, 0),
                self.mask.chunk(self.groups, 0),
                self.A.chunk(self.groups, 1),
                strict=True,
            )
            y = torch.cat([kronecker_linear(*part, self.B, self.form) for part in parts], -1)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.transpose(1, 2).reshape(x.shape[0], self.out_channels, *self._size(x))

    def to_dense(self) -> nn.Conv2d:
        """The same convolution with its weight built."""
        dense = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        dense.weight = nn.Parameter(self.weight.detach().clone())
        dense.bias = self.bias
        return dense

    def _size(self, x: Tensor) -> tuple[int, int]:
        """(H', W') for the input's size."""
        height, width = (
            (x.shape[2 + axis] + 2 * self.padding[axis] - self._reach(axis)) // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return height, width

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, groups={self.groups}, "
            f"block={self.block[0]}x{self.block[1]}, rank={self.rank}"
        )
