"""The processors that can be compiled for from anywhere: what they are, and how fast.

Nothing is measured here: rates are estimates for a typical member of each family, from its
published widths and clock. They order the candidates; ``tune`` on the device would replace them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bscompile.targets.base import HardwareSpec, KernelTemplate
from bscompile.targets.kernels.block_sparse_outputs import BlockSparseOutputs
from bscompile.targets.kernels.block_sparse_rows import BlockSparseRows
from bscompile.targets.kernels.dense import DenseTemplate
from bscompile.targets.kernels.kronecker import KroneckerTemplate
from bscompile.targets.kernels.narrow import NarrowPairs, NarrowProducts
from bscompile.targets.kernels.scalable import ScalableTemplate
from bscompile.targets.kernels.sme import SmeTemplate

_FLOATS: tuple[KernelTemplate, ...] = (
    DenseTemplate(),
    BlockSparseOutputs(),
    BlockSparseRows(),
    KroneckerTemplate(),
)
_FIXED = (*_FLOATS, NarrowProducts(), NarrowPairs())


@dataclass(frozen=True)
class Processor:
    """One variant of the cpu target that becomes a static executable.

    Attributes:
        spec: What the cost models see.
        target: TVM's target for its code.
        about: For people.
        templates: Kernel templates in order of preference.
    """

    spec: HardwareSpec
    target: Mapping[str, Any]
    about: str
    templates: tuple[KernelTemplate, ...] = _FIXED


_AARCH64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
_RISCV64 = {"kind": "llvm", "mtriple": "riscv64-unknown-linux-gnu", "mabi": "lp64d"}
_RV64GCV = ("+m", "+a", "+f", "+d", "+c", "+v")
_SVE = (
    ScalableTemplate("dense", 4),
    ScalableTemplate("block_sparse", 4),
    KroneckerTemplate(),
    NarrowProducts(),
)
_SME = (SmeTemplate("dense"), SmeTemplate("block_sparse"), *_FIXED)
_NARROW_RVV = NarrowProducts(grouped=2)
_RVV = (
    ScalableTemplate("dense", 2, (4, 2, 1)),
    ScalableTemplate("block_sparse", 2, (4, 2, 1)),
    KroneckerTemplate(),
    _NARROW_RVV,
)
_RVV_256 = (*_FLOATS, _NARROW_RVV)


def _aarch64(name: str, isa: str, features: tuple[str, ...], pipes: int) -> HardwareSpec:
    # ``pipes`` vector multiply-adds of 128 bits per cycle at 2.6 GHz; as many dot products, and
    # as many matrix instructions, which multiply twice as much.
    float32 = 4 * 2 * pipes * 2.6
    per_lane = 8 if "i8mm" in features else 4 if "asimddp" in features else 1
    peaks = {"float32": float32, "int8": per_lane * float32}
    if "bf16" in features:
        peaks["bfloat16"] = 4 * float32
    if "sme" in features:  # one outer product of 16 x 16 a cycle
        peaks["sme"] = 16 * 16 * 2 * 2.6
    return HardwareSpec(
        name=name,
        isa=isa,
        features=features,
        cores=4,
        peak_gflops=peaks,
        memory_gbps=40.0,
        cache_bytes=(64 << 10, 1 << 20, 32 << 20),
        cache_gbps=(80.0, 40.0, 20.0),
        vector_bytes=16,
        launch_seconds=5e-6,
        machine="aarch64",
        vector_registers=32,
    )


def _riscv64(name: str, isa: str, features: tuple[str, ...], vector_bytes: int) -> HardwareSpec:
    # One vector multiply-add per cycle at 1.6 GHz.
    float32 = vector_bytes / 4 * 2 * 1.6
    return HardwareSpec(
        name=name,
        isa=isa,
        features=features,
        cores=4,
        peak_gflops={"float32": float32, "int8": float32},
        memory_gbps=8.0,
        cache_bytes=(32 << 10, 512 << 10),
        cache_gbps=(25.0, 12.0),
        vector_bytes=vector_bytes,
        launch_seconds=1e-5,
        machine="riscv64",
        vector_registers=32,
    )


PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        "aarch64": Processor(
            _aarch64("any AArch64 (Neoverse N1 estimate)", "neon", ("asimd",), 2),
            {**_AARCH64, "mattr": ["+neon"]},
            "64-bit Arm with NEON",
        ),
        "aarch64-dotprod": Processor(
            _aarch64(
                "any AArch64 with dot products (Neoverse N1 estimate)",
                "neon",
                ("asimd", "asimddp"),
                2,
            ),
            {**_AARCH64, "mattr": ["+neon", "+dotprod"]},
            "64-bit Arm with NEON and int8 dot products (Cortex-A76 and newer)",
        ),
        "aarch64-i8mm": Processor(
            _aarch64(
                "any AArch64 with I8MM and BF16 (Neoverse N2 estimate)",
                "neon",
                ("asimd", "asimddp", "i8mm", "bf16"),
                2,
            ),
            {**_AARCH64, "mattr": ["+neon", "+dotprod", "+i8mm", "+bf16"]},
            "64-bit Arm with NEON, mixed-sign dot products and bfloat16 (Armv8.6 and newer)",
        ),
        "aarch64-sve": Processor(
            _aarch64("any AArch64 with SVE (Neoverse V2 estimate)", "sve", ("asimd", "sve"), 4),
            {**_AARCH64, "mattr": ["+neon", "+sve"]},
            "64-bit Arm with SVE of any vector length",
            _SVE,
        ),
        "aarch64-sme": Processor(
            _aarch64(
                "any AArch64 with SME (512-bit estimate)",
                "neon",
                ("asimd", "asimddp", "i8mm", "bf16", "sme"),
                4,
            ),
            {**_AARCH64, "mattr": ["+neon", "+dotprod", "+i8mm", "+bf16", "+sme"]},
            "64-bit Arm with SME, outer products of float32 of any length (Armv9.2, Apple M4)",
            _SME,
        ),
        "riscv64": Processor(
            _riscv64("any RV64GCV with VLEN 256 (SpacemiT X60 estimate)", "rvv256", ("v",), 32),
            {**_RISCV64, "mattr": [*_RV64GCV, "+zvl256b"]},
            "64-bit RISC-V with vectors of at least 256 bits",
            _RVV_256,
        ),
        "riscv64-vla": Processor(
            _riscv64("any RV64GCV (C920 estimate)", "rvv", ("v",), 16),
            {**_RISCV64, "mattr": list(_RV64GCV)},
            "64-bit RISC-V with vectors of any length",
            _RVV,
        ),
    }
)
