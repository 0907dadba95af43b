"""What the fused Triton kernels take of a GPU, compiled for one that need not be there.

Registers and bytes spilled of a thread, shared memory of a block, as the assembler reports them,
for the tiles that ``form="fused"`` chooses. Speed is another matter: benchmarks/training_step.py
with --device cuda measures it where there is a GPU.

    python -m benchmarks.fused_kernels [--capability 90]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bscompile.models.fused import launch_options

KERNELS = ("product", "terms_gradient", "input_and_pattern_gradients")
_FLOAT = {"dc", "db"}  # sums, float32 whatever x is


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers and spilled bytes a thread, shared memory a block."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def resources(
    kernel: str, dtype: str, terms: tuple[int, int, int], block: tuple[int, int], capability: int
) -> Resources:
    """Compile a kernel for factors C of shape ``terms`` and read the assembler's report."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module("bscompile.models.fused_kernels"), kernel)
    options = launch_options(kernel, 4 if dtype == "fp32" else 2, terms, block)
    options["WITH_DX"] = True
    signature, constants = {}, {}
    for parameter in function.params:
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", options[name]
        elif len(name) <= 2 and name not in ("n1", "m1"):
            signature[name] = "*fp32" if name in _FLOAT else f"*{dtype}"
        else:
            signature[name] = "i32"
    compiled = triton.compile(
        ASTSource(function, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={name: options[name] for name in ("num_warps", "num_stages")},
    )
    return Resources(*_report(compiled.asm["cubin"]), compiled.metadata.shared)


def _report(binary: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return found["REG"], found["STACK"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, help="80 is A100, 90 is H100")
    capability = parser.parse_args().capability
    try:
        import triton
    except ModuleNotFoundError:
        print("triton is not installed: nothing to compile")
        return
    print(f"width 1024, sm_{capability}, triton {triton.__version__}")
    print(f"{'kernel':30s}{'dtype':>6s}{'block':>7s}{'rank':>5s} registers  spilled B  shared KiB")
    for kernel in KERNELS:
        for dtype in ("bf16", "fp32"):
            for side, rank in ((4, 1), (8, 1), (8, 2), (16, 4)):
                count = 1024 // side
                used = resources(kernel, dtype, (rank, count, count), (side, side), capability)
                print(
                    f"{kernel:30s}{dtype:>6s}{f'{side}x{side}':>7s}{rank:5d}{used.registers:10d}"
                    f"{used.spilled_bytes:11d}{used.shared_bytes / 1024:12.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
