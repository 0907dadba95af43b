"""How many instructions do layers take on processors that are only emulated here?

Run: python -m benchmarks.instruction_counts. One layer of 768 inputs and 768 outputs, 32 rows, one
thread: dense, and block-sparse with 10 % of its blocks, each by the kernel that the target's cost
model takes. qemu counts instructions (packets of several on Hexagon); what one call takes is the
difference between a run of three calls and one of one. A count is no time: it says nothing about
caches or how many instructions a core starts at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from unittest import mock

import numpy as np

ROWS, WIDTH, DENSITY = 32, 768, 0.1
TARGETS = [  # target, precision, processor to emulate
    ("cpu:aarch64", "float32", "max"),
    ("cpu:aarch64-dotprod", "int8", "max"),
    ("cpu:aarch64-i8mm", "int8", "max"),
    ("cpu:aarch64-i8mm", "bfloat16", "max"),
    ("cpu:aarch64-sve", "float32", "max,sve-default-vector-length=16"),
    ("cpu:aarch64-sve", "float32", "max,sve-default-vector-length=32"),
    ("cpu:aarch64-sve", "float32", "max,sve-default-vector-length=64"),
    ("cpu:aarch64-sme", "float32", "max,sme-default-vector-length=16"),
    ("cpu:aarch64-sme", "float32", "max,sme-default-vector-length=64"),
    ("cpu:riscv64", "float32", "rv64,v=true,vlen=256,vext_spec=v1.0"),
    ("cpu:riscv64-vla", "float32", "rv64,v=true,vlen=128,vext_spec=v1.0"),
    ("cpu:riscv64-vla", "float32", "rv64,v=true,vlen=256,vext_spec=v1.0"),
    ("hexagon", "int8", ""),
]


def main() -> int:
    print(f"{ROWS} rows, {WIDTH} -> {WIDTH}, {DENSITY:.0%} of the blocks, thousands per call")
    print(f"{'target':20} {'dtype':9} {'emulated':36} {'dense':>9} ", end="")
    print(f"{'16x16':>9} {'ratio':>6} {'32x32':>9} {'ratio':>6}")
    for target, precision, processor in TARGETS:
        dense, *sparse = (count(target, precision, block, processor) for block in (None, 16, 32))
        row = f"{target:20} {precision:9} {processor:36} {dense / 1e3:9.0f} "
        row += " ".join(f"{n / 1e3:9.0f} {dense / n:6.2f}" for n in sparse)
        print(row, flush=True)
    return 0


def count(target: str, precision: str, block: int | None, processor: str) -> int:
    """Instructions of one call of the layer's kernel."""
    context, kernel, x, y_dtype = layer(target, precision, block)
    assert context.target.compile_kernel is not None
    counted = context.target.compile_kernel(kernel.prim_func, context.hardware)
    arrays = [x, *(np.ascontiguousarray(array) for _, array in kernel.operands)]
    with mock.patch.dict(os.environ, {"QEMU_CPU": processor} if processor else {}):
        _, seconds = counted.count(arrays, np.zeros((ROWS, WIDTH), y_dtype))
    return round(seconds * 1e9)


def layer(target: str, precision: str, block: int | None):
    """(context, kernel, x, dtype of y) of the cheapest kernel by the target's cost model."""
    from bscompile.dialect import LinearOp
    from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
    from bscompile.dialect.quantization import Quantization
    from bscompile.formats import BlockSparseMatrix
    from bscompile.targets import resolve
    from bscompile.targets.base import problem_of

    rng = np.random.default_rng(0)
    context = resolve(target, 1)
    weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    x = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    if block is not None:
        live = rng.random((WIDTH // block, WIDTH // block)) < DENSITY
        weight *= np.kron(live, np.ones((block, block), np.float32))
        matrix = BlockSparseMatrix.from_dense(weight, (block, block))
    op = LinearOp("layer", weight if block is None else matrix, ())
    op = in_precision(op, PRECISIONS[precision])
    if precision == "int8":  # 8 bits in and out, as between the layers of a quantised model
        scale = op.quantization.scale
        ends = Quantization(scale, "static", "uint8", "uint8", 0.03, 128, "uint8", 0.5, 128)
        op, x = replace(op, quantization=ends), rng.integers(0, 256, x.shape).astype(np.uint8)
    problem = problem_of(op, ROWS, PRECISIONS[precision])
    hardware = context.hardware
    choices = [
        (template.cost(problem, space[0], hardware), template.name, template, space[0])
        for template in context.target.templates
        if (space := template.space(problem, hardware))
    ]
    _, _, template, config = min(choices, key=lambda choice: choice[:2])
    kernel = template.build(problem, kernel_weight(op), config, hardware)
    return context, kernel, x, problem.y_dtype


if __name__ == "__main__":
    sys.exit(main())
