"""From kernels to source text and the way to launch it; needs no device and no device runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm.script
import tvm_ffi
from tvm import s_tir, tirx

from bscompile.artifact.launches import Launch, Launches, Sizes
from bscompile.errors import ModelError

# The attribute tvm.tirx.build is a function that hides the module of this name.
_build = importlib.import_module("tvm.tirx.build")

_SUFFIX = "_ptr"  # the code generator appends it to the names of arguments


@dataclass(frozen=True, eq=False)
class DeviceCode:
    """Code for a device.

    Attributes:
        sources: Entry point -> the text that defines it, alone.
        launches: How each kernel is started.
        modules: Entry point -> tvm.runtime.Module, for targets whose code is no text.
    """

    sources: Mapping[str, str] = field(repr=False)
    launches: Launches
    modules: Mapping[str, Any] = field(repr=False)


def device_code(kernels: Mapping[str, Any], target: Any) -> DeviceCode:
    """Generate code for scheduled kernels.

    Args:
        kernels: Name -> tvm.tirx.PrimFunc with thread bindings and fixed shapes; all memory of
            the scope ``global`` is among its parameters.
        target: tvm.target.Target of the kind ``opencl``, ``webgpu``, ``metal`` or ``rocm``.

    Raises:
        ModelError: a kernel's launch depends on what is only known when it runs.
    """
    kernels = {name: _distinct(func) for name, func in kernels.items()}
    with_host = target.with_host(tvm.target.Target({"kind": "llvm"}))
    pipeline, _, finalize = tirx.get_default_tir_pipeline(with_host)
    functions = {n: f.with_attr("global_symbol", n) for n, f in kernels.items()}
    lowered = pipeline(tirx.transform.BindTarget(with_host)(tvm.IRModule(functions)))
    host, parts = _build.split_host_device_mods(lowered)
    entries: dict[str, Any] = {}
    for part_target, part in parts.items():
        for name, func in finalize()(part).functions.items():
            entries[name.name_hint] = (part_target, name, func)
    modules = {
        entry: _build.codegen_build(tvm.IRModule({name: func}), part_target)
        for entry, (part_target, name, func) in entries.items()
    }
    launches = {
        name: tuple(
            _launch(entry, entries[entry][2], [p.name for p in func.params])
            for entry in _calls(host, name)
        )
        for name, func in kernels.items()
    }
    return DeviceCode(
        {entry: str(module.inspect_source()) for entry, module in modules.items()},
        Launches(launches),
        modules,
    )


def _distinct(func: Any) -> Any:
    """The function with parameters of different names: printing tells them apart."""
    names = [param.name for param in func.params]
    if len(set(names)) == len(names):
        return func
    return tvm.script.from_source(func.script(show_meta=True)).with_attrs(func.attrs)


def _calls(host: Any, name: str) -> list[str]:
    """The entry points that a kernel's host function starts, in order."""
    found: list[str] = []

    def look(call: Any) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            found.append(str(call.args[0].value))

    for func in host.functions.values():
        if str(func.attrs["global_symbol"]) in (name, f"__tvm_ffi_{name}"):
            tvm_ffi.structural_walk(func.body, [(tvm.ir.Call, look)], order="pre")
    return found


def _launch(entry: str, func: Any, parameters: list[str]) -> Launch:
    extents: dict[str, int] = {}

    def look(node: Any) -> None:
        if node.attr_key == "thread_extent":
            if not isinstance(node.value, tirx.IntImm):
                raise ModelError(f"kernel {entry}: its launch depends on {node.value}")
            extents[str(node.node.thread_tag)] = int(node.value)

    tvm_ffi.structural_walk(func.body, [(tirx.AttrStmt, look)], order="pre")

    def sizes(tag: str) -> Sizes:
        x, y, z = (extents.get(f"{tag}.{axis}", 1) for axis in "xyz")
        return x, y, z

    names = [p.name.removesuffix(_SUFFIX) for p in func.params]
    if unknown := next((name for name in names if name not in parameters), None):
        raise ModelError(f"kernel {entry}: it needs {unknown}, which is only known when it runs")
    arguments = tuple(map(parameters.index, names))
    return Launch(entry, arguments, sizes("blockIdx"), sizes("threadIdx"), shared_bytes(func))


def shared_bytes(func: Any) -> int:
    """Bytes of shared memory that one group of a kernel takes."""
    allocated = s_tir.analysis.calculate_allocated_bytes(func)
    totals = [dict(scopes) for scopes in allocated.values()]
    return max((int(scopes.get("shared", 0)) for scopes in totals), default=0)
