"""What a kernel should take: the longest of arithmetic, L2 and memory, plus what nothing hides.

The numbers of HardwareSpec are peaks; the shares of them below are what such kernels are known to
reach on paper. None of them was fitted on a GPU yet (docs/cuda.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from bscompile.dialect.precision import itemsize
from bscompile.targets.base import HardwareSpec, Problem

WGMMA_SHARE = 0.8  # of the tensor cores' peak: what the power lets cuBLAS reach, too
FMA_SHARE = 0.4  # of the CUDA cores' peak, with both operands in shared memory
MEMORY_SHARE = 0.8  # of the memory's bandwidth
STEP_SECONDS = 3e-7  # a step's way from memory to the product when nothing overlaps it
STORE_SECONDS = 1e-7  # that 128 threads take for 16 rows of 64 outputs: some two hundred cycles
KEPT_BACK = 1024  # bytes of shared memory that the system takes for each block


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Attributes:
        blocks: Thread blocks.
        operations: Multiplications and additions of all blocks together.
        rate: Of one processor, operations a second.
        near_bytes: That all blocks read from L2.
        far_bytes: That come from main memory or go there.
        depth: Steps of one block that wait for each other.
    """

    blocks: int
    operations: float
    rate: float
    near_bytes: float
    far_bytes: float
    depth: float


def mma_share(hardware: HardwareSpec) -> float:
    """Of the tensor cores' peak, what mma.sync can draw: of Hopper's, six tenths of wgmma's."""
    return 0.6 * WGMMA_SHARE if hardware.isa.startswith("sm_90") else 0.6


def seconds(hardware: HardwareSpec, work: Work) -> float:
    """Expected time of one launch."""
    waves = -(-work.blocks // hardware.cores)
    compute = work.operations / max(1, work.blocks) * waves / work.rate
    near = work.near_bytes / (hardware.cache_gbps[-1] * hardware.cores * 1e9)
    far = work.far_bytes / (hardware.memory_gbps * MEMORY_SHARE * 1e9)
    return max(compute, near, far) + work.depth * STEP_SECONDS + hardware.launch_seconds


def ends_bytes(problem: Problem) -> float:
    """Bytes of x, y and the epilogue's matrices, each moved once."""
    residuals = problem.epilogue.count("residual")
    outputs = (1 + residuals) * problem.n * itemsize(problem.y_dtype)
    return float(problem.rows * (problem.k * itemsize(problem.x_dtype) + outputs))
