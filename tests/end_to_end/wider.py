"""Architectures beyond the ones that the road promises: what users bring along.

Convolutional networks with residuals, depthwise layers, transposed and one-axis convolutions;
transformers in other spellings. Small or full size, random weights by seed.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.end_to_end.families import Family


class _First(nn.Module):
    """A transformers model reduced to its first output."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x, return_dict=False)[0]


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)])
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x):
        h = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(h)) + self.shortcut(x))


def _resnet(full: bool) -> nn.Module:
    width = 64 if full else 16
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        _Residual(width, width, 1), _Residual(width, 2 * width, 2),
        _Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100),
    )  # fmt: skip


def _mobile(full: bool) -> nn.Module:
    width = 32 if full else 16
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Hardswish(),
        nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, 2 * width, 1),
        nn.Conv2d(2 * width, 2 * width, 5, 2, 2, groups=2 * width), nn.SiLU(),
        nn.Conv2d(2 * width, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


class _UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)]
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.wide = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.head = nn.Conv2d(2 * width, 8, 3, 1, 1)

    def forward(self, x):
        high = torch.relu(self.down[0](x))
        low = torch.relu(self.down[1](high))
        return self.head(torch.cat([high, self.up(low) + self.wide(low)], 1))


def _unet(full: bool) -> nn.Module:
    return _UNet(32 if full else 16)


def _convnext(full: bool) -> nn.Module:
    from transformers import ConvNextConfig, ConvNextModel

    sizes = [32, 64, 128, 256] if full else [16, 32]
    depths = [1, 1, 2, 1] if full else [1, 1]
    config = ConvNextConfig(depths=depths, hidden_sizes=sizes, num_stages=len(sizes))
    return _First(ConvNextModel(config))


def _whisper(full: bool) -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    width = 384 if full else 64
    config = WhisperConfig(
        encoder_layers=4 if full else 1, d_model=width, encoder_attention_heads=4,
        encoder_ffn_dim=4 * width, max_source_positions=100 if full else 20,
    )  # fmt: skip
    return _First(WhisperEncoder(config))


def _wav2vec2(full: bool) -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    size = {"num_hidden_layers": 2} if full else {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (16, 16), "conv_kernel": (10, 3),
        "conv_stride": (5, 2), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    config = Wav2Vec2Config(attn_implementation="eager", **size)
    return _First(Wav2Vec2Model(config))


def _gpt2(full: bool) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    width = 512 if full else 64
    config = GPT2Config(
        n_layer=2, vocab_size=500, n_embd=width, n_head=4, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    return _First(GPT2Model(config))


def _image(full: bool, batch: int) -> dict[str, torch.Tensor]:
    side = 224 if full else 32
    return {"x": torch.randn(batch, 3, side, side)}


def _sound(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 80, 200 if full else 40)}


def _wave(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 16000 if full else 200)}


def _tokens(full: bool, batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randint(0, 500, (batch, 64 if full else 12))}


WIDER = {
    family.name: family
    for family in (
        Family("resnet", _resnet, _image),
        Family("mobile", _mobile, _image),
        Family("unet", _unet, _image),
        Family("convnext", _convnext, _image),
        Family("whisper", _whisper, _sound),
        Family("wav2vec2", _wav2vec2, _wave),
        Family("gpt2", _gpt2, _tokens),
    )
}
