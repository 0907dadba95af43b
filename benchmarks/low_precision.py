"""The feed-forward pair 768 -> 3072 -> 768 in bfloat16, float16 and int8.

Run: python -m benchmarks.low_precision [THREADS [WEIGHTS]], such as «2 factors» for the rows that
begin so. 128 rows, 2 threads, ReLU between the two, no biases, float32 in and out: rounding or
quantising x is part of every call. Each row takes turns with onnxruntime's dense float32 pair and
with our own float32 kernels for the same weights.
«best» is of minima, which a busy machine disturbs less; «error» is the largest one over the
largest value, against float64 of the float32 weights: what the precision costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.ffn import INNER, OUTER, ROWS, THREADS, dense_session
from bscompile.benchmark import take_turns
from bscompile.targets.cpu.threads import set_threads

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
SECONDS = 2.0


def main() -> int:
    """Print a row for each weight and precision."""
    set_threads(THREADS)  # before TVM starts its workers
    from bscompile.targets import resolve

    machine = resolve("cpu", THREADS, ROWS)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    dense = [
        (rng.standard_normal(s) * 0.03).astype(np.float32) for s in ((OUTER, INNER), (INNER, OUTER))
    ]
    peer = dense_session(*dense)
    peaks = ", ".join(f"{k} {v:.0f}" for k, v in machine.hardware.peak_gflops.items())
    print(f"{machine.hardware.name}, {THREADS} threads, GFLOP/s of a core: {peaks}")
    print(
        f"{'weights':22} {'precision':10} {'runs as':28} {'ms':>7} {'min':>7} "
        f"{'x ort':>6} {'best':>6} {'x fp32':>6} {'best':>6} {'roofline':>8} {'error':>8}"
    )
    wanted = " ".join(sys.argv[2:])
    for label, pair, macs in cases(rng, dense):
        if not label.startswith(wanted):
            continue
        runs, names, errors = {}, {}, {}
        want = reference(pair, x)
        for precision in PRECISIONS:
            run, names[precision] = ours(pair, x, precision, machine)
            runs[precision] = run
            errors[precision] = float(np.abs(run() - want).max() / np.abs(want).max())
        runs["ort"] = lambda: peer.run(None, {"x": x})
        times = take_turns(runs, seconds=SECONDS * len(runs) / 2)
        for precision in PRECISIONS:
            own, other, full = times[precision], times["ort"], times["float32"]
            peak = machine.hardware.peak_gflops[precision] * 1e9 * THREADS
            print(
                f"{label:22} {precision:10} {names[precision]:28} "
                f"{own.median * 1e3:7.3f} {own.minimum * 1e3:7.3f} "
                f"{other.median / own.median:6.1f} {other.minimum / own.minimum:6.1f} "
                f"{full.median / own.median:6.2f} {full.minimum / own.minimum:6.2f} "
                f"{2 * ROWS * macs / peak / own.minimum:8.0%} {errors[precision]:8.1e}",
                flush=True,
            )
    return 0


def cases(rng: np.random.Generator, dense: list[np.ndarray]) -> Iterator[tuple[str, list, int]]:
    """(label, weights, multiply-adds per row)."""
    from bscompile.formats import BlockSparseMatrix, KroneckerSum

    yield "dense", dense, 2 * INNER * OUTER
    for side in (16, 8, 4, 32):
        for density in (0.05, 0.1, 0.2, 0.5):
            pair = []
            for weight in dense:
                live = rng.random((weight.shape[0] // side, weight.shape[1] // side)) < density
                mask = np.kron(live, np.ones((side, side), np.float32))
                pair.append(BlockSparseMatrix.from_dense(weight * mask, (side, side)))
            yield f"blocks {side}x{side} {density:.0%}", pair, sum(w.values.size for w in pair)
    for side, rank in ((8, 1), (8, 4), (16, 2)):
        pair = []
        for n, k in ((OUTER, INNER), (INNER, OUTER)):
            live = rng.random((n // side, k // side)) < 0.1
            a = rng.standard_normal((rank, *live.shape)) * live
            b = rng.standard_normal((rank, side, side)) * 0.03
            pair.append(KroneckerSum(a.astype(np.float32), b.astype(np.float32)))
        macs = sum(min(w.macs_per_row("b_first"), w.macs_per_row("a_first")) for w in pair)
        yield f"factors {side}x{side} r={rank} 10%", pair, macs


def reference(pair: list, x: np.ndarray) -> np.ndarray:
    """The pair in float64."""
    from bscompile.dialect import LinearOp, evaluate

    first, second = LinearOp("first", pair[0], ("relu",)), LinearOp("second", pair[1])
    return evaluate(second, evaluate(first, x))


def ours(
    pair: list, x: np.ndarray, precision: str, machine: object
) -> tuple[Callable[[], np.ndarray], str]:
    """The pair of kernels that the cost model plans, as one call, and what they are."""
    from dataclasses import replace

    import tvm

    from bscompile.dialect import LinearOp
    from bscompile.dialect.precision import PRECISIONS as DTYPES
    from bscompile.dialect.precision import in_precision, kernel_weight, precision_of
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.build import compile_kernel
    from bscompile.targets.planner import plan

    context = replace(machine, hardware=machine.hardware.extended(precision))
    stages, names = [], []
    for op in (LinearOp("first", pair[0], ("relu",)), LinearOp("second", pair[1])):
        dtype = DTYPES[precision]
        choice = plan(op, ROWS, dtype, context)
        op = in_precision(op.with_weight(choice.weight), dtype)
        problem = problem_of(op, ROWS, precision_of(op))
        template = context.target.template(choice.template)
        kernel = template.build(problem, kernel_weight(op), choice.config, context.hardware)
        function = compile_kernel(kernel.prim_func, context.hardware).jit()["kernel"]
        operands = [tvm.runtime.tensor(array) for _, array in kernel.operands]
        output = tvm.runtime.tensor(np.zeros((ROWS, op.shape[0]), np.float32))
        stages.append((function, operands, output))
        short = choice.template.removeprefix("block_sparse_")
        stays = "" if problem.dtype == precision else f" {problem.dtype}"
        names.append(f"{short} {problem.block[0]}x{problem.block[1]}{stays}")
    held = tvm.runtime.tensor(x)

    def run() -> np.ndarray:
        value = held
        for function, operands, output in stages:
            function(value, *operands, output)
            value = output
        return value.numpy()

    return run, names[0] if names[0] == names[1] else ", ".join(names)


if __name__ == "__main__":
    sys.exit(main())
