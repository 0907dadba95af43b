import json

import numpy as np
import pytest

from bscompile.dialect import FOUND_KEY, is_dialect, read_node
from bscompile.importer import load_model
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recover_factors import RecoverFactors
from bscompile.passes.widen_float16 import WidenFloat16
from tests.passes.factorized import Factorized, export
from tests.passes.helpers import blocky, check_equal, dense, model_from, op_types


def recover(proto, feeds, k=64):
    model = load_model(proto)
    step = RecoverFactors()
    for earlier in (WidenFloat16(), FoldConstants(), RecogniseLinear()):
        earlier(model)
    step(model)
    check_equal(proto, model, feeds, k)
    return model, step


def merged(shape=(32, 48), block=(4, 8), rank=1, density=0.5):
    rng = np.random.default_rng(0)
    grid = shape[0] // block[0], shape[1] // block[1]
    live = rng.random(grid) < density
    live.flat[0], live.flat[-1] = True, False
    return sum(
        np.kron(rng.standard_normal(grid) * live, rng.standard_normal(block)) for _ in range(rank)
    ).astype(np.float32)


MATMUL = "agraph (float[N, 48] x) => (float[N, 32] y) { y = MatMul(x, W) }"


@pytest.mark.parametrize(
    ("spelling", "dynamo"), [("build_w", True), ("build_w", False), ("kron", True)]
)
@pytest.mark.parametrize(("n", "m"), [(64, 48), (256, 384)])
def test_a_weight_built_in_the_graph_gets_its_factors_back(spelling, dynamo, n, m):
    module = Factorized(spelling, n=n, m=m, rank=2)
    model, step = recover(export(module, (2, n), (0,), dynamo), {"x": dense(2, n)}, k=n)
    (node,) = [n for n in model.graph if is_dialect(n)]
    weight = read_node(node).weight
    assert node.op_type == "KroneckerMatMul"
    assert (weight.block, weight.rank) == ((8, 8), 2)
    np.testing.assert_array_equal(weight.support, module.S.detach().numpy() != 0)
    assert json.loads(node.metadata_props[FOUND_KEY])["kind"] == "kronecker"
    assert "2 Kronecker terms" in step.applied[0].text


def test_dense_and_block_sparse_nodes_are_both_tried():
    for density in (0.5, 2.0):
        proto = model_from(MATMUL, {"W": merged(density=density).T.copy()})
        model, _ = recover(proto, {"x": dense(3, 48)})
        assert op_types(model) == ["KroneckerMatMul"]


def test_a_bias_stays_in_place():
    text = "agraph (float[N, 48] x) => (float[N, 32] y) { y = Gemm<transB = 1>(x, W, c) }"
    proto = model_from(text, {"W": merged(), "c": dense(32)})
    model, _ = recover(proto, {"x": dense(3, 48)})
    (node,) = model.graph
    assert node.op_type == "KroneckerMatMul"
    assert read_node(node).epilogue == ("bias",)


@pytest.mark.parametrize(("kernel", "pads"), [(1, 0), (3, 1)])
def test_convolutions_are_factorized_over_channels(kernel, pads):
    channels = 16
    weight = merged((32, channels * kernel * kernel), (4, kernel * kernel), 1)
    proto = model_from(
        f"""agraph (float[N, {channels}, 7, 7] x) => (float[N, 32, 7, 7] y)
        {{ y = Conv<pads = [{pads}, {pads}, {pads}, {pads}]>(x, W, c) }}""",
        {"W": weight.reshape(32, channels, kernel, kernel), "c": dense(32)},
    )
    model, _ = recover(proto, {"x": dense(2, channels, 7, 7)}, k=weight.shape[1])
    assert op_types(model) == ["KroneckerConv"]


@pytest.mark.parametrize(
    "weight", [dense(32, 48), blocky((32, 48), (4, 4)), blocky((32, 48), (16, 16), 0.6)]
)
def test_other_weights_are_declined_with_the_reason_added(weight):
    proto = model_from(MATMUL, {"W": weight.T.copy()})
    model, step = recover(proto, {"x": dense(3, 48)})
    (node,) = model.graph
    assert node.op_type != "KroneckerMatMul"
    assert step.applied == []
    reason = json.loads(node.metadata_props[FOUND_KEY])["reason"]
    assert reason.endswith(f"; no factors: {step.refused[0].text}")


def test_rounding_to_float16_is_undone_only_in_a_half_precision_model():
    half = merged((64, 96), (8, 8), 2).T.astype(np.float16)
    text = "agraph (float[N, 96] x) => (float[N, 64] y) { y = MatMul(x, W) }"
    model, step = recover(model_from(text, {"W": half.astype(np.float32)}), {"x": dense(3, 96)})
    assert op_types(model) == ["BlockSparseMatMul"]
    assert "rounded to float16; kept as it is" in step.refused[0].text
    proto = model_from(text.replace("float[", "float16["), {"W": half})
    model, step = recover(proto, {"x": dense(3, 96).astype(np.float16)})
    assert "KroneckerMatMul" in op_types(model)


def test_weights_shared_by_two_layers_stay_right():
    proto = model_from(
        """agraph (float[N, 32] x) => (float[N, 32] y)
        { a = MatMul(x, W)  b = Relu(a)  y = MatMul(b, W) }""",
        {"W": merged((32, 32), (4, 4), 1)},
    )
    model, _ = recover(proto, {"x": dense(3, 32)})
    assert op_types(model) == ["KroneckerMatMul", "Relu", "KroneckerMatMul"]
