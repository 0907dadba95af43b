"""Parameters and FLOPs of the paper's models: module, formula and published figure side by side.

Parameters are counted on the module and computed as dense + Σ ((1 + r) m1 n1 + r bh bw - m n) over
the factorized layers. FLOPs are two a multiply-add of one image's forward pass, counted by torch on
the module (attention included) and by formula on the linear layers alone; training takes three
times the forward. Published figures are those of arXiv 2503.21928 and its project page; a note says
where one cannot be reproduced.

    python -m benchmarks.paper_counts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bscompile.models import factorize, summary
from bscompile.models.summary import measured_forward_flops
from bscompile.models.zoo import lenet5, linear, swin_tiny, vit_base, vit_tiny


@dataclass(frozen=True)
class Row:
    """A model, how it is factorized, and what was published.

    Attributes:
        name: Printed.
        build: The dense model.
        inputs: Shape of one image.
        block: 0 for dense.
        rank: Number of terms.
        exclude: Layers that stay dense.
        published: As printed in the paper or the project page.
        note: How far it can be reproduced.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    block: int | tuple[int, int] = 0
    rank: int = 0
    exclude: tuple[str, ...] = ()
    published: str = "-"
    note: str = ""


IMAGE, HEAD = (1, 3, 224, 224), ("head",)
NOT_4X4 = "published 0.16M / 65.37M count S + A of 8x8, r=1, one MAC each: not reproducible"
ROWS = (
    Row("linear 784x10", linear, (1, 784)),
    Row("linear 784x10", linear, (1, 784), (2, 8), 1),
    Row("LeNet-5", lenet5, (1, 784)),
    Row("LeNet-5", lenet5, (1, 784), (2, 4), 1, note="one block for all three layers"),
    Row("ViT-tiny", vit_tiny, IMAGE, published="5.5M; 2.16G", note="FLOPs are one forward"),
    Row("ViT-tiny", vit_tiny, IMAGE, 4, 1, HEAD, "0.16M; 65.37M", NOT_4X4),
    Row("ViT-tiny", vit_tiny, IMAGE, 8, 1, HEAD, "0.16M; 65.37M", NOT_4X4),
    Row("ViT-tiny", vit_tiny, IMAGE, 4, 4, (), "1.884M", "exact"),
    Row("ViT-tiny", vit_tiny, IMAGE, 8, 4, HEAD, "0.662M", "exact"),
    Row("Swin-tiny", swin_tiny, IMAGE, published="27.60M; 26.18G", note="FLOPs are three forward"),
    Row(
        "Swin-tiny", swin_tiny, IMAGE, 4, 2, (), "5.3M; 167.33M", "parameters near; FLOPs fit no r"
    ),
    Row("ViT-base", vit_base, IMAGE, published="87.34M", note="that is DeiT-B, 1000 classes"),
    Row(
        "DeiT-B distilled",
        lambda: vit_base(1000, distilled=True),
        IMAGE,
        published="87.34M",
        note="exact",
    ),
    Row(
        "ViT-base, 1000 classes",
        lambda: vit_base(1000),
        IMAGE,
        4,
        1,
        published="11.58M",
        note="exact",
    ),
)


def formula_parameters(row: Row) -> int:
    """Dense parameters, with each factorized weight's replaced by the formula."""
    with torch.device("meta"):
        dense = row.build()
        total = sum(p.numel() for p in dense.parameters())
        if not row.block:
            return total
        layers = summary(factorize(dense, row.block, row.rank, exclude=row.exclude)).layers
    return total + sum(
        layer.formula_parameters - layer.shape[0] * layer.shape[1] for layer in layers if layer.rank
    )


def main() -> None:
    print(
        f"{'model':24s} {'block':>6s} r {'parameters':>12s} {'formula':>12s} {'forward':>9s}"
        " published"
    )
    for row in ROWS:
        with torch.device("meta"):
            model = row.build()
            if row.block:
                model = factorize(model, row.block, row.rank, exclude=row.exclude)
            flops = measured_forward_flops(model, torch.empty(row.inputs))
        counted = sum(p.numel() for p in model.parameters())
        block = "x".join(map(str, row.block)) if isinstance(row.block, tuple) else str(row.block)
        text = f"{row.name:24s} {block if row.block else 'dense':>6s} {row.rank or '-'}"
        text += f" {counted:12,d} {formula_parameters(row):12,d} {flops / 1e6:8.1f}M"
        print(f"{text} {row.published:16s} {row.note}")


if __name__ == "__main__":
    main()
