"""The feed-forward layer pair 768 -> 3072 -> 768 against onnxruntime's dense one.

Run: python -m benchmarks.ffn [THREADS]. 128 rows, 2 threads, fp32, ReLU between the two, no
biases. Each row is two kernel calls, planned by the cost model; onnxruntime runs the dense pair
and takes turns with it. «ratio» is of medians, «best» of minima, which a busy machine disturbs
less; «roofline» is the multiply-adds that are left over the machine's peak rate.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import helper, numpy_helper

from bscompile.benchmark import take_turns
from bscompile.targets.cpu.threads import set_threads

ROWS, INNER, OUTER = 128, 768, 3072
THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2

Pair = tuple[object, object]


def main() -> int:
    set_threads(THREADS)  # before TVM starts its workers
    from bscompile.targets import resolve

    context = resolve("cpu", THREADS, ROWS)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    dense = [
        (rng.standard_normal(s) * 0.03).astype(np.float32) for s in ((OUTER, INNER), (INNER, OUTER))
    ]
    peer = dense_session(*dense)
    peak = context.hardware.peak_gflops["float32"] * THREADS
    print(
        f"{context.hardware.name}, {context.hardware.isa}, "
        f"{THREADS} threads, {peak:.0f} GFLOP/s peak"
    )
    print(
        f"{'weights':24} {'runs as':42} {'ms':>7} {'min':>7} "
        f"{'ort ms':>7} {'min':>7} {'ratio':>6} {'best':>6} {'roofline':>8} {'error':>8}"
    )
    for label, first, second, macs in cases(rng, dense):
        run, names, error = ours(first, second, x, context)
        times = take_turns({"ours": run, "ort": lambda: peer.run(None, {"x": x})}, seconds=2.0)
        own, other = times["ours"], times["ort"]
        share = 2 * ROWS * macs / (peak * 1e9) / own.minimum
        print(
            f"{label:24} {names:42} {own.median * 1e3:7.3f} {own.minimum * 1e3:7.3f} "
            f"{other.median * 1e3:7.2f} {other.minimum * 1e3:7.2f} "
            f"{other.median / own.median:6.1f} {other.minimum / own.minimum:6.1f} "
            f"{share:8.0%} {error:8.1e}",
            flush=True,
        )
    return 0


def cases(rng, dense):
    """(label, first weight, second weight, multiply-adds per row)."""
    from bscompile.formats import BlockSparseMatrix, KroneckerSum

    yield "dense", *dense, 2 * INNER * OUTER
    for side in (16, 8, 4, 2, 32):
        for density in (0.05, 0.1, 0.2, 0.5):
            pair = []
            for weight in dense:
                live = rng.random((weight.shape[0] // side, weight.shape[1] // side)) < density
                mask = np.kron(live, np.ones((side, side), np.float32))
                pair.append(BlockSparseMatrix.from_dense(weight * mask, (side, side)))
            macs = sum(w.nnzb * side * side for w in pair)
            yield f"blocks {side}x{side} {density:.0%}", *pair, macs
    for side, rank in ((8, 1), (8, 4), (16, 2)):
        pair = []
        for n, k in ((OUTER, INNER), (INNER, OUTER)):
            shape = (rank, n // side, k // side)
            a = rng.standard_normal(shape) * (rng.random(shape[1:]) < 0.1)
            b = rng.standard_normal((rank, side, side)) * 0.03
            pair.append(KroneckerSum(a.astype(np.float32), b.astype(np.float32)))
        macs = sum(min(w.macs_per_row(o) for o in ("b_first", "a_first")) for w in pair)
        yield f"factors {side}x{side} r={rank} 10%", *pair, macs


def ours(first, second, x, context) -> tuple[Callable[[], object], str, float]:
    """The planned pair of kernels as one call, what they are, and the relative error."""
    import tvm

    from bscompile.dialect import LinearOp, evaluate
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.hardware import llvm_target
    from bscompile.targets.planner import plan

    ops = [LinearOp("first", first, ("relu",)), LinearOp("second", second)]
    stages, names = [], []
    for op in ops:
        choice = plan(op, ROWS, np.dtype(np.float32), context)
        op = op.with_weight(choice.weight)
        problem = problem_of(op, ROWS, np.dtype(np.float32))
        template = context.target.template(choice.template)
        kernel = template.build(problem, op.weight, choice.config, context.hardware)
        name = kernel.prim_func.attrs["global_symbol"]
        target = llvm_target(context.hardware)
        function = tvm.compile(tvm.IRModule({name: kernel.prim_func}), target=target).jit()[name]
        operands = [tvm.runtime.tensor(array) for _, array in kernel.operands]
        output = tvm.runtime.tensor(np.zeros((ROWS, op.shape[0]), np.float32))
        stages.append((function, operands, output))
        names.append(f"{choice.template} {problem.block[0]}x{problem.block[1]}")
    held = tvm.runtime.tensor(x)

    def run() -> object:
        value = held
        for function, operands, output in stages:
            function(value, *operands, output)
            value = output
        return value

    want = evaluate(ops[1], evaluate(ops[0], x))
    error = float(np.abs(run().numpy() - want).max() / np.abs(want).max())
    if not error < 1e-4 or math.isnan(error):
        raise SystemExit(f"wrong result: relative error {error}")
    same = names[0] == names[1]
    return run, names[0] if same else ", ".join(names), error


def dense_session(first, second) -> ort.InferenceSession:
    """A session of onnxruntime on MatMul, Relu, MatMul."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "second"], ["y"]),
        ],
        "ffn",
        [value("x", 1, [ROWS, INNER])],
        [value("y", 1, [ROWS, INNER])],
        [
            numpy_helper.from_array(np.ascontiguousarray(first.T), "first"),
            numpy_helper.from_array(np.ascontiguousarray(second.T), "second"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    sys.exit(main())
