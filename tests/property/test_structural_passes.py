"""Whatever the graph, the structural passes keep its meaning."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bscompile.importer import load_model
from bscompile.passes.absorb_permutation import AbsorbPermutation
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.recognise_factorized import RecogniseFactorized
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recover_factors import RecoverFactors
from bscompile.passes.shrink import Shrink
from tests.passes.helpers import check_equal, model_from

SIZES = st.sampled_from([4, 8, 12, 16])
STEPS = ["layer", "relu", "gelu", "gate", "gather", "scale", "residual", "softmax", "factors"]


class Writer:
    """Writes a graph step by step, with weights that have dead rows, columns and blocks."""

    def __init__(self, seed, size):
        self.rng = np.random.default_rng(seed)
        self.lines, self.weights = [], {}
        self.size, self.last, self.count = size, "x", 0

    def name(self, kind="v"):
        self.count += 1
        return f"{kind}{self.count}"

    def constant(self, array):
        name = self.name("w")
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def emit(self, text):
        name = self.name()
        self.lines.append(f"{name} = {text}")
        return name

    def matrix(self, out, inner):
        rng = self.rng
        kind = rng.integers(4)
        if kind == 0 and out % 4 == 0 and inner % 4 == 0:
            live = rng.random((out // 4, inner // 4)) < 0.5
            weight = rng.standard_normal((out, inner)) * np.kron(live, np.ones((4, 4)))
        elif kind == 1:
            live = rng.random((out // 4, inner // 4)) < 0.6
            coefficients = rng.standard_normal(live.shape) * live
            weight = np.kron(coefficients, rng.standard_normal((4, 4)))
        else:
            weight = rng.standard_normal((out, inner))
        weight[rng.random(out) < 0.2] = 0
        weight[:, rng.random(inner) < 0.2] = 0
        return weight.astype(np.float32)

    def layer(self, source, out):
        weight = self.constant(self.matrix(out, self.size))
        bias = self.constant(self.rng.standard_normal(out).astype(np.float32))
        return self.emit(f"Gemm<transB = 1>({source}, {weight}, {bias})")

    def step(self, kind, size):
        rng, last = self.rng, self.last
        if kind == "layer":
            self.last, self.size = self.layer(last, size), size
        elif kind == "relu":
            self.last = self.emit(f"Relu({last})")
        elif kind == "gelu":
            self.last = self.emit(f"Gelu({last})")
        elif kind == "softmax":
            self.last = self.emit(f"Softmax({last})")
        elif kind == "gate":
            gate = self.emit(f"Relu({self.layer(last, size)})")
            self.last, self.size = self.emit(f"Mul({gate}, {self.layer(last, size)})"), size
        elif kind == "gather":
            order = self.constant(rng.permutation(self.size))
            self.last = self.emit(f"Gather<axis = 1>({last}, {order})")
        elif kind == "scale":
            scale = self.constant(rng.standard_normal(self.size).astype(np.float32))
            self.last = self.emit(f"Add({self.emit(f'Mul({last}, {scale})')}, {scale})")
        elif kind == "residual":
            self.last = self.emit(f"Add({last}, {self.layer(last, self.size)})")
        else:
            a = self.constant(rng.standard_normal((size // 4, self.size // 4)).astype(np.float32))
            b = self.constant(rng.standard_normal((4, 4)).astype(np.float32))
            cut = self.constant(np.array([-1, self.size // 4, 4]))
            join = self.constant(np.array([-1, size]))
            blocks = self.emit(f"MatMul({self.emit(f'Reshape({last}, {cut})')}, {b})")
            self.last = self.emit(f"Reshape({self.emit(f'MatMul({a}, {blocks})')}, {join})")
            self.size = size

    def model(self, inner):
        body = "\n".join([*self.lines, f"y = Identity({self.last})"])
        return model_from(
            f"g (float[N, {inner}] x) => (float[N, {self.size}] y) {{\n{body}\n}}", self.weights
        )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    SIZES,
    st.lists(st.tuples(st.sampled_from(STEPS), SIZES), min_size=1, max_size=7),
    st.booleans(),
)
def test_the_model_means_what_it_meant(seed, inner, steps, fuse):
    writer = Writer(seed, inner)
    for kind, size in steps:
        writer.step(kind, size)
    proto = writer.model(inner)
    model = load_model(proto)
    for each in (
        FoldConstants(),
        RecogniseFactorized(),
        RecogniseLinear(),
        AbsorbPermutation(),
        RecoverFactors(),
        *([FuseEpilogues()] if fuse else []),
        Shrink(),
    ):
        each(model)
    x = np.random.default_rng(seed).standard_normal((3, inner)).astype(np.float32)
    check_equal(proto, model, {"x": x}, k=256)
