"""What the tests of passes share: models from text, and their numbers under ONNX Runtime."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from bscompile.dialect import form_of
from bscompile.importer import load_model
from tests.tolerance import assert_close


@dataclass
class KeepForm:
    """A choice that changes nothing, as a planner without a target would make it."""

    weight: object
    template: str = "kept"
    config: dict = field(default_factory=dict)
    seconds: float = 1e-6
    dense_seconds: float = 2e-6
    reason: str = "kept as recognised"
    considered: tuple = (("kept", 1e-6),)
    tuned: bool = False
    buckets: tuple = ()

    @property
    def form(self):
        return form_of(self.weight)

    @property
    def block(self):
        return (1, 1) if self.form == "dense" else self.weight.block


def keep_form(op, rows, dtype, step=1):
    return KeepForm(op.weight)


def model_from(text, weights=None, opset=20, ir_version=10):
    """A checked model from the text of a graph and its weights by name."""
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}, "com.microsoft": 1]>\n{text}'
    )
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def blocky(shape, block=(4, 4), density=0.4, seed=0):
    """W float32 whose zero blocks are of that size; at least one is live and one is zero."""
    rng = np.random.default_rng(seed)
    grid = [-(-side // b) for side, b in zip(shape, block, strict=True)]
    live = rng.random(grid) < density
    live.flat[0], live.flat[-1] = True, False
    mask = np.kron(live, np.ones(block, bool))[: shape[0], : shape[1]]
    return (rng.standard_normal(shape) * mask).astype(np.float32)


def dense(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_ort(model, feeds):
    """Every output of a model (proto or onnx_ir) under ONNX Runtime, without its optimizations."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, feeds)


def rewritten(proto, *passes, feeds, k=64):
    """Import, run the passes, and hold the numbers before and after against each other."""
    model = load_model(proto)
    for step in passes:
        step(model)
    check_equal(proto, model, feeds, k)
    return model


def check_equal(proto, model, feeds, k=64):
    """The model in any state between passes means what the file means, and the checker agrees."""
    from onnx_ir.passes import common

    from bscompile.dialect import attach_functions

    copy = model.clone()
    attach_functions(copy)
    common.NameFixPass()(copy)
    common.CheckerPass()(copy)
    for got, want in zip(run_ort(copy, feeds), run_ort(proto, feeds), strict=True):
        assert got.dtype == want.dtype
        assert_close(got, want, want.dtype, k)


def op_types(model):
    return [node.op_type for node in model.graph]
