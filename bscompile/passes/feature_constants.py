"""Which features of a group are constants, and what they are.

A row of zeros makes a feature constant; its value is followed through epilogues, elementwise
operators and pooling. Each value gets a mask [features] and the constants where it is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from bscompile.dialect import TENSOR_STEPS, read_node, tensor_inputs
from bscompile.dialect.meaning import apply_step
from bscompile.passes.feature_groups import POOLING, FeatureGroup, along_features, per_feature
from bscompile.passes.feature_layout import is_reshape
from bscompile.passes.graph import constant, is_op
from bscompile.passes.weight_slices import zero_rows

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Known:
    """The constant features of a value.

    Attributes:
        mask: bool [features].
        values: float64 [features], of meaning where the mask is set.
    """

    mask: npt.NDArray[np.bool_]
    values: npt.NDArray[np.float64]


def known_features(group: FeatureGroup) -> dict[ir.Value, Known]:
    """The constant features of every value of a group."""
    nothing = Known(np.zeros(group.size, bool), np.zeros(group.size))
    known = dict.fromkeys(group.values, nothing)
    inside = {*group.producers, *group.between}
    graph = next((node.graph for node in inside), None)
    for node in graph or ():
        if node not in inside:
            continue
        with np.errstate(all="ignore"):
            if node in group.producers:
                result = _after_layer(node, known, group)
            elif is_op(node, *POOLING):
                result = _after_pooling(node, known)
            elif is_reshape(node) or is_op(node, "Transpose"):
                assert node.inputs[0] is not None
                result = known[node.inputs[0]]
            elif is_op(node, "Softmax", "LogSoftmax"):
                result = nothing
            elif is_op(node, "MatMul"):
                result = _after_product(node, known, group.size)
            else:
                result = _after_elementwise(node, known, group)
        mask = result.mask & np.isfinite(result.values)
        known[node.outputs[0]] = Known(mask, np.where(mask, result.values, 0.0))
    return known


def _after_layer(node: ir.Node, known: dict[ir.Value, Known], group: FeatureGroup) -> Known:
    op = read_node(node)
    run = group.layouts[node.outputs[0]].run
    mask = zero_rows(op.weight)
    values = np.zeros(len(mask))
    tensors = iter(tensor_inputs(node))
    for step in op.epilogue:
        tensor: Array | None = None
        if step in TENSOR_STEPS:
            source = next(tensors)
            tensor = constant(source)
            if step == "residual" or tensor is None:
                addend = known.get(source)
                if addend is None:
                    return Known(np.zeros(group.size, bool), np.zeros(group.size))
                mask = mask & addend.mask.repeat(run)
                tensor = addend.values.repeat(run)
        values = np.asarray(apply_step(step, values, tensor, conv=False), np.float64)
    runs = values.reshape(group.size, run)
    alike = (runs == runs[:, :1]).all(axis=1)
    return Known(mask.reshape(group.size, run).all(axis=1) & alike, runs[:, 0])


def _after_product(node: ir.Node, known: dict[ir.Value, Known], size: int) -> Known:
    """A matrix of zeros gives zeros; a product of other constants depends on their number."""
    mask = np.zeros(size, bool)
    for value in node.inputs:
        if value in known:
            mask |= known[value].mask & (known[value].values == 0)
    return Known(mask, np.zeros(size))


def _after_pooling(node: ir.Node, known: dict[ir.Value, Known]) -> Known:
    """One value everywhere stays itself, unless zeros of the padding are averaged in."""
    assert node.inputs[0] is not None
    result = known[node.inputs[0]]
    padded = any(node.attributes.get_ints("pads", ())) or "auto_pad" in node.attributes
    uneven = bool(node.attributes.get_int("ceil_mode", 0)) or padded
    if node.op_type == "AveragePool" and uneven:
        return Known(result.mask & (result.values == 0), result.values)
    return result


def _after_elementwise(node: ir.Node, known: dict[ir.Value, Known], group: FeatureGroup) -> Known:
    operands: list[Array | None] = []
    masks = []
    layout = group.layouts[node.outputs[0]]
    for value in node.inputs:
        array = constant(value)
        if value is None:
            operands.append(None)
        elif value in known:
            operands.append(known[value].values)
            masks.append(known[value].mask)
        elif array is not None and (one := per_feature(array, layout, group.size)) is not None:
            operands.append(one.astype(np.float64))
            masks.append(np.ones(group.size, bool))
        else:
            varies = array is not None and along_features(array, layout, group.size)
            operands.append(np.zeros(group.size if varies else 1))
            masks.append(np.zeros(group.size, bool))
    result = _evaluate(node, operands)
    if result is None or result.shape != (group.size,):
        return Known(np.zeros(group.size, bool), np.zeros(group.size))
    mask = np.logical_and.reduce(masks)
    if is_op(node, "Mul"):  # zero times anything is zero
        zeros = [m & (v == 0) for m, v in zip(masks, operands, strict=True) if v is not None]
        mask |= np.logical_or.reduce(zeros)
    return Known(mask, result)


def _evaluate(node: ir.Node, operands: list[Array | None]) -> Array | None:
    """One ONNX node on float64 vectors, None where that fails."""
    if is_op(node, "Gelu"):  # the reference evaluator knows it only by its expansion
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        x = operands[0]
        return None if x is None else apply_step("gelu_tanh" if tanh else "gelu", x, None, False)
    proto = ir.serde.serialize_node(node)
    names = [f"i{place}" if operand is not None else "" for place, operand in enumerate(operands)]
    proto.input[:] = names
    proto.output[:] = ["o"]
    feeds = {n: np.asarray(o) for n, o in zip(names, operands, strict=True) if o is not None}
    if is_op(node, "Clip"):
        feeds = {n: o if n == "i0" else o.reshape(()) for n, o in feeds.items()}
    try:
        (result,) = ReferenceEvaluator(proto, opsets={"": 20}).run(None, feeds)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return np.asarray(result, np.float64)
