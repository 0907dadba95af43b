"""What are unrolling and asking ahead worth? Kernels that differ in nothing else, in turns.

Run: python -m benchmarks.search_axes [unroll | ahead]. One thread, fp32, microseconds, minima. How
far loops are unrolled is fixed (the first column is what kernels do); how far weights that come
from memory are asked for ahead is searched, because it pays or costs by shape and block.
"""

from __future__ import annotations

import sys

import numpy as np

from bscompile.targets.cpu.threads import set_threads

THREADS, ROUNDS = 1, 12
FLOAT = np.dtype(np.float32)


def main() -> int:
    set_threads(THREADS)
    from bscompile.targets import resolve
    from bscompile.tuning.estimate import random_weight

    context = resolve("cpu", THREADS)
    wanted = sys.argv[1:] or ["unroll", "ahead"]
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
    template, problem = prepared(name, weight, m, context)
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
    for n, k, m in ((4096, 4096, 1), (8192, 4096, 4), (3072, 3072, 1)):
        weight = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
        distances("dense", weight, m, context)
    for block in ((16, 16), (8, 8), (4, 4)):
        distances("block_sparse_outputs", random_weight((16384, 8192), block, 0.1, 0), 1, context)


def distances(name, weight, m, context) -> None:
    template, problem = prepared(name, weight, m, context)
    space = template.space(problem, context.hardware)
    same = [c for c in space if {**c, "ahead": 0} == {**space[0], "ahead": 0}]
    kernels = [runnable(template, problem, weight, config, context) for config in same]
    times = in_turns(kernels)
    tell(name, weight, m, zip([config["ahead"] for config in same], times, strict=True))


def prepared(name, weight, m, context):
    from bscompile.dialect import LinearOp
    from bscompile.targets.base import problem_of

    return context.target.template(name), problem_of(LinearOp("layer", weight), m, FLOAT)


def runnable(template, problem, weight, config, context):
    """A function of (number, repeat) that times the kernel."""
    import tvm

    kernel = template.build(problem, weight, config, context.hardware)
    module = context.target.compile_kernel(kernel.prim_func, context.hardware).jit()
    x = np.random.default_rng(1).standard_normal((problem.m, problem.k)).astype(np.float32)
    y = np.zeros((problem.m, problem.n), np.float32)
    arrays = [tvm.runtime.tensor(a) for a in (x, *(a for _, a in kernel.operands), y)]
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
    block = "" if isinstance(weight, np.ndarray) else f" {weight.block[0]}x{weight.block[1]} 10%"
    cells = "  ".join(f"{value:>2}: {seconds * 1e6:8.1f}" for value, seconds in times)
    print(f"{name:21} {shape + block:20} m={m:<4} {cells}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
