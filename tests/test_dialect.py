"""Every dialect op means the same in numpy and as an ONNX function in onnxruntime."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bscompile import dialect
from bscompile.formats import BlockSparseMatrix, KroneckerSum
from tests.tolerance import assert_close

EPILOGUES = [
    (),
    ("bias",),
    ("bias", "gelu", "residual"),
    ("bias", "residual", "relu"),
    ("silu",),
    ("hard_swish", "bias"),
    ("clip:0.0:6.0",),
    ("clip:-inf:0.5", "residual"),
    ("leaky_relu:0.1",),
    ("hard_sigmoid:0.2:0.5",),
    ("gelu_tanh",),
]


def _weights(rng, shape, dtype):
    out, inner = shape
    dense = rng.standard_normal(shape).astype(dtype)
    mask = np.kron(rng.random((-(-out // 4), -(-inner // 4))) < 0.5, np.ones((4, 4)))
    sparse = (dense * mask[:out, :inner]).astype(dtype)
    return {
        "dense": dense,
        "block_sparse": BlockSparseMatrix.from_dense(sparse, (4, 4)),
        "empty": BlockSparseMatrix.from_dense(np.zeros(shape, dtype), (4, 4)),
        "kronecker": KroneckerSum(
            rng.standard_normal((2, out // 2, inner)).astype(dtype),
            rng.standard_normal((2, 2, 1)).astype(dtype),
        ),
    }


def _tensors(rng, epilogue, out, y_shape):
    shapes = {"bias": (out,), "residual": y_shape}
    return [
        rng.standard_normal(shapes[step]).astype(np.float32)
        for step in epilogue
        if step in dialect.TENSOR_STEPS
    ]


def _run(op, x, tensors):
    """Build a one-node model, check it, read it back, run it in onnxruntime."""
    feeds = {"x": x} | {f"t{i}": t for i, t in enumerate(tensors)}
    values = [
        ir.Value(name=k, shape=ir.Shape(v.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for k, v in feeds.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": 20}, name="g")
    node = dialect.make_node(op, graph, values[0], tuple(values[1:]))
    node.outputs[0].name = "y"
    node.outputs[0].dtype = ir.DataType.FLOAT
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    model = ir.Model(graph, ir_version=10)
    assert dialect.attach_functions(model) == 1
    proto = ir.serde.serialize_model(model)
    proto.graph.output[0].type.tensor_type.shape.Clear()
    onnx.checker.check_model(proto)
    back = dialect.read_node(node)
    assert (back.name, back.epilogue, back.conv) == (op.name, op.epilogue, op.conv)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0], dialect.evaluate(back, x, tuple(tensors))


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "-".join(e) or "none")
@pytest.mark.parametrize("form", ["dense", "block_sparse", "empty", "kronecker"])
def test_matmul_means_the_same_in_numpy_and_onnx(form, epilogue):
    rng = np.random.default_rng(0)
    weight = _weights(rng, (10, 13), np.float32)[form]
    x = rng.standard_normal((2, 3, 13)).astype(np.float32)
    op = dialect.LinearOp("layer.1", weight, epilogue)
    got, want = _run(op, x, _tensors(rng, epilogue, 10, (2, 3, 10)))
    assert_close(got, want, np.float32, 13)


@pytest.mark.parametrize("form", ["dense", "block_sparse", "kronecker"])
@pytest.mark.parametrize(
    "conv",
    [
        dialect.ConvGeometry((1, 1)),
        dialect.ConvGeometry((3, 3), (1, 1), (1, 1, 1, 1)),
        dialect.ConvGeometry((3, 2), (2, 1), (0, 1, 2, 1), (1, 2)),
    ],
    ids=["1x1", "3x3", "odd"],
)
def test_convolution_means_the_same_in_numpy_and_onnx(form, conv):
    rng = np.random.default_rng(1)
    channels = 4
    inner = channels * conv.kernel[0] * conv.kernel[1]
    weight = _weights(rng, (6, inner), np.float32)[form]
    x = rng.standard_normal((2, channels, 9, 8)).astype(np.float32)
    y_shape = (2, 6, *conv.output_size(9, 8))
    epilogue = ("bias", "residual", "relu")
    op = dialect.LinearOp("conv", weight, epilogue, conv)
    got, want = _run(op, x, _tensors(rng, epilogue, 6, y_shape))
    assert_close(got, want, np.float32, inner)


def test_one_changed_weight_changes_the_result():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((5, 7)).astype(np.float32)
    x = rng.standard_normal((3, 7)).astype(np.float32)
    before = dialect.evaluate(dialect.LinearOp("l", weight), x)
    changed = weight.copy()
    changed[2, 3] += 1
    after = dialect.evaluate(dialect.LinearOp("l", changed), x)
    assert (before != after).any(axis=0).tolist() == [False, False, True, False, False]


def test_unknown_epilogue_step_is_refused():
    with pytest.raises(ValueError, match="unknown epilogue step 'softmax'"):
        dialect.LinearOp("l", np.zeros((2, 2), np.float32), ("softmax",))


def test_a_foreign_node_is_not_read():
    node = ir.Node("", "MatMul", [None, None])
    with pytest.raises(ValueError, match="is not an operator of"):
        dialect.read_node(node)


def test_names_of_weights_never_collide():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    x = ir.Value(name="x")
    op = dialect.LinearOp("same", np.zeros((2, 2), np.float32))
    first = dialect.make_node(op, graph, x)
    second = dialect.make_node(op, graph, x)
    assert first.inputs[1].name != second.inputs[1].name
    assert len(graph.initializers) == 2
