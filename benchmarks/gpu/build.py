"""Every kernel that will be timed, built without a GPU: host code, machine code, places.

build/gpu/kernels.json      what there is: template, configuration, file names
build/gpu/<kernel>.so       host code;  <source hash>.fatbin  what runs on the device
build/gpu/<case>-<cut>.npz  where the groups of a case's weight lie, for each way to cut it
build/gpu/rt                TVM's runtime libraries
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cases import DTYPE, Case, all_cases
from bscompile.formats import BlockSparseMatrix
from bscompile.targets.base import HardwareSpec, Problem
from bscompile.targets.cuda.build import compile_kernel, cuda_source
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.packing import pack_steps
from bscompile.targets.cuda.kernels.steps import FewRows, StepTemplate, TensorCores

_PER_ROWS = {1: 1, 16: 2, 256: 2, 4096: 3}  # rows of x -> configurations, best by cost first

Compile = Callable[[str, str], bytes]  # (source, architecture) -> code


def build(folder: Path, arch: str, compile_code: Compile, small: bool = False) -> int:
    """Write everything; returns the number of kernels."""
    machine = hardware(arch)
    folder.mkdir(parents=True, exist_ok=True)
    started, kernels, cases = time.perf_counter(), {}, []
    for case in all_cases(small):
        weight = _pattern(case)
        uses = []
        for problem, template, config in _plans(case, weight.nnzb, machine, small):
            cut = f"t{config['tile']}g{config['group']}"
            places = folder / f"{case.name}-{cut}.npz"
            if not places.exists():
                _write_places(places, weight, problem, template, config)
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
    _copy_runtime(folder / "rt")
    return len(kernels)


def _plans(
    case: Case, nnzb: int, machine: HardwareSpec, small: bool
) -> list[tuple[Problem, StepTemplate, dict[str, Any]]]:
    """The configurations worth timing for a case, each once."""
    found: dict[str, tuple[Problem, StepTemplate, dict[str, Any]]] = {}
    block = (case.block, case.block)
    for rows, count in _PER_ROWS.items():
        template = FewRows("block_sparse") if rows <= 4 else TensorCores("block_sparse")
        problem = Problem(
            *("block_sparse", None, case.n, case.k, block, nnzb, 0, DTYPE, ("bias", "relu")),
            typical_m=rows,
            x_dtype=DTYPE,
            y_dtype=DTYPE,
        )
        for config in template.space(problem, machine)[: 1 if small else count]:
            found.setdefault(
                f"{template.name} {sorted(config.items())}", (problem, template, dict(config))
            )
    return list(found.values())


def _pattern(case: Case) -> BlockSparseMatrix:
    mask = np.kron(case.mask(), np.ones((case.block, case.block), np.int8))
    return BlockSparseMatrix.from_dense(mask, (case.block, case.block))


def _write_places(
    path: Path,
    weight: BlockSparseMatrix,
    problem: Problem,
    template: StepTemplate,
    config: dict[str, Any],
) -> None:
    layout = template.layout(problem, config)
    operands = dict(pack_steps(weight, layout, "int8"))
    groups = operands["values"].reshape(-1, layout.rows, layout.step // layout.group, layout.group)
    np.savez_compressed(
        path,
        starts=operands["starts"],
        indptr=operands["indptr"],
        order=operands["order"],
        live=groups.any(axis=(1, 3)),
        unit=layout.unit(weight.shape[1]),
        group=layout.group,
        tile=layout.rows,
    )


def _write_kernel(
    folder: Path,
    name: str,
    problem: Problem,
    template: StepTemplate,
    config: dict[str, Any],
    machine: HardwareSpec,
    compile_code: Compile,
) -> dict[str, Any]:
    # The first axes are symbolic, so a kernel serves every weight that is cut the same way.
    tiny = np.zeros((problem.n, problem.k), np.float32)
    kernel = template.build(
        problem, BlockSparseMatrix.from_dense(tiny, problem.block), config, machine
    )
    executable = compile_kernel(kernel.prim_func, machine)
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


def _copy_runtime(folder: Path) -> None:
    package = importlib.util.find_spec("tvm")
    assert package is not None
    assert package.origin is not None
    folder.mkdir(exist_ok=True)
    for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
        shutil.copy(Path(package.origin).parent / "lib" / name, folder / name)
