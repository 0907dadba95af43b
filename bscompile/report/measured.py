"""Which of the kernels that were timed is which layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bscompile.report.model import Report

# Lowering names a layer's kernel after its form; TVM appends a number to tell equals apart.
_KERNEL = re.compile(r"(dense|block_sparse|kronecker)_matmul\d*")


def attach_times(report: Report, calls: Sequence[tuple[str, float]]) -> Report | None:
    """The report with a measured time for each layer.

    Kernels run in the order of the layers; their forms must agree one by one.

    Args:
        report: What was built.
        calls: (kernel symbol, seconds) in the order of the calls, as ``Model.profile`` gives.

    Returns:
        The report with times, or None where calls and layers cannot be matched.
    """
    kernels = [
        (match[1], seconds) for symbol, seconds in calls if (match := _KERNEL.fullmatch(symbol))
    ]
    if [form for form, _ in kernels] != [layer.form for layer in report.layers]:
        return None
    return report.with_measured([seconds for _, seconds in kernels])
