"""Does the cost model put kernels in the right order? Expected against measured time.

Run: python -m benchmarks.cost_model_rank [THREADS]. About forty (layer, template, configuration)
cases from the model families' shapes. One thread by default: short single-threaded kernels have
honest minima even on a busy machine.
"""

from __future__ import annotations

import sys

import numpy as np

from bscompile.targets.cpu.threads import set_threads

LAYERS = [  # rows, inputs, outputs, form, block, rank, density
    (128, 768, 3072, "dense", (1, 1), 0, 1.0),
    (197, 192, 768, "dense", (1, 1), 0, 1.0),
    (1, 768, 3072, "dense", (1, 1), 0, 1.0),
    (128, 768, 3072, "block_sparse", (16, 16), 0, 0.1),
    (128, 768, 3072, "block_sparse", (8, 8), 0, 0.1),
    (128, 3072, 768, "block_sparse", (4, 4), 0, 0.1),
    (128, 768, 768, "block_sparse", (32, 32), 0, 0.3),
    (197, 192, 768, "block_sparse", (4, 8), 0, 0.2),
    (1, 768, 3072, "block_sparse", (16, 16), 0, 0.1),
    (128, 768, 3072, "kronecker", (8, 8), 1, 0.1),
    (128, 3072, 768, "kronecker", (16, 16), 2, 0.1),
    (1, 768, 3072, "kronecker", (8, 8), 1, 0.1),
]
PER_TEMPLATE = 3  # configurations of each: the best, the middle, the worst


def main() -> int:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    set_threads(threads)
    from bscompile.targets import resolve

    context = resolve("cpu", threads)
    expected, measured, best = [], [], []
    print(f"{'layer':44} {'template':22} {'expected':>9} {'measured':>9}  configuration")
    for layer in LAYERS:
        rows, inner, outer, form, block, _, density = layer
        text = f"{rows}x{inner}->{outer} {form} {block[0]}x{block[1]} {density:.0%}"
        within = []
        for template, config, cost, time in measure(layer, context):
            print(f"{text:44} {template:22} {cost * 1e3:9.4f} {time * 1e3:9.4f}  {dict(config)}")
            within.append((cost, time))
        expected += [cost for cost, _ in within]
        measured += [time for _, time in within]
        best.append(min(within)[1] / min(time for _, time in within))
    print(f"{len(expected)} cases, rank correlation {rank_correlation(expected, measured):.3f}")
    print(f"first choice against the best: median {np.median(best):.2f}, worst {max(best):.2f}")
    return 0


def measure(layer, context):
    """(template, config, expected, measured seconds) of some ways to run a layer."""
    import tvm

    from bscompile.dialect import LinearOp
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.hardware import llvm_target

    rows, inner, outer, *_ = layer
    rng = np.random.default_rng(0)
    op = LinearOp("layer", weight_of(layer, rng))
    problem = problem_of(op, rows, np.dtype(np.float32))
    x = tvm.runtime.tensor(rng.standard_normal((rows, inner)).astype(np.float32))
    y = tvm.runtime.tensor(np.zeros((rows, outer), np.float32))
    for template in context.target.templates:
        space = template.space(problem, context.hardware)
        for index in sorted(
            {round(i * (len(space) - 1) / (PER_TEMPLATE - 1)) for i in range(PER_TEMPLATE)}
        ):
            if not space:
                break
            config = space[index]
            kernel = template.build(problem, op.weight, config, context.hardware)
            name = kernel.prim_func.attrs["global_symbol"]
            target = llvm_target(context.hardware)
            module = tvm.compile(tvm.IRModule({name: kernel.prim_func}), target=target).jit()
            operands = [tvm.runtime.tensor(array) for _, array in kernel.operands]
            timer = module.time_evaluator(name, tvm.cpu(), number=1, repeat=60)
            time = min(timer(x, *operands, y).results)
            yield template.name, config, template.cost(problem, config, context.hardware), time


def weight_of(layer, rng):
    from bscompile.formats import BlockSparseMatrix, KroneckerSum

    _, inner, outer, form, (bh, bw), rank, density = layer
    live = rng.random((outer // bh, inner // bw)) < density
    if form == "kronecker":
        a = rng.standard_normal((rank, *live.shape)) * live
        b = rng.standard_normal((rank, bh, bw))
        return KroneckerSum(a.astype(np.float32), b.astype(np.float32))
    dense = rng.standard_normal((outer, inner)).astype(np.float32)
    if form == "dense":
        return dense
    mask = np.kron(live, np.ones((bh, bw), np.float32))
    return BlockSparseMatrix.from_dense(dense * mask, (bh, bw))


def rank_correlation(first, second) -> float:
    """Spearman's rho."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
