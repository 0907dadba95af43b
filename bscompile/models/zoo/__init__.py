"""Models to train and to measure: those of the paper, and blocks of language models."""

from bscompile.models.zoo.feed_forward import LeNet5, lenet5, linear, mlp
from bscompile.models.zoo.language import BertLayer, LlamaLayer
from bscompile.models.zoo.swin import Swin, swin_digits, swin_tiny
from bscompile.models.zoo.vision_transformer import (
    VisionTransformer,
    vit_base,
    vit_digits,
    vit_tiny,
)

__all__ = [
    "BertLayer",
    "LeNet5",
    "LlamaLayer",
    "Swin",
    "VisionTransformer",
    "lenet5",
    "linear",
    "mlp",
    "swin_digits",
    "swin_tiny",
    "vit_base",
    "vit_digits",
    "vit_tiny",
]
