"""The pass order on loops that the targets for processors share: TVM's, but for one pass.

TVM shrinks every buffer of a function to the part that it can prove to be touched. Kernels from
templates have no room to spare, and where their rows are an open number that proof takes seconds
for a small layer and grows with the square of what the kernel unrolls. They go without it.
"""

from __future__ import annotations

from typing import Any, Final

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

#: Name of the pipeline, for ``tvm.compile`` and ``tvm.relax.build``.
TIR_PIPELINE: Final = "bscompile.processor"

#: Attribute of a function whose buffers have the size that they need.
SIZED: Final = "bscompile.sized"

_SHRINK = "s_tir.CompactBufferAllocation"


def _pipeline() -> tuple[Any, Any, Any]:
    lower, finish_host, finish_device = compilation_pipeline.get_tir_pipeline("s_tir")

    def run(module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        sized = tirx.transform.Filter(lambda func: SIZED in func.attrs)(module)
        others = tirx.transform.Filter(lambda func: SIZED not in func.attrs)(module)
        lowered = lower(others)
        with tvm.transform.PassContext(
            opt_level=context.opt_level, config=context.config, disabled_pass=[_SHRINK]
        ):
            lowered.update(lower(sized))
        return lowered

    whole = tvm.transform.module_pass(run, opt_level=0, name="bscompile.Lower")
    return whole, finish_host, finish_device


compilation_pipeline.register_tir_pipeline(TIR_PIPELINE, _pipeline)
