"""One row of x: how near the kernels come to reading their weights at the memory's speed.

Run: python -m benchmarks.batch_one. Layers whose live weights exceed the caches, fp32, bf16 and
int8, planned by the cost model, one and two threads. Each kernel takes turns with a plain sum over
an array that is larger than the caches and drives its weights out of them, by as many threads; «of
memory» is live weight bytes over the kernel's time, over the bytes per second of that sum, medians
of both. The goal is 80 %.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bscompile.artifact.weights import empty_aligned
from bscompile.targets.cpu.threads import set_threads

LAYERS = {"11008x4096": (11008, 4096), "28672x8192": (28672, 8192)}
DENSITIES = (0.1, 0.2, 0.5)
SUMMED = 256 << 20  # bytes
TURNS = 25


def main() -> int:
    """Print a row for each layer and number of threads."""
    if len(sys.argv) == 1:  # the number of threads is fixed once a process has started its pool
        for threads in (1, 2):
            subprocess.run([sys.executable, "-m", "benchmarks.batch_one", str(threads)], check=True)
        return 0
    threads = int(sys.argv[1])
    set_threads(threads)
    from bscompile.targets import resolve

    context = resolve("cpu", threads, 1)
    read = memory(context)
    print(f"{context.hardware.name}, {threads} threads")
    for label, weight, dtype in cases():
        run, size, name = kernel(weight, dtype, context)
        own, sums = [], []
        for _ in range(TURNS):
            sums.append(SUMMED / read())
            own.append(size / run())
        speed, bound = statistics.median(own), statistics.median(sums)
        print(
            f"{label:28} {name:28} {size / speed * 1e3:8.3f} ms {speed / 1e9:6.1f} GB/s"
            f"  memory {bound / 1e9:5.1f}  of memory {speed / bound:5.0%}",
            flush=True,
        )
    return 0


def cases():
    """(label, weight, dtype)."""
    from bscompile.formats import BlockSparseMatrix

    rng = np.random.default_rng(0)
    for dtype in ("float32", "bfloat16", "int8"):
        shape = LAYERS["11008x4096"]
        yield f"11008x4096 dense {dtype}", rng.standard_normal(shape, np.float32), dtype
    for side in (16, 8, 4):
        for density in DENSITIES:
            n, k = LAYERS["28672x8192"]
            live = rng.random((n // side, k // side)) < density
            values = rng.standard_normal((int(live.sum()), side, side), np.float32)
            indptr = np.concatenate([[0], np.cumsum(live.sum(axis=1))]).astype(np.int32)
            indices = np.nonzero(live)[1].astype(np.int32)
            weight = BlockSparseMatrix(values, indices, indptr, (n, k))
            yield f"28672x8192 {side}x{side} {density:.0%} float32", weight, "float32"
            if (side, density) in ((16, 0.5), (8, 0.1), (4, 0.1)):
                yield f"28672x8192 {side}x{side} {density:.0%} bfloat16", weight, "bfloat16"


def kernel(weight, dtype: str, context) -> tuple[Callable[[], float], int, str]:
    """(its seconds when called, live weight bytes, what runs)."""
    from bscompile.dialect import LinearOp
    from bscompile.dialect.precision import PRECISIONS, kernel_weight
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.build import compile_kernel
    from bscompile.targets.planner import plan

    hardware = context.hardware.extended(dtype)
    numbers = np.dtype(PRECISIONS[dtype])
    op = LinearOp("layer", weight)
    choice = plan(op, 1, numbers, replace(context, hardware=hardware))
    op = op.with_weight(choice.weight)
    problem = problem_of(op, 1, numbers)
    template = context.target.template(choice.template)
    built = template.build(problem, kernel_weight(op), choice.config, hardware)
    function = compile_kernel(built.prim_func, hardware).jit()
    arrays = [np.ones((1, problem.k), np.float32), *(array for _, array in built.operands)]
    arguments = [placed(a) for a in (*arrays, np.zeros((1, problem.n), np.float32))]
    count = problem.nnzb * problem.block[0] * problem.block[1]
    block = "x".join(map(str, problem.block))
    name = f"{choice.template} {block}"
    return once(function["kernel"], arguments), count * numbers.itemsize, name


def once(function: Callable[..., None], arguments: list[object]) -> Callable[[], float]:
    """The seconds of one call, when called: none to warm up, which would leave things in caches."""

    def run() -> float:
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start

    return run


def placed(array: np.ndarray) -> object:
    """The array as the runtime keeps weights: in numpy's memory, which has huge pages."""
    import tvm

    aligned = empty_aligned(array.shape, array.dtype)
    aligned[...] = array
    return tvm.runtime.from_dlpack(aligned)


def memory(context) -> Callable[[], float]:
    """Seconds of summing SUMMED bytes, when called."""
    import tvm

    from bscompile.targets.cpu import probes
    from bscompile.targets.cpu.hardware import llvm_target

    function = probes.read_all(context.hardware.vector_bytes // 4)
    module = tvm.IRModule({"read_all": function})
    compiled = tvm.compile(module, target=llvm_target(context.hardware)).jit()
    data = placed(np.ones(SUMMED // 4, np.float32))
    out = tvm.runtime.tensor(np.zeros(1024, np.float32))
    return once(compiled["read_all"], [data, out])


if __name__ == "__main__":
    sys.exit(main())
