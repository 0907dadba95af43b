"""Where kernels run: torch's CUDA device, or the emulated one for a dry run.

Times on the GPU are those of CUDA graphs: a graph calls the kernel with one copy of the weight
after the other, so many that they do not fit the second-level cache, and the median of several
replays is divided by the calls.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Calls = Sequence[Callable[[], Any]]


class Gpu:
    """The first CUDA device, by torch; TVM's kernels take torch's tensors and stream."""

    place = "cuda"

    def __init__(self, folder: Path) -> None:
        for name in ("libcuda.so.1", "libcudart.so.13"):
            _open_library(name)
        import tvm_ffi

        for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
            ctypes.CDLL(str(folder / "rt" / name), ctypes.RTLD_GLOBAL)
        self._ffi = tvm_ffi
        answer_compiler(tvm_ffi, folder)
        properties = torch.cuda.get_device_properties(0)
        self.name = torch.cuda.get_device_name()
        self.cache_bytes = int(properties.L2_cache_size)

    def load(self, library: Path) -> Callable[..., Any]:
        """The kernel of a library."""
        return self._ffi.load_module(str(library))["kernel"]  # type: ignore[no-any-return]

    def time(self, calls: Calls, repeats: int = 11) -> float:
        """Median seconds of one call, the calls taken in turn."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        rounds = max(1, -(-8 // len(calls)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        for _ in range(3):
            graph.replay()
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3 / (rounds * len(calls)))
        return statistics.median(times)


class Emulated:
    """The emulated device: results are real, times mean nothing."""

    place = "cpu"
    name = "emulated device (dry run: times mean nothing)"
    cache_bytes = 0

    def __init__(self, folder: Path) -> None:
        from tests.targets.cuda import emulator

        emulator.start()
        import tvm_ffi

        self._ffi = tvm_ffi
        answer_compiler(tvm_ffi, folder)

    def load(self, library: Path) -> Callable[..., Any]:
        """The kernel of a library, for torch's tensors: copied over and y back."""
        import tvm

        kernel = self._ffi.load_module(str(library))["kernel"]

        def call(*arrays: torch.Tensor) -> None:
            held = []
            for array in arrays:
                host = self._ffi.from_dlpack(array)
                moved = tvm.runtime.empty(tuple(array.shape), str(host.dtype), tvm.cuda(0))
                host.copyto(moved) if hasattr(host, "copyto") else _copy(self._ffi, host, moved)
                held.append((host, moved))
            kernel(*(moved for _, moved in held))
            host, moved = held[-1]
            _copy(self._ffi, moved, host)

        return call

    def time(self, calls: Calls, repeats: int = 1) -> float:
        """Seconds of one call on the emulator."""
        started = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - started) / len(calls) / max(1, repeats) * repeats


def answer_compiler(ffi: Any, folder: Path) -> None:
    """Where TVM asks for a compiler, give the code that was built for exactly that source."""

    def compile_cuda(source: str, *_target: Any) -> bytes:
        digest = hashlib.sha256(str(source).encode()).hexdigest()[:16]
        return (folder / f"{digest}.fatbin").read_bytes()

    ffi.register_global_func("tvm_callback_cuda_compile", compile_cuda, override=True)


def _copy(ffi: Any, source: Any, target: Any) -> None:
    ffi.get_global_func("runtime.TVMTensorCopyFromTo")(source, target)


def _open_library(name: str) -> None:
    wheels = [found for d in sys.path for found in glob.glob(f"{d}/nvidia/*/lib/{name}")]
    for candidate in (name, *wheels):
        try:
            ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise SystemExit(f"{name} was not found: this needs the machine's driver and CUDA 13")
