"""How fast this CPU's dot product instructions are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def measure_products(
    options: Mapping[str, str], lanes: int, extensions: Mapping[str, tuple[str, ...]]
) -> dict[str, float]:
    """GFLOP/s of one core by feature; those that only tiles have (AMX) are left out.

    Args:
        options: TVM's target for this machine without extensions.
        lanes: 32-bit elements of one vector.
        extensions: Precision -> features that this machine has.
    """
    import tvm

    from bscompile.targets.cpu import probes
    from bscompile.targets.cpu.hardware import attributes
    from bscompile.targets.kernels.code.dot import BFLOAT16, VNNI

    rates = {}
    for feature, product in (("avx512_bf16", BFLOAT16), ("avx512_vnni", VNNI)):
        if not any(feature in features for features in extensions.values()):
            continue
        target = tvm.target.Target({**options, "mattr": attributes([feature])})
        module = tvm.IRModule({"dot_product": probes.dot_product(product, lanes)})
        timer = (
            tvm.compile(module, target=target)
            .jit()
            .time_evaluator("dot_product", tvm.cpu(), number=10, repeat=25)
        )
        seconds = min(timer(tvm.runtime.tensor(np.zeros(1024, product.total))).results)
        operations = probes.MULTIPLY_ADDS * lanes * product.group * 2
        rates[feature] = operations / float(seconds) / 1e9
    return rates
