"""What a model costs, layer by layer, measured on the module and computed by formula.

Parameters of a factorized layer: (1 + r) m1 n1 + r bh bw. Forward FLOPs are two for each
multiply-add of ``function.macs_per_row``; a training step takes three times the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bscompile.models.function import macs_per_row
from bscompile.models.layers import KroneckerWeight


@dataclass(frozen=True)
class LayerCost:
    """One layer with a weight matrix.

    Attributes:
        name: In the model.
        shape: (out, in).
        block: As text, ``"dense"`` without one.
        rank: 0 for dense.
        parameters: Counted on the module, weight only.
        formula_parameters: By the formula.
        flops_per_row: Forward, two a multiply-add, in the form that the layer runs.
        dense_flops_per_row: Of a dense layer of that shape.
        sparsity: Share of exactly zero blocks.
    """

    name: str
    shape: tuple[int, int]
    block: str
    rank: int
    parameters: int
    formula_parameters: int
    flops_per_row: int
    dense_flops_per_row: int
    sparsity: float


@dataclass(frozen=True)
class Summary:
    """All layers of a model; ``str()`` is a table.

    Attributes:
        layers: Linear, convolution and factorized layers.
        other_parameters: Everything that is no weight matrix of these.
    """

    layers: tuple[LayerCost, ...]
    other_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return sum(layer.parameters for layer in self.layers) + self.other_parameters

    def __str__(self) -> str:
        head = ("layer", "out x in", "block", "r", "parameters", "formula", "FLOP/row", "of dense")
        rows = [(*head, "zero blocks")]
        for c in self.layers:
            share = c.flops_per_row / c.dense_flops_per_row
            size = f"{c.shape[0]} x {c.shape[1]}"
            numbers = f"{c.parameters:,}", f"{c.formula_parameters:,}", f"{c.flops_per_row:,}"
            rank = str(c.rank or "-")
            rows.append(
                (c.name, size, c.block, rank, *numbers, f"{share:.1%}", f"{c.sparsity:.1%}")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(f"parameters in all: {self.parameters:,} ({self.other_parameters:,} other)")
        return "\n".join(lines)


def factor_parameters(shape: tuple[int, int], block: tuple[int, int], rank: int) -> int:
    """(1 + r) m1 n1 + r bh bw."""
    blocks = (shape[0] // block[0]) * (shape[1] // block[1])
    return (1 + rank) * blocks + rank * block[0] * block[1]


def summary(model: nn.Module) -> Summary:
    """Count a model's layers.

    Args:
        model: Any module.

    Returns:
        The counts; ``print(summary(model))`` shows them as a table.
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, KroneckerWeight):
            layers.append(_factorized(name, module))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            layers.append(_dense(name, module))
    total = sum(p.numel() for p in model.parameters())
    return Summary(tuple(layers), total - sum(layer.parameters for layer in layers))


def measured_forward_flops(model: nn.Module, *inputs: object) -> int:
    """FLOPs of one forward pass as torch counts them: two for each multiply-add of a product."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops())


def _factorized(name: str, layer: KroneckerWeight) -> LayerCost:
    out, inner = layer.shape
    return LayerCost(
        name,
        layer.shape,
        f"{layer.block[0]}x{layer.block[1]}",
        layer.rank,
        layer.S.numel() + layer.A.numel() + layer.B.numel(),
        factor_parameters(layer.shape, layer.block, layer.rank),
        2 * macs_per_row(layer.shape, layer.block, layer.rank)[layer.form],
        2 * out * inner,
        0.0 if layer.mask.is_meta else layer.sparsity,
    )


def _dense(name: str, layer: nn.Linear | nn.Conv2d) -> LayerCost:
    out, inner = layer.weight.shape[0], layer.weight[0].numel()
    count = layer.weight.numel()
    flops = 2 * out * inner
    return LayerCost(name, (out, inner), "dense", 0, count, out * inner, flops, flops, 0.0)
