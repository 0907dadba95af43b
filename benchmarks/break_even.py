"""The density up to which a block-sparse layer is faster than the dense one.

Run: python -m benchmarks.break_even. One layer of 768 -> 3072, fp32, 2 threads, blocks of 16x16,
8x8 and 4x4, batches 1, 32 and 128. The block-sparse kernel that the cost model plans runs at
rising densities, in turns with our dense kernel and onnxruntime's MatMul; where its median meets
theirs is found by linear interpolation. 1.00 means faster at every density. The goal for 16x16
is 0.70.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import onnxruntime as ort
from onnx import helper, numpy_helper

from bscompile.benchmark import take_turns
from bscompile.targets.cpu.threads import set_threads

INNER, OUTER, THREADS = 768, 3072, 2
DENSITIES = (0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> int:
    set_threads(THREADS)
    from bscompile.targets import resolve

    print(
        f"{'blocks':8} {'batch':>5}  of our dense  of onnxruntime   times at each density / dense"
    )
    for batch in (1, 32, 128):
        context = resolve("cpu", THREADS, batch)
        for side in (16, 8, 4):
            report(side, batch, context)
    return 0


def report(side: int, batch: int, context) -> None:
    """One line: both break-even densities and what they come from."""
    from bscompile.formats import BlockSparseMatrix

    rng = np.random.default_rng(0)
    dense = (rng.standard_normal((OUTER, INNER)) * 0.03).astype(np.float32)
    x = rng.standard_normal((batch, INNER)).astype(np.float32)
    order = rng.random((OUTER // side, INNER // side))
    runs = {"dense": kernel(dense, x, context), "ort": peer(dense, x)}
    for density in DENSITIES:
        mask = np.kron(order < density, np.ones((side, side), np.float32))
        weight = BlockSparseMatrix.from_dense(dense * mask, (side, side))
        runs[f"{density:.0%}"] = kernel(weight, x, context)
    times = take_turns(runs, seconds=2.5)
    sparse = [times[f"{density:.0%}"].median for density in DENSITIES]
    own, other = times["dense"].median, times["ort"].median
    ratios = "  ".join(f"{t / own:.2f}" for t in sparse)
    print(
        f"{f'{side}x{side}':8} {batch:5}  {meets(sparse, own):12.2f}  {meets(sparse, other):14.2f}"
        f"   {ratios}   dense {own * 1e6:.0f} us, onnxruntime {other * 1e6:.0f} us",
        flush=True,
    )


def meets(sparse: list[float], dense: float) -> float:
    """The density at which the sparse times reach the dense one."""
    line = list(zip(DENSITIES, sparse, strict=True))
    if sparse[0] >= dense:
        return DENSITIES[0] * dense / sparse[0]
    for (low, before), (high, after) in pairwise(line):
        if after >= dense:
            return low + (high - low) * (dense - before) / (after - before)
    return 1.0


def kernel(weight, x, context):
    """The layer in the form that it is given in, as a function without arguments."""
    import tvm

    from bscompile.dialect import LinearOp
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.build import compile_kernel

    hardware = context.hardware
    op = LinearOp("layer", weight)
    problem = problem_of(op, len(x), np.dtype(np.float32))
    options = [(t, t.space(problem, hardware)) for t in context.target.templates]
    template, configs = min(
        ((t, space) for t, space in options if space),
        key=lambda option: option[0].cost(problem, option[1][0], hardware),
    )
    built = template.build(problem, weight, configs[0], hardware)
    function = compile_kernel(built.prim_func, hardware).jit()["kernel"]
    arrays = (x, *(array for _, array in built.operands), np.zeros((len(x), OUTER), np.float32))
    arguments = [tvm.runtime.tensor(array) for array in arrays]
    return lambda: function(*arguments)


def peer(weight, x):
    """The dense layer by onnxruntime."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [value("x", 1, x.shape)],
        [value("y", 1, [len(x), OUTER])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})


if __name__ == "__main__":
    sys.exit(main())
