"""Kernels of the webgpu target, run by wgpu-py."""

from __future__ import annotations

import numpy as np

from bscompile.devices import webgpu as webgpu_device
from tests.targets.numeric_suite import Adapter
from tests.targets.webgpu.stacks import missing_adapter


class WebGPUAdapter(Adapter):
    """Each kernel in shaders of its own, all on one device."""

    target = "webgpu"
    dtypes = ("float32", "float16")

    def missing(self):
        reason = missing_adapter()
        if not reason and "shader-f16" not in webgpu_device.find().features:
            return "the adapter has no half precision (shader-f16); Mesa's for the CPU has"
        return reason

    def run(self, calls):
        from bscompile.runtime.webgpu_device import Device

        device = Device(("float16",), {})
        results = [self._call(device, call) for call in calls]
        device.close()
        return results

    def _call(self, device, call):
        from bscompile.runtime.webgpu_device import workgroups
        from bscompile.targets.gpu.source import device_code
        from bscompile.targets.gpu.workspace import lift_workspace
        from bscompile.targets.webgpu.hardware import tvm_target
        from bscompile.targets.webgpu.words import fit_kernel

        func, workspace = lift_workspace(call.kernel.prim_func)
        func = fit_kernel(func.with_attr("global_symbol", "kernel"))
        code = device_code({"kernel": func}, tvm_target(self.context.hardware))
        y = np.full(call.shape, np.nan, np.float32)
        spaces = [np.full([int(side) for side in b.shape], np.nan, np.float32) for b in workspace]
        memory = []
        for array in (*call.arrays, y, *spaces):
            memory.append(device.storage(array.nbytes))
            device.write(memory[-1], array)
        encoder = device.encoder()
        one_pass = encoder.begin_compute_pass()
        for launch in code.launches.kernels["kernel"]:
            size, bound = workgroups(launch.entry, launch.grid)
            pipeline = device.pipeline(launch.entry, code.sources[launch.entry])
            taken = [memory[i] for i in launch.arguments]
            resources = [{"buffer": buffer} for buffer in (*taken, device.uniform(bound))]
            one_pass.set_pipeline(pipeline)
            one_pass.set_bind_group(0, device.bindings(pipeline, resources))
            one_pass.dispatch_workgroups(*size)
        one_pass.end()
        readback = device.readback(y.nbytes)
        encoder.copy_buffer_to_buffer(memory[len(call.arrays)], 0, readback, 0, y.nbytes)
        device.submit(encoder)
        return np.frombuffer(device.read(readback), np.float32).reshape(call.shape)


ADAPTERS = [WebGPUAdapter()]
