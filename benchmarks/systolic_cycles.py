"""Cycles of int8 layers on the simulated systolic array: block-sparse against dense.

Run: python -m benchmarks.systolic_cycles. Everything is simulated and checked against numpy; cycles
are the RTL's own count and do not depend on the machine that simulates. Two bounds:

    bound   live blocks x rows of x: every multiplier busy in every cycle
    port    live blocks x max(rows, side): a block's weights enter a row per cycle, so that fewer
            rows of x than the array has sides leave it waiting for weights
"""

from __future__ import annotations

import sys

import numpy as np

LAYER = (768, 768)  # out, in
DENSITY = 0.1
CASES = [  # array, trained block, rows of x
    *((16, 16, rows) for rows in (128, 16, 1)),
    *((16, 8, rows) for rows in (128, 1)),
    *((16, 32, rows) for rows in (128,)),
    *((8, 8, rows) for rows in (128, 1)),
    *((8, 16, rows) for rows in (128,)),
    *((32, 32, rows) for rows in (128, 1)),
    *((32, 16, rows) for rows in (128,)),
]


def main() -> int:
    print(f"layer {LAYER[1]} -> {LAYER[0]}, {DENSITY:.0%} of the trained blocks live, int8")
    head = ("array", "trained", "rows", "runs in", "live", "dense", "sparse", "ratio")
    print(("{:>9}" * 11).format(*head, "of bound", "of port", "expected"))
    for array, block, rows in CASES:
        case(array, block, rows)
    return 0


def case(array: int, block: int, rows: int) -> None:
    """Simulate a layer both ways and print a line."""
    from bscompile.dialect import LinearOp
    from bscompile.dialect.precision import in_precision
    from bscompile.formats import BlockSparseMatrix
    from bscompile.targets import resolve
    from bscompile.targets.planner import plan

    rng = np.random.default_rng(0)
    live = rng.random((LAYER[0] // block, LAYER[1] // block)) < DENSITY
    live[np.arange(len(live)), rng.integers(live.shape[1], size=len(live))] = True
    weight = rng.standard_normal(LAYER) * np.kron(live, np.ones((block, block)))
    sparse = BlockSparseMatrix.from_dense(weight.astype(np.float32), (block, block))
    context = resolve(f"systolic:{array}", 1)
    choice = plan(LinearOp("layer", sparse), rows, np.dtype(np.int8), context)
    op = in_precision(LinearOp("layer", choice.weight), np.dtype(np.int8))
    spent = simulate(op, rows, context)
    dense = op.weight if isinstance(op.weight, np.ndarray) else op.weight.to_dense()
    whole = simulate(op.with_weight(dense), rows, context)
    merged = BlockSparseMatrix.from_dense(dense, (array, array))
    bound, port = merged.nnzb * rows, merged.nnzb * max(rows, array)
    runs = "dense" if op.weight is dense else "{}x{}".format(*op.weight.block)
    cells = (array, f"{block}x{block}", rows, runs, f"{merged.density:.0%}", whole, spent)
    shares = (f"{whole / spent:.2f}", f"{bound / spent:.1%}", f"{port / spent:.1%}")
    print(("{:>9}" * 11).format(*cells, *shares, round(choice.seconds * 1e9)), flush=True)


def simulate(op, rows, context) -> int:
    """Cycles of the layer; its result is checked."""
    import tvm

    from bscompile.devices import systolic as simulator
    from bscompile.dialect import evaluate
    from bscompile.dialect.precision import kernel_weight
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.hardware import llvm_target

    spec = context.hardware
    problem = problem_of(op, rows, np.dtype(np.int8))
    (template,) = (t for t in context.target.templates if t.space(problem, spec))
    (config,) = template.space(problem, spec)
    kernel = template.build(problem, kernel_weight(op), config, spec)
    simulator.open_driver(spec.size)
    module = tvm.IRModule({"layer": kernel.prim_func.with_attr("global_symbol", "layer")})
    layer = tvm.compile(module, target=llvm_target(spec)).jit()["layer"]
    x = np.random.default_rng(1).standard_normal((rows, op.shape[1])).astype(np.float32)
    y = tvm.runtime.tensor(np.full((rows, op.shape[0]), np.nan, np.float32))
    before = simulator.cycles(spec.size)
    layer(*map(tvm.runtime.tensor, (x, *(array for _, array in kernel.operands))), y)
    np.testing.assert_allclose(y.numpy(), evaluate(op, x), rtol=1e-4, atol=1e-4)
    return simulator.cycles(spec.size) - before


if __name__ == "__main__":
    sys.exit(main())
