"""What leaves a graph leaves the memory."""

import weakref

import numpy as np
import onnx_ir as ir

from bscompile.passes.graph import replace
from bscompile.passes.recognise_linear import RecogniseLinear
from tests.passes.helpers import dense


def test_the_memory_of_a_replaced_weight_is_free_at_once():
    """Removed nodes wait for Python's cycle collector, which does not see how large they are."""
    array = dense(8, 6)
    weight = ir.Value(name="w", shape=ir.Shape(array.shape), const_value=ir.tensor(array))
    weight.dtype = ir.DataType.FLOAT
    x = ir.val("x", ir.DataType.FLOAT, ["N", 8])
    node = ir.node("MatMul", [x, weight])
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["N", 6]), ir.DataType.FLOAT
    graph = ir.Graph([x], list(node.outputs), nodes=[node], initializers=[weight], name="g")
    gone = weakref.ref(array)
    del array
    RecogniseLinear()(ir.Model(graph, ir_version=10))
    assert gone() is None
    assert list(graph.initializers) != ["w"]


def test_a_weight_with_another_reader_stays():
    array = np.ones((4, 4), np.float32)
    weight = ir.Value(name="w", shape=ir.Shape((4, 4)), const_value=ir.tensor(array))
    x = ir.val("x", ir.DataType.FLOAT, [4])
    first, second = ir.node("Add", [x, weight]), ir.node("Mul", [x, weight])
    outputs = [first.outputs[0], second.outputs[0]]
    graph = ir.Graph([x], outputs, nodes=[first, second], initializers=[weight], name="g")
    replace(graph, [first], [ir.node("Neg", [x])])
    assert weight.const_value is not None
    assert list(graph.initializers) == ["w"]
