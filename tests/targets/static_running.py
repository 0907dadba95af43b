"""What the tests of static executables share: what is installed, and small models."""

from __future__ import annotations

import platform
import shutil

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from bscompile.errors import TargetError
from bscompile.targets.native import MACHINES


def missing(machine):
    """Why programs for the machine cannot be made or run here; empty where they can."""
    try:
        MACHINES[machine].compiler()
    except TargetError as error:
        return str(error)
    emulator = f"qemu-{machine}"
    if machine != platform.machine() and not shutil.which(emulator):
        return f"{emulator} is not installed (apt-get install qemu-user)"
    return ""


def needs(machine):
    """A mark that skips a test where programs for the machine cannot be made or run."""
    reason = missing(machine)
    return pytest.mark.skipif(bool(reason), reason=reason or "everything is here")


def machine_cases(names):
    """Variants of the cpu target as test parameters, each with its mark."""
    return [
        pytest.param(
            name, marks=needs(platform.machine() if name == "static" else name.split("-")[0])
        )
        for name in names
    ]


def sparse_mlp(rows=3, width=96):
    """A feed-forward model of two block-sparse layers with bias."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(size) for name, size in {"b1": width, "b2": 32}.items()}
    for name, (k, n) in {"w1": (64, width), "w2": (width, 32)}.items():
        live = rng.random((k // 16, n // 16)) < 0.3
        live[0, 0] = True
        arrays[name] = rng.standard_normal((k, n)) * np.kron(live, np.ones((16, 16)))
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{rows}, 64] x) => (float[{rows}, 32] y) {{
        a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  d = MatMul(c, w2)  y = Add(d, b2) }}""")
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    return proto


def _distinct(funcs):
    """(name of each, name -> kernel): kernels that differ in nothing are compiled once."""
    import tvm_ffi

    names, kernels, known = [], {}, {}
    for func in funcs:
        key = tvm_ffi.StructuralKey(func)
        name = known.setdefault(key, f"k{len(known)}")
        names.append(name)
        kernels.setdefault(name, func.with_attr("global_symbol", name))
    return names, kernels


def run_kernels(target, calls):
    """Many kernels as one static executable, so that a whole suite is linked and started once.

    Args:
        target: What users type.
        calls: (PrimFunc, arrays in argument order, y as it is before) of each.

    Returns:
        A function (arrays of every call) -> y of every call.
    """
    from bscompile import targets
    from bscompile.artifact import Artifact
    from bscompile.artifact.manifest import Manifest, TensorSpec
    from bscompile.runtime.native import StaticExecutable
    from bscompile.targets.native.build import build_static
    from bscompile.targets.native.kernel import program_of

    context = targets.resolve(target, None if target == "hexagon" else 2)
    hardware = context.hardware
    code = context.target.build.keywords["code"](hardware)
    names, kernels = _distinct([func for func, _, _ in calls])
    program = program_of(
        [(name, arrays, y) for name, (_, arrays, y) in zip(names, calls, strict=True)]
    )
    members = build_static(program, kernels, [], MACHINES[hardware.machine], code, 2)
    specs = [TensorSpec(f"b{i}", b.shape, b.dtype) for i, b in enumerate(program.buffers)]
    manifest = Manifest(
        "cpu", hardware.isa, hardware.features, 2, tuple(specs),
        tuple(specs[i] for i in program.outputs), (), loader="native", machine=hardware.machine,
    )  # fmt: skip
    artifact, before = Artifact(manifest, members, {}), [y for _, _, y in calls]

    def run(arrays):
        feeds = []
        for own, y in zip(arrays, before, strict=True):
            feeds += [*own, y]
        executor = StaticExecutable(artifact, 2)
        try:
            return executor.run(feeds)
        finally:
            executor.close()

    return run
