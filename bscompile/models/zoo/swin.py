"""Swin transformers: attention in windows that shift from layer to layer, four stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bscompile.models.zoo.vision_transformer import FeedForward


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position.

    Args:
        width: Size of a token.
        heads: Attention heads.
        window: Side of a window.
        side: Height and width of the map of tokens.
        shift: By how much the windows are moved.
    """

    pairs: Tensor
    mask: Tensor

    def __init__(self, width: int, heads: int, window: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.side, self.shift = heads, window, side, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("pairs", relative_pairs(window), persistent=False)
        self.register_buffer("mask", shift_mask(side, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, side, side, width] -> the same."""
        count, window, width = self.side // self.window, self.window, x.shape[-1]
        area, size = window * window, width // self.heads
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(-1, count, window, count, window, width).transpose(2, 3)
        qkv = self.qkv(x.reshape(-1, area, width))
        qkv = qkv.reshape(-1, area, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # [N windows, heads, area, size]
        bias = self.bias[self.pairs.flatten()].reshape(area, area, self.heads).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * size**-0.5 + bias
        if self.shift:
            grouped = scores.reshape(-1, count * count, self.heads, area, area)
            scores = (grouped + self.mask[:, None]).reshape(-1, self.heads, area, area)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, area, width)
        y = self.proj(y).reshape(-1, count, count, window, window, width).transpose(2, 3)
        y = y.reshape(-1, self.side, self.side, width)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


def relative_pairs(window: int) -> Tensor:
    """Int64 [area, area]: which bias belongs to each pair of positions in a window."""
    axis = torch.arange(window)
    rows, cols = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    down = rows[:, None] - rows[None] + window - 1
    across = cols[:, None] - cols[None] + window - 1
    return down * (2 * window - 1) + across


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Float [windows, area, area]: -100 for pairs that the roll brought together, else 0."""
    regions = torch.zeros(side, side)
    cuts = (slice(0, side - window), slice(side - window, side - shift), slice(side - shift, side))
    if shift:
        for row, down in enumerate(cuts):
            for col, across in enumerate(cuts):
                regions[down, across] = 3 * row + col
    count = side // window
    tiles = regions.reshape(count, window, count, window).transpose(1, 2)
    flat = tiles.reshape(count * count, window * window)
    return (flat[:, None] != flat[:, :, None]).float() * -100.0


class SwinLayer(nn.Module):
    """Window attention and feed-forward."""

    def __init__(self, width: int, heads: int, window: int, side: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window, side, shift)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, side, side, width] -> the same."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchMerging(nn.Module):
    """Half the side, twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, side, side, width] -> [N, side/2, side/2, 2 width]."""
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        y: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return y


class Swin(nn.Module):
    """Patches, stages of window attention with merging between them, a linear head.

    Args:
        width: Size of a token in the first stage.
        depths: Layers of each stage.
        heads: Attention heads of each stage.
        classes: Size of the output.
        side: Height and width of the image.
        patch: Side of a patch.
        window: Side of a window; a smaller map is one window.
        channels: Of the image.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        classes: int = 100,
        side: int = 224,
        patch: int = 4,
        window: int = 7,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.norm_patches = nn.LayerNorm(width)
        stages: list[nn.Module] = []
        tokens = side // patch
        for index, (depth, head) in enumerate(zip(depths, heads, strict=True)):
            if index:
                stages.append(PatchMerging(width))
                width, tokens = 2 * width, tokens // 2
            inner = min(window, tokens)
            shift = inner // 2 if tokens > inner else 0
            stages += [
                SwinLayer(width, head, inner, tokens, shift if layer % 2 else 0)
                for layer in range(depth)
            ]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, side, side] (or rows of as many values) -> [N, classes]."""
        images = x.reshape(-1, self.channels, self.side, self.side)
        y = self.norm_patches(self.patches(images).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.norm(self.stages(y)).mean((1, 2)))
        return logits


def swin_tiny(classes: int = 100, side: int = 224) -> Swin:
    """Swin-tiny: width 96, layers 2-2-6-2."""
    return Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), classes, side)


def swin_digits(classes: int = 10) -> Swin:
    """A Swin for 8x8 grey images: width 32, two stages of two layers, 4x4 windows."""
    return Swin(32, (2, 2), (2, 4), classes, side=8, patch=1, window=4, channels=1)
