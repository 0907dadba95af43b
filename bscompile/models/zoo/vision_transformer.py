"""Vision transformers as DeiT has them, in plain products so that every exporter takes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one product for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        rows, tokens, width = x.shape
        size = width // self.heads
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # [N, heads, T, size]
        weights = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1)
        mixed: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, width))
        return mixed


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


class EncoderLayer(nn.Module):
    """Attention and feed-forward, normalised before, added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, encoder layers, a linear head.

    Args:
        width: Size of a token.
        depth: Number of encoder layers.
        heads: Attention heads of each.
        classes: Size of the output.
        side: Height and width of the image.
        patch: Side of a patch.
        channels: Of the image.
        distilled: Whether to add DeiT's distillation token and its head.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        classes: int = 100,
        side: int = 224,
        patch: int = 16,
        channels: int = 3,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        extra = 2 if distilled else 1
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.tokens = nn.Parameter(torch.zeros(1, extra, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + extra, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.head_distilled = nn.Linear(width, classes) if distilled else None
        nn.init.trunc_normal_(self.tokens, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, side, side] (or rows of as many values) -> [N, classes]."""
        images = x.reshape(-1, self.channels, self.side, self.side)
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [N, T, width]
        tokens = self.tokens.expand(patches.shape[0], -1, -1)
        y = self.norm(self.layers(torch.cat([tokens, patches], 1) + self.positions))
        logits: Tensor = self.head(y[:, 0])
        if self.head_distilled is not None:
            logits = (logits + self.head_distilled(y[:, 1])) / 2
        return logits


def vit_tiny(classes: int = 100, side: int = 224) -> VisionTransformer:
    """ViT-tiny: width 192, 12 layers, 3 heads."""
    return VisionTransformer(192, 12, 3, classes, side)


def vit_base(classes: int = 100, side: int = 224, distilled: bool = False) -> VisionTransformer:
    """ViT-base: width 768, 12 layers, 12 heads."""
    return VisionTransformer(768, 12, 12, classes, side, distilled=distilled)


def vit_digits(classes: int = 10) -> VisionTransformer:
    """A ViT for 8x8 grey images: width 64, 2 layers, 4 heads, 2x2 patches."""
    return VisionTransformer(64, 2, 4, classes, side=8, patch=2, channels=1)
