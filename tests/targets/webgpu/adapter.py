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
        from bscompile.targets.webgpu.kernel import compile_kernel

        hardware = self.context.hardware
        return [
            compile_kernel(call.kernel.prim_func, hardware).run(
                call.arrays, np.full(call.shape, np.nan, np.float32)
            )
            for call in calls
        ]


ADAPTERS = [WebGPUAdapter()]
