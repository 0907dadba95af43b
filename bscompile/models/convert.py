"""Turning the linear layers of any model into factorized ones, and back.

A layer keeps its place, its bias and, with ``start="nearest"``, the best approximation of its
weight. A weight that belongs to several layers stays one weight.
"""

from __future__ import annotations

import fnmatch
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, as_block, largest_divisor
from bscompile.models.conv import BlockSparseConv2d
from bscompile.models.layers import BlockSparseLinear, KroneckerWeight

logger = logging.getLogger(__name__)

Start = Literal["random", "nearest"]


@dataclass(frozen=True)
class LayerPlan:
    """What conversion will do to one layer.

    Attributes:
        name: The layer's name in the model.
        shape: (out, in) of its weight; in counts the im2col columns of a convolution.
        block: The block it gets, ``None`` if it stays dense.
        rank: The rank it gets.
        message: Why it stays dense or gets another block or rank; empty if all is as asked.
    """

    name: str
    shape: tuple[int, int]
    block: Block | None
    rank: int
    message: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def plan(
    model: nn.Module,
    block: int | Block = 8,
    rank: int = 2,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    convolutions: bool = False,
) -> list[LayerPlan]:
    """Say for each linear layer (and convolution, if asked) what ``factorize`` would do.

    Args:
        model: Any module.
        block: Side of square blocks, or (out side, in side).
        rank: Number of Kronecker terms.
        include: Name patterns (as in a shell) of the layers to convert.
        exclude: Name patterns of layers to leave alone.
        convolutions: Whether to convert nn.Conv2d too.

    Raises:
        UsageError: A pattern matches no layer.
    """
    candidates = dict(_candidates(model, convolutions))
    for pattern in [*include, *exclude]:
        if pattern != "*" and not fnmatch.filter(candidates, pattern):
            names = ", ".join(candidates) or "none"
            raise UsageError(
                f"pattern {pattern!r} matches no convertible layer", hint=f"layers: {names}"
            )
    owners = _weight_owners(model)
    chosen = []
    for name, layer in candidates.items():
        if not any(fnmatch.fnmatchcase(name, p) for p in include):
            continue
        if any(fnmatch.fnmatchcase(name, p) for p in exclude):
            continue
        others = [o for o in owners[id(layer.weight)] if o not in candidates]
        if others:
            shape = _matrix_shape(layer)
            message = f"weight is shared with {', '.join(others)}; kept dense"
            chosen.append(LayerPlan(name, shape, None, rank, message))
        else:
            chosen.append(_plan_layer(name, layer, as_block(block), rank))
    return chosen


def factorize(
    model: nn.Module,
    block: int | Block = 8,
    rank: int = 2,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    start: Start = "random",
    convolutions: bool = False,
) -> nn.Module:
    """Replace linear layers by factorized ones, in place.

    Layers that the block does not divide get the largest block within it that does, or stay
    dense; each such case is logged. ``plan`` tells the same beforehand.

    Args:
        model: Any module; if it is itself a linear layer, a new module is returned.
        block: Side of square blocks, or (out side, in side).
        rank: Number of Kronecker terms.
        include: Name patterns of the layers to convert.
        exclude: Name patterns of layers to leave alone, such as a small head.
        start: ``"random"`` keeps the variance of the output, to train from scratch;
            ``"nearest"`` takes the nearest factors of the weights, to compress a trained model.
        convolutions: Whether to convert nn.Conv2d too (its im2col weight).

    Returns:
        The model.

    Raises:
        UsageError: A pattern matches no layer.
    """
    if start not in ("random", "nearest"):
        raise UsageError(f"start: wanted 'random' or 'nearest', got {start!r}")
    replaced: dict[int, nn.Module] = {}
    first_with: dict[int, KroneckerWeight] = {}
    for step in plan(model, block, rank, include, exclude, convolutions):
        if step.message:
            logger.info("%s", step)
        if step.block is None:
            continue
        old = model.get_submodule(step.name)
        assert isinstance(old, nn.Linear | nn.Conv2d)
        new = _convert(old, step.block, step.rank, start)
        twin = first_with.setdefault(id(old.weight), new)
        if twin is not new and twin.block == new.block:
            new.S, new.A, new.B, new.mask = twin.S, twin.A, twin.B, twin.mask
        replaced[id(old)] = new
    return replace_modules(model, replaced)


def merge(model: nn.Module) -> nn.Module:
    """Replace factorized layers by plain nn.Linear and nn.Conv2d with W built, in place.

    Zero blocks of W are exactly zero. Layers that shared factors share the weight.

    Returns:
        The model (a new module if it is itself a factorized layer).
    """
    replaced: dict[int, nn.Module] = {}
    weights: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, BlockSparseLinear | BlockSparseConv2d):
            dense = module.to_dense()
            dense.weight = weights.setdefault(id(module.A), dense.weight)
            dense.train(module.training)
            replaced[id(module)] = dense
    return replace_modules(model, replaced)


def _candidates(
    model: nn.Module, convolutions: bool
) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, module in model.named_modules():
        # Subclasses may do more than a product (quantized, LoRA, ...): leave them alone.
        if type(module) is nn.Linear or (convolutions and type(module) is nn.Conv2d):
            yield name, module


def _weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each parameter."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    return owners


def _matrix_shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    return layer.weight.shape[0], layer.weight[0].numel()


def _plan_layer(name: str, layer: nn.Linear | nn.Conv2d, wanted: Block, rank: int) -> LayerPlan:
    shape = out, inner = _matrix_shape(layer)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    block = largest_divisor(out // groups, wanted[0]), largest_divisor(inner, wanted[1])
    blocks = (out // block[0]) * (inner // block[1])
    capped = min(rank, blocks, block[0] * block[1])
    parameters = (1 + capped) * blocks + capped * block[0] * block[1]
    asked = f"block {wanted[0]}x{wanted[1]} does not divide [{out}, {inner}]"
    got = f"{block[0]}x{block[1]}"
    if block != wanted and parameters >= out * inner:
        return LayerPlan(name, shape, None, rank, f"{asked}, {got} would save nothing; kept dense")
    if block != wanted:
        return LayerPlan(name, shape, block, capped, f"{asked}; {got} taken, rank {capped}")
    if capped != rank:
        text = f"rank {rank} is over the exact rank; {capped} taken"
        return LayerPlan(name, shape, block, capped, text)
    return LayerPlan(name, shape, block, rank)


def _convert(
    layer: nn.Linear | nn.Conv2d, block: Block, rank: int, start: Start
) -> BlockSparseLinear | BlockSparseConv2d:
    nearest = start == "nearest"
    if isinstance(layer, nn.Conv2d):
        return BlockSparseConv2d.from_dense(layer, block, rank, nearest)
    return BlockSparseLinear.from_dense(layer, block, rank, nearest)


def replace_modules(model: nn.Module, replaced: dict[int, nn.Module]) -> nn.Module:
    """Put the new modules where the old ones are, in every place that holds them."""
    for module in list(model.modules()):
        # Not named_children, which names a module that is held twice only once.
        for name, held in list(module._modules.items()):
            if id(held) in replaced:
                setattr(module, name, replaced[id(held)])
    return replaced.get(id(model), model)
