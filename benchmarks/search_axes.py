"""What are unrolling and asking ahead worth? Kernels that differ in nothing else, in turns.

Run: python -m benchmarks.search_axes [unroll | ahead] [THREADS]. One thread, microseconds. How far
loops are unrolled is fixed (the first column is what kernels do; fp32, minima); whether weights
that come from memory are asked for ahead is searched, because it pays or costs by block (fp32 and
bf16, medians). Weights lie as an artifact's do; those that come from memory are more than three
times what the last cache holds.
"""

from __future__ import annotations

import statistics
import sys

import ml_dtypes
import numpy as np

from benchmarks.batch_one import placed
from bscompile.targets.cpu.threads import set_threads

ROUNDS, CALLS = 12, 15
FLOAT = np.dtype(np.float32)


def main() -> int:
    """Print what each value of the axis costs."""
    threads = int(next((word for word in sys.argv[1:] if word.isdigit()), 1))
    set_threads(threads)
    from bscompile.targets import resolve
    from bscompile.tuning.estimate import random_weight

    context = resolve("cpu", threads)
    wanted = [word for word in sys.argv[1:] if not word.isdigit()] or ["unroll", "ahead"]
    if "unroll" in wanted:
        unroll(context, random_weight)
    if "ahead" in wanted:
        ahead(context, random_weight)
    return 0


def unroll(context, random_weight) -> None:
    """Each kernel generator's constant, set to other values while kernels are made."""
    from bscompile.targets.kernels.code import block_sparse_outputs, block_sparse_rows, dense

    print("unrolled inputs: microseconds")
    for n, k, m in ((3072, 768, 128), (768, 3072, 128), (768, 768, 8), (3072, 768, 1)):
        weight = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
        show("dense", weight, m, context, (dense, "UNROLL"), (8, 4, 16, 32))
    for block in ((16, 16), (16, 32), (32, 32), (8, 32)):
        weight = random_weight((3072, 768), block, 0.1, 0)
        for m in (128, 1):
            setting = (block_sparse_outputs, "UNROLL")
            show("block_sparse_outputs", weight, m, context, setting, (16, 4, 8, 32))
    for block in ((4, 16), (4, 32), (8, 8), (8, 16), (16, 16)):
        weight = random_weight((3072, 768), block, 0.1, 0)
        setting = (block_sparse_rows, "_UNROLL")
        show("block_sparse_rows", weight, 128, context, setting, (4, 2, 8, 16))


def show(name, weight, m, context, setting, values) -> None:
    """One line: the cost model's choice with the constant at each value."""
    module, constant = setting
    template, problem = prepared(name, weight, m, FLOAT, context)
    config = template.space(problem, context.hardware)[0]
    before = getattr(module, constant)
    kernels = []
    for value in values:
        setattr(module, constant, value)
        kernels.append(runnable(template, problem, weight, config, context))
    setattr(module, constant, before)
    tell(name, weight, m, zip(values, in_turns(kernels), strict=True))


def ahead(context, random_weight) -> None:
    """Every value of the configuration's ``ahead``."""
    print("KB ahead: microseconds")
    for n, k, m in ((8192, 8192, 1), (8192, 8192, 4), (4096, 16384, 1)):
        weight = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
        distances("dense", weight, m, context)
    for block in ((16, 16), (8, 8), (4, 4)):
        for n, k in ((32768, 8192), (131072, 2048)):
            weight = random_weight((n, k), block, 0.2, 0)
            distances("block_sparse_outputs", weight, 1, context)


def distances(name, weight, m, context) -> None:
    """Print the time of each distance, all else as the cost model chooses it."""
    for dtype in map(np.dtype, (np.float32, ml_dtypes.bfloat16)):
        template, problem = prepared(name, weight, m, dtype, context)
        space = template.space(problem, context.hardware)
        same = [c for c in space if {**c, "ahead": 0} == {**space[0], "ahead": 0}]
        kernels = [runnable(template, problem, weight, config, context) for config in same]
        times = [[] for _ in kernels]
        for _ in range(CALLS):
            for kernel, seconds in zip(kernels, times, strict=True):
                seconds += kernel(1, 1).results
        medians = map(statistics.median, times)
        label = f"{name.removeprefix('block_sparse_')} {dtype.name}"
        tell(label, weight, m, zip([config["ahead"] for config in same], medians, strict=True))


def prepared(name, weight, m, dtype, context):
    from bscompile.dialect import LinearOp
    from bscompile.targets.base import problem_of

    return context.target.template(name), problem_of(LinearOp("layer", weight), m, dtype)


def runnable(template, problem, weight, config, context):
    """A function of (number, repeat) that times the kernel."""
    import tvm

    kernel = template.build(problem, weight, config, context.hardware)
    module = context.target.compile_kernel(kernel.prim_func, context.hardware).jit()
    x = np.random.default_rng(1).standard_normal((problem.m, problem.k)).astype(np.float32)
    y = np.zeros((problem.m, problem.n), np.float32)
    arrays = [placed(a) for a in (x, *(a for _, a in kernel.operands), y)]
    return lambda number, repeat: module.time_evaluator(
        "kernel", tvm.cpu(), number=number, repeat=repeat
    )(*arrays)


def in_turns(kernels) -> list[float]:
    best = [float("inf")] * len(kernels)
    for _ in range(ROUNDS):
        for which, kernel in enumerate(kernels):
            best[which] = min(best[which], *kernel(2, 3).results)
    return best


def tell(name, weight, m, times) -> None:
    shape = f"{weight.shape[0]}x{weight.shape[1]}"
    block = ""
    if not isinstance(weight, np.ndarray):
        block = f" {weight.block[0]}x{weight.block[1]} {weight.density:.0%}"
    cells = "  ".join(f"{value:>2}: {seconds * 1e6:8.1f}" for value, seconds in times)
    print(f"{name:21} {shape + block:20} m={m:<4} {cells}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
