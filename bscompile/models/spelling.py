"""Factorized layers as an exporter shall see them: a few plain operators, constants laid out.

A linear layer, S folded into A (Reshape, MatMul, Transpose only):

    x [N, n] -> [N, n1, bw] -> @ B [bw, r bh] -> [N, n1, r, bh] -> [N, bh, r, n1]
      -> [N bh, r n1] -> @ C [r n1, m1] -> [N, bh, m1] -> [N, m1, bh] -> [N, m]

A convolution is that product over the windows of the image. ONNX has no operator that lists
windows; a convolution that leaves each channel alone and copies each place of its window into a
channel of its own does:

    x [N, c, H, W] -> Conv, one-hot, a group a channel -> [N, c kh kw, H', W']
      -> channels last -> the product -> channels first
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bscompile.models.conv import BlockSparseConv2d
from bscompile.models.function import spelled_factors, spelled_product
from bscompile.models.layers import BlockSparseLinear


class _Product(nn.Module):
    """Multiplies the last axis by Σᵢ Cᵢ ⊗ Bᵢ; base of both layers, and no submodule of theirs.

    So the exporter names what it writes after the layer.

    Args:
        coefficients: C = S∘A, [r, m1, n1].
        patterns: B, [r, bh, bw].
    """

    def __init__(self, coefficients: Tensor, patterns: Tensor) -> None:
        super().__init__()
        laid, turned, self.sizes = spelled_factors(coefficients, patterns)
        # Parameters, not buffers: the exporter keeps parameters as initializers by name.
        self.patterns, self.coefficients = _constant(laid), _constant(turned)

    def product(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., m]."""
        return spelled_product(x, self.patterns, self.coefficients, self.sizes)


class SpelledLinear(_Product):
    """A BlockSparseLinear for the exporter."""

    def __init__(self, layer: BlockSparseLinear) -> None:
        super().__init__(layer.coefficients(), layer.B)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class SpelledConvolution(_Product):
    """One group of a BlockSparseConv2d for the exporter."""

    def __init__(self, layer: BlockSparseConv2d, coefficients: Tensor, bias: Tensor | None) -> None:
        super().__init__(coefficients, layer.B)
        (kh, kw), channels = layer.kernel_size, layer.in_channels // layer.groups
        self.geometry = layer.stride, layer.padding, layer.dilation, channels
        one_hot = torch.eye(kh * kw, dtype=layer.B.dtype, device=layer.B.device)
        self.windows = _constant(one_hot.view(kh * kw, 1, kh, kw).repeat(channels, 1, 1, 1))
        self.bias = None if bias is None else _constant(bias[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels of the group, H, W] -> [N, outputs of the group, H', W']."""
        listed = nn.functional.conv2d(x, self.windows, None, *self.geometry)
        y = self.product(listed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias


class SpelledGroups(nn.Module):
    """A grouped convolution: one for each group, side by side."""

    def __init__(self, parts: list[SpelledConvolution]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']."""
        parts = zip(self.groups, x.chunk(len(self.groups), 1), strict=True)
        return torch.cat([group(channels) for group, channels in parts], 1)


@torch.no_grad()
def spell(layer: BlockSparseLinear | BlockSparseConv2d) -> nn.Module:
    """The same layer in operators that an ONNX file can hold, its factors kept apart."""
    if isinstance(layer, BlockSparseLinear):
        return SpelledLinear(layer)
    groups = layer.groups
    biases = [None] * groups if layer.bias is None else layer.bias.chunk(groups)
    coefficients = layer.coefficients().chunk(groups, 1)
    parts = [SpelledConvolution(layer, *part) for part in zip(coefficients, biases, strict=True)]
    return parts[0] if groups == 1 else SpelledGroups(parts)


def _constant(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t.detach().clone(), requires_grad=False)
