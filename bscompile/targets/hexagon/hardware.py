"""What a Hexagon DSP is to the compiler: an estimate of one v66 core with HVX of 128 bytes.

Vectors are for integers: v66 computes float32 one number at a time, and so ``vector_bytes`` is
that of a float.
"""

from __future__ import annotations

from typing import Any

from bscompile.errors import TargetError
from bscompile.targets.base import HardwareSpec

CLOCK_GHZ = 1.0


def hardware(variant: str = "", threads: int | None = None) -> HardwareSpec:
    """The machine to compile for.

    Raises:
        TargetError: more threads than the program uses.
    """
    if threads not in (None, 1):
        raise TargetError(f"threads: hexagon programs run in one thread, got {threads}")
    return HardwareSpec(
        name="any Hexagon v66 with HVX (estimate)",
        isa="hvx128",
        features=("hvxv66", "hvx-length128b"),
        cores=1,
        peak_gflops={"float32": 1.0 * CLOCK_GHZ, "int8": 256.0 * CLOCK_GHZ},
        memory_gbps=10.0,
        cache_bytes=(32 << 10, 1 << 20),
        cache_gbps=(16.0, 128.0),  # vectors are read from the second level
        vector_bytes=4,
        launch_seconds=0.0,
        machine="hexagon",
        vector_registers=32,
    )


def llvm_target(hardware: HardwareSpec) -> Any:
    """The tvm.target.Target of its code. Kind llvm: TVM's kind hexagon wants Qualcomm's tools."""
    import tvm

    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": "hexagon",
            "mcpu": "hexagonv66",
            "mattr": ["+hvxv66", "+hvx-length128b"],
        }
    )
