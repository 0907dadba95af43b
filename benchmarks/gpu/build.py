"""Every kernel that will be timed, built without a GPU: host code, machine code, places.

build/gpu/kernels.json      what there is: template, configuration, file names
build/gpu/<kernel>.so       host code;  <source hash>.fatbin  what runs on the device
build/gpu/<case>-<cut>.npz  what of a case's weight goes where, for each way to cut it
build/gpu/rt, whl           TVM's runtime libraries, wheels of tvm_ffi
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cases import DTYPE, Case, all_cases
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import HardwareSpec, KernelTemplate, Problem
from bscompile.targets.cuda.build import compile_alone, cuda_source
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.bands import BAND, pack_bands
from bscompile.targets.cuda.kernels.packing import Operands, cut_rows, pack_steps
from bscompile.targets.cuda.kernels.steps import FewRows, TensorCores
from bscompile.targets.cuda.kernels.wgmma import Wgmma

#: Rows of x -> templates, each with how many of its configurations, best by cost first.
_PER_ROWS: dict[int, tuple[tuple[Callable[[str], KernelTemplate], int], ...]] = {
    1: ((FewRows, 1),),
    16: ((TensorCores, 2), (Wgmma, 1)),
    256: ((TensorCores, 1), (Wgmma, 2)),
    4096: ((TensorCores, 1), (Wgmma, 3)),
}

RUNTIME = ("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_runtime_cuda.so")
PYTHONS = ("3.12",)  # of machines with GPUs
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")

Compile = Callable[[str, str], bytes]  # (source, architecture) -> code


def build(folder: Path, arch: str, compile_code: Compile, small: bool = False) -> int:
    """Write everything; returns the number of kernels."""
    machine = hardware(arch)
    folder.mkdir(parents=True, exist_ok=True)
    started, kernels, cases = time.perf_counter(), {}, []
    for case in all_cases(small):
        uses = []
        for problem, template, config in _plans(case, machine, small):
            cut = "".join(f"{key[0]}{config[key]}" for key in _CUTS if key in config)
            places = folder / f"{case.name}-{cut}.npz"
            if not places.exists():
                _write_places(places, case, problem, template, config)
            spelled = "-".join(f"{key[0]}{value}" for key, value in sorted(config.items()))
            name = f"{template.name}-{case.n}x{case.k}-{spelled}"
            if name not in kernels:
                kernels[name] = _write_kernel(
                    folder, name, problem, template, config, machine, compile_code
                )
                print(f"{time.perf_counter() - started:6.0f} s  {name}", flush=True)
            uses.append({"kernel": name, "places": places.name})
        cases.append({**asdict(case), "uses": uses})
    listed = {"arch": arch, "dtype": DTYPE, "kernels": kernels, "cases": cases, "small": small}
    (folder / "kernels.json").write_text(json.dumps(listed, indent=1))
    return len(kernels)


def _plans(
    case: Case, machine: HardwareSpec, small: bool
) -> list[tuple[Problem, KernelTemplate, dict[str, Any]]]:
    """The configurations worth timing for a case, each once."""
    found: dict[str, tuple[Problem, KernelTemplate, dict[str, Any]]] = {}
    block = (case.block, case.block) if case.form == "block_sparse" else (1, 1)
    live = int(case.mask().sum()) * case.block**2 // (block[0] * block[1])
    for rows, templates in _PER_ROWS.items():
        problem = Problem(
            *(case.form, None, case.n, case.k, block, live, 0, DTYPE, ("bias", "relu")),
            typical_m=rows,
            x_dtype=DTYPE,
            y_dtype=DTYPE,
        )
        for kind, count in templates:
            template = kind(case.form)
            for config in template.space(problem, machine)[: 1 if small else count]:
                found.setdefault(
                    f"{template.name} {sorted(config.items())}", (problem, template, dict(config))
                )
    return list(found.values())


_CUTS = ("tile", "bands", "group", "chunk")  # what of a configuration decides how W is packed


def _write_places(
    path: Path, case: Case, problem: Problem, template: KernelTemplate, config: dict[str, Any]
) -> None:
    """The operands, with the places in W where the numbers of ``values`` come from.

    A run of ``run`` numbers lies side by side in W, too; each is named by the first one's place,
    in runs, and -1 where it is padding. The names are written as differences to the row above and
    to the left, which are nearly all the same.
    """
    (_, values), *others = _pack(case, problem, template, config)
    run = math.gcd(int(config["group"]), 8)
    first = values[..., ::run].astype(np.int32) - 1
    names = np.where(first < 0, -1, first // run).astype(np.int32)
    zero = np.int32(0)
    np.savez_compressed(
        path,
        run=run,
        names=np.diff(np.diff(names, axis=-2, prepend=zero), axis=-1, prepend=zero),
        **{f"other{number}": array for number, (_, array) in enumerate(others)},
    )


def _pack(case: Case, problem: Problem, template: Any, config: dict[str, Any]) -> Operands:
    """As the template packs the case's weight, with 1 + its place in W for each number."""
    group, wgmma = int(config["group"]), isinstance(template, Wgmma)
    rows = BAND if wgmma else int(config["tile"])
    place = np.arange(1, case.n * case.k + 1, dtype=np.int32).reshape(case.n, case.k)
    live = np.kron(case.mask(), np.ones((case.block, case.block), bool))
    tiles = BlockSparseMatrix.from_dense(live.astype(np.int8), (rows, group))
    whole = BlockSparseMatrix(  # also what is zero in a tile has a place
        np.ones_like(tiles.values), tiles.indices, tiles.indptr, tiles.shape
    )
    weight: Any = whole.to_dense() * place
    if case.form == "block_sparse":
        weight = BlockSparseMatrix.from_dense(weight, (rows, group))
    if wgmma:
        return pack_bands(weight, int(config["bands"]), group, "int32")
    steps = pack_steps(weight, template.layout(problem, config), "int32")
    return cut_rows(steps, int(config["chunk"])) if "chunk" in config else steps


def _write_kernel(
    folder: Path,
    name: str,
    problem: Problem,
    template: KernelTemplate,
    config: dict[str, Any],
    machine: HardwareSpec,
    compile_code: Compile,
) -> dict[str, Any]:
    # The first axes are symbolic, so a kernel serves every weight that is cut the same way.
    zeros: Any = np.zeros((problem.n, problem.k), np.float32)
    if problem.form == "block_sparse":
        zeros = BlockSparseMatrix.from_dense(zeros, problem.block)
    kernel = template.build(problem, zeros, config, machine)
    executable = compile_alone(kernel.prim_func, machine)
    source = cuda_source(executable)
    executable.export_library(str(folder / f"{name}.so"))
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    (folder / f"{digest}.fatbin").write_bytes(compile_code(source, machine.isa))
    return {
        "template": template.name,
        "config": config,
        "library": f"{name}.so",
        "code": f"{digest}.fatbin",
        "source": digest,
    }


def copy_runtime(folder: Path, wheels: bool) -> None:
    """What runs there: libraries of TVM's, and wheels of tvm_ffi for the usual Pythons."""
    from importlib.metadata import version

    package = importlib.util.find_spec("tvm")
    assert package is not None
    assert package.origin is not None
    (folder / "rt").mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        shutil.copy(Path(package.origin).parent / "lib" / name, folder / "rt" / name)
    (folder / "rt" / "version").write_text(version("apache-tvm"))
    wanted = f"apache-tvm-ffi=={version('apache-tvm-ffi')}"
    for python in PYTHONS if wheels else ():
        command = [sys.executable, "-m", "pip", "download", "-q", wanted, "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", python, "-d", str(folder / "whl")]
        command += [part for tag in _PLATFORMS for part in ("--platform", tag)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            print(f"no wheel of {wanted} for Python {python}: it must be installed there")
