"""The processors that can be compiled for from anywhere: what they are, and how fast.

Nothing is measured here: rates are estimates for a typical member of each family, from its
published widths and clock. They order the candidates; ``tune`` on the device would replace them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bscompile.targets.base import HardwareSpec


@dataclass(frozen=True)
class Processor:
    """One variant of the cpu target that becomes a static executable.

    Attributes:
        spec: What the cost models see.
        target: TVM's target for its code.
        about: For people.
    """

    spec: HardwareSpec
    target: Mapping[str, Any]
    about: str


_AARCH64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
_RISCV64 = {"kind": "llvm", "mtriple": "riscv64-unknown-linux-gnu", "mabi": "lp64d"}
_RV64GCV = ("+m", "+a", "+f", "+d", "+c", "+v")


def _neoverse(name: str, isa: str, features: tuple[str, ...], vector_bytes: int) -> HardwareSpec:
    # Two vector multiply-adds per cycle at 2.6 GHz, as a Neoverse N1 (NEON) or V1 (SVE) has.
    return HardwareSpec(
        name=name,
        isa=isa,
        features=features,
        cores=4,
        peak_gflops={"float32": vector_bytes / 4 * 2 * 2 * 2.6},
        memory_gbps=40.0,
        cache_bytes=(64 << 10, 1 << 20, 32 << 20),
        cache_gbps=(5.2 * vector_bytes, 40.0, 20.0),
        vector_bytes=vector_bytes,
        launch_seconds=5e-6,
        machine="aarch64",
        vector_registers=32,
    )


def _riscv(name: str, isa: str, features: tuple[str, ...]) -> HardwareSpec:
    # One vector multiply-add of 256 bits per cycle at 1.6 GHz, as a SpacemiT X60 has.
    return HardwareSpec(
        name=name,
        isa=isa,
        features=features,
        cores=4,
        peak_gflops={"float32": 8 * 2 * 1.6},
        memory_gbps=8.0,
        cache_bytes=(32 << 10, 512 << 10),
        cache_gbps=(25.0, 12.0),
        vector_bytes=32,
        launch_seconds=1e-5,
        machine="riscv64",
        vector_registers=32,
    )


PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        "aarch64": Processor(
            _neoverse("any AArch64 (Neoverse N1 estimate)", "neon", ("asimd",), 16),
            {**_AARCH64, "mattr": ["+neon"]},
            "64-bit Arm with NEON",
        ),
        "riscv64": Processor(
            _riscv("any RV64GCV with VLEN 256 (SpacemiT X60 estimate)", "rvv256", ("v", "zvl256b")),
            {**_RISCV64, "mattr": [*_RV64GCV, "+zvl256b"]},
            "64-bit RISC-V with vectors of at least 256 bits",
        ),
    }
)
