import numpy as np
import onnx_ir as ir
import pytest

from bscompile.dialect import read_node
from bscompile.passes.absorb_windows import AbsorbWindows
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_factorized import RecogniseFactorized
from tests.passes.helpers import check_equal, dense, model_from, op_types, rewritten

SPELLED = """
g (float[N, 2, 5, 6] x) => (float[N, 8, oh, ow] y) {{
  w = Conv <group: int = 2, strides: ints = [1, 2], pads: ints = [1, 0, 1, 0]> (x, windows)
  rows = Transpose <perm: ints = {last}> (w)
  parts = Reshape (rows, cut)
  z = MatMul (parts, patterns)
  z5 = Reshape (z, apart)
  turned = Transpose <perm: ints = [0, 3, 2, 1]> (z5)
  flat = Reshape (turned, stacked)
  sums = MatMul (flat, coefficients)
  s3 = Reshape (sums, places)
  back = Transpose <perm: ints = [0, 2, 1]> (s3)
  made = Reshape (back, image)
  {more}
  y = Transpose <perm: ints = [0, 3, 1, 2]> ({made})
}}
"""


def spelled(windows=None, last="[0, 2, 3, 1]", more="", made="made"):
    """Channels 2, kernel 3x2, so 12 columns in blocks of 4x3: n1 = 4, m1 = 2, rank 1."""
    one_hot = np.eye(6, dtype=np.float32).reshape(6, 1, 3, 2)
    weights = {
        "windows": np.tile(one_hot, (2, 1, 1, 1)) if windows is None else windows,
        "patterns": dense(3, 4),
        "coefficients": dense(4, 2, seed=2),
        "cut": np.array([-1, 4, 3]),
        "apart": np.array([-1, 4, 1, 4]),
        "stacked": np.array([-1, 4]),
        "places": np.array([-1, 4, 2]),
        "image": np.array([-1, 5, 3, 8]),
    }
    return model_from(SPELLED.format(last=last, more=more, made=made), weights)


def feeds():
    return {"x": dense(3, 2, 5, 6, seed=5)}


def absorbed(proto):
    return rewritten(proto, FoldConstants(), RecogniseFactorized(), AbsorbWindows(), feeds=feeds())


def test_product_over_listed_windows_is_a_convolution():
    model = absorbed(spelled())
    assert op_types(model) == ["KroneckerConv"]
    op = read_node(model.graph[0])
    assert (op.conv.kernel, op.conv.strides, op.conv.pads) == ((3, 2), (1, 2), (1, 0, 1, 0))
    assert op.weight.block == (4, 3)


def test_windows_that_others_read_stay_for_them():
    proto = spelled()
    proto.graph.output.append(
        ir.serde.serialize_value(
            ir.Value(
                name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 12, 5, 3])
            )
        )
    )
    assert sorted(op_types(absorbed(proto))) == ["Conv", "KroneckerConv"]


def scaled():
    windows = np.tile(np.eye(6, dtype=np.float32).reshape(6, 1, 3, 2), (2, 1, 1, 1))
    windows[0] *= 2
    return windows


@pytest.mark.parametrize(
    "proto",
    [
        spelled(windows=scaled()),
        spelled(windows=np.roll(scaled(), 1, 0)),
        spelled(more="r = Relu (made)", made="r"),
    ],
    ids=["not one-hot", "another order", "something between"],
)
def test_anything_else_stays_what_it_is(proto):
    model = absorbed(proto)
    assert "KroneckerMatMul" in op_types(model)
    assert "Conv" in op_types(model)
    check_equal(proto, model, feeds())
