"""One encoder layer as BERT has it, one decoder layer as Llama has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bscompile.models.zoo.vision_transformer import FeedForward


class BertLayer(nn.Module):
    """Attention with separate query, key and value, normalised after each sum."""

    def __init__(self, width: int = 768, heads: int = 12, hidden: int = 3072) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        q, k, v = (split_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = self.norm1(x + self.output(join_heads(weights @ v)))
        y: Tensor = self.norm2(x + self.mlp(x))
        return y


class LlamaLayer(nn.Module):
    """Causal attention with rotary positions and shared key heads, gated feed-forward."""

    def __init__(
        self, width: int = 2048, heads: int = 32, key_heads: int = 8, hidden: int = 8192
    ) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        shared = width // heads * key_heads
        self.query, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width, shared, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        x = x + self._attend(self.norm1(x))
        y = self.norm2(x)
        out: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        tokens, repeat = x.shape[1], self.heads // self.key_heads
        q = rotate(split_heads(self.query(x), self.heads))
        k = rotate(split_heads(self.key(x), self.key_heads)).repeat_interleave(repeat, 1)
        v = split_heads(self.value(x), self.key_heads).repeat_interleave(repeat, 1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -1e9).softmax(-1)
        y: Tensor = self.output(join_heads(weights @ v))
        return y


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, T, width] -> [N, heads, T, width / heads]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[N, heads, T, size] -> [N, T, heads size]."""
    return x.transpose(1, 2).flatten(2)


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions on [N, heads, T, size]: pairs (i, i + size/2) turn with the position."""
    half = x.shape[-1] // 2
    turns = base ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * turns
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
