"""What torch has against these kernels, where torch is: its block-sparse kernel, compiled models.

Torch has streams and graphs of its own; its times are of its own CUDA graphs.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Array


def version() -> str:
    """Of torch and, where it is, of Triton."""
    try:
        import triton
    except ImportError:
        return f"torch {torch.__version__}, no Triton"
    return f"torch {torch.__version__}, Triton {triton.__version__}"


def usable() -> bool:
    """Whether torch sees the GPU."""
    return bool(torch.cuda.is_available())


class BlockSparse:
    """Torch's Triton kernel for one weight, with the parameters that it picks itself.

    The weight stays in the cache from call to call, where it fits: that is in its favour.

    Args:
        weight: float32 [n, k], of which bfloat16 is made.
        block: Side of its blocks.
    """

    def __init__(self, weight: Array, block: int) -> None:
        self._rows = len(weight)
        self._weight = _on_device(weight).to_sparse_bsr((block, block))

    def run(self, x: Array) -> tuple[float, Array]:
        """(seconds, x Wᵀ) for float32 x [m, k].

        Raises:
            Exception: whatever it raises where it refuses.
        """
        from torch.sparse._triton_ops import bsr_dense_addmm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = _on_device(x)
            added = rows.new_zeros(self._rows, len(x))
            y = bsr_dense_addmm(added, self._weight, rows.T)
            seconds = _seconds(lambda: bsr_dense_addmm(added, self._weight, rows.T))
            return seconds, y.T.float().cpu().numpy()


def dense_ffn(k: int, hidden: int, rows: int, gate: bool) -> float:
    """Seconds of the dense network, compiled by torch with max-autotune for this very shape."""
    functional = torch.nn.functional
    up, down, beside = (
        torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[1] ** 0.5
        for shape in ((hidden, k), (k, hidden), (hidden, k))
    )
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)

    def ffn(x: torch.Tensor) -> torch.Tensor:
        wide = functional.linear(x, up)
        if gate:
            return functional.linear(functional.silu(functional.linear(x, beside)) * wide, down)
        return functional.linear(functional.gelu(wide), down)

    with torch.no_grad():
        compiled = torch.compile(ffn, mode="max-autotune-no-cudagraphs")
        for _ in range(3):
            compiled(x)
        return _seconds(lambda: compiled(x), rounds=1)


def _on_device(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to("cuda", torch.bfloat16)


def _seconds(call: Callable[[], Any], rounds: int = 8, repeats: int = 11) -> float:
    """Median of a graph's replays, with nothing of use in the second-level cache before each."""
    other = torch.empty(
        3 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8, device="cuda"
    )
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            call()
    times = []
    for _ in range(repeats):
        other.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / rounds)
    return statistics.median(times)
