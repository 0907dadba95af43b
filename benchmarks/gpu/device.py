"""The GPU by TVM's runtime and CUDA's, without torch: arrays, kernels, times of CUDA graphs.

A graph calls what is timed with one copy of the weight after the other, so many that they do not
fit the second-level cache; the median of several replays is divided by the calls.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Calls = Sequence[Callable[[], Any]]

_CUDA = 2  # kDLCUDA
_NAME, _CACHE = 5, 38  # kDeviceName of TVM, cudaDevAttrL2CacheSize
_RELAXED = 2  # cudaStreamCaptureModeRelaxed
_BETWEEN = 3  # cudaMemcpyDeviceToDevice


class Gpu:
    """The first CUDA device.

    Args:
        folder: What ``build`` wrote, unpacked.

    Attributes:
        name: As the driver tells it.
        cache_bytes: Of the second-level cache.
        stream: The cudaStream_t of everything that is timed.
    """

    def __init__(self, folder: Path) -> None:
        find_runtime(folder)
        from bscompile.runtime import cuda

        self._ffi = cuda.load_cuda()
        names = {
            "allocate": "runtime.TVMTensorAllocWithScope",
            "copy": "runtime.TVMTensorCopyFromTo",
            "attribute": "runtime.GetDeviceAttr",
        }
        functions = {key: self._ffi.get_global_func(name) for key, name in names.items()}
        self._allocate, self._copy = functions["allocate"], functions["copy"]
        self._here, self._there = self._ffi.device("cpu", 0), self._ffi.device("cuda", 0)
        self._cuda = ctypes.CDLL("libcudart.so.13")
        self.stream = ctypes.c_void_p()
        self.ask("cudaStreamCreate", ctypes.byref(self.stream))
        size = ctypes.c_int()
        self.ask("cudaDeviceGetAttribute", ctypes.byref(size), _CACHE, 0)
        self.cache_bytes = int(size.value)
        self.name = str(functions["attribute"](_CUDA, 0, _NAME))
        answer_compiler(self._ffi, folder)

    # ------------------------------------------------------------ arrays

    def put(self, array: Array, dtype: str = "") -> Any:
        """A copy on the device; of ``bfloat16`` numpy holds the bits, uint16."""
        tensor = self.empty(array.shape, dtype or str(array.dtype))
        host = self._allocate(tuple(array.shape), dtype or str(array.dtype), self._here, None)
        held = np.ascontiguousarray(array)
        ctypes.memmove(host.data_ptr(), held.ctypes.data, held.nbytes)
        self._copy(host, tensor)
        return tensor

    def get(self, tensor: Any) -> Array:
        """A copy on the host; of ``bfloat16`` the bits, uint16."""
        self.ask("cudaStreamSynchronize", self.stream)
        shape, dtype = tuple(tensor.shape), str(tensor.dtype)
        host = self._allocate(shape, dtype, self._here, None)
        self._copy(tensor, host)
        array = np.empty(shape, np.uint16 if dtype == "bfloat16" else dtype)
        ctypes.memmove(array.ctypes.data, host.data_ptr(), array.nbytes)
        return array

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Memory on the device, with whatever it holds."""
        return self._allocate(tuple(shape), dtype, self._there, None)

    def copies(self, tensor: Any, most: int) -> list[Any]:
        """The tensor and copies of it, together more than the cache holds; ``most`` in all."""
        size = max(1, _bytes(tensor))
        count = min(most, max(1, -(-3 * self.cache_bytes // size)))
        others = [self.empty(tuple(tensor.shape), str(tensor.dtype)) for _ in range(count - 1)]
        for other in others:
            self._copy(tensor, other)
        return [tensor, *others]

    # ------------------------------------------------------------ code

    def load(self, library: Path) -> Callable[..., Any]:
        """The kernel of a library, launched on ``stream``."""
        kernel = self._ffi.load_module(str(library))["kernel"]

        def call(*tensors: Any) -> None:
            with self._ffi.use_raw_stream(self._there, self.stream.value or 0):
                kernel(*tensors)

        return call

    def move(self, source: Any, target: Any) -> None:
        """Copy between places of the device, on ``stream``."""
        places = (ctypes.c_void_p(one.data_ptr()) for one in (target, source))
        size = ctypes.c_size_t(_bytes(source))
        self.ask("cudaMemcpyAsync", *places, size, _BETWEEN, self.stream)

    def time(self, calls: Calls, repeats: int = 11) -> float:
        """Median seconds of one call, the calls taken in turn, as one CUDA graph."""
        for call in calls:
            call()
        self.ask("cudaStreamSynchronize", self.stream)
        rounds = max(1, -(-8 // len(calls)))
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self.ask("cudaStreamBeginCapture", self.stream, _RELAXED)
        for _ in range(rounds):
            for call in calls:
                call()
        self.ask("cudaStreamEndCapture", self.stream, ctypes.byref(graph))
        self.ask("cudaGraphInstantiate", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        replay = self.time_launches(
            lambda: self.ask("cudaGraphLaunch", ready, self.stream), repeats
        )
        self.ask("cudaGraphExecDestroy", ready)
        self.ask("cudaGraphDestroy", graph)
        return replay / (rounds * len(calls))

    def time_launches(
        self,
        launch: Callable[[], None],
        repeats: int,
        before: Callable[[], None] | None = None,
        stream: ctypes.c_void_p | None = None,
    ) -> float:
        """Median seconds of what ``launch`` puts on a stream, by events around it.

        Args:
            launch: Called once to warm up, then for each measurement.
            repeats: Measurements.
            before: Called before each, outside of what is timed.
            stream: Where it launches; ``self.stream`` by default.
        """
        from bscompile.runtime.cuda_calls import median_seconds

        def prepare() -> None:
            if before:
                before()
                self.ask("cudaStreamSynchronize", self.stream)

        launch()
        return median_seconds(self._cuda, launch, repeats, stream or self.stream, prepare)

    def ask(self, function: str, *arguments: Any) -> None:
        """Call CUDA's runtime.

        Raises:
            RuntimeError: it refuses.
        """
        from bscompile.runtime.cuda_calls import ask

        ask(self._cuda, function, *arguments)


def rounded(array: Array) -> Array:
    """float32 -> the bits of the nearest bfloat16, uint16; ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(bits: Array) -> Array:
    """The bits of bfloat16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def answer_compiler(ffi: Any, folder: Path) -> None:
    """Where TVM asks for a compiler, give the code that was built for exactly that source."""

    def compile_cuda(source: str, *_target: Any) -> bytes:
        digest = hashlib.sha256(str(source).encode()).hexdigest()[:16]
        return (folder / f"{digest}.fatbin").read_bytes()

    ffi.register_global_func("tvm_callback_cuda_compile", compile_cuda, override=True)


def find_runtime(folder: Path) -> None:
    """Let tvm_ffi and the runtime's libraries be imported from ``folder`` where they are missing.

    What is built holds the wheel of tvm_ffi for the usual versions of Python and the libraries of
    TVM's runtime, which bscompile's runtime looks for in a package named tvm.
    """
    import importlib.util
    import zipfile

    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    if importlib.util.find_spec("tvm_ffi") is None:
        wheels = sorted(folder.glob(f"whl/*-{tag}-*.whl"))
        if not wheels:
            raise SystemExit(f"tvm_ffi is not installed, and {folder}/whl has no wheel for {tag}")
        site = Path(tempfile.mkdtemp(prefix="bscompile-ffi-"))
        zipfile.ZipFile(wheels[0]).extractall(site)
        sys.path.append(str(site))
    if importlib.util.find_spec("tvm") is None:
        version = (folder / "rt" / "version").read_text()
        site = Path(tempfile.mkdtemp(prefix="bscompile-rt-"))
        (site / "tvm" / "lib").mkdir(parents=True)
        (site / "tvm" / "__init__.py").write_text("")
        for library in (folder / "rt").glob("*.so"):
            (site / "tvm" / "lib" / library.name).symlink_to(library.resolve())
        about = site / f"apache_tvm-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: apache-tvm\nVersion: {version}\n")
        sys.path.append(str(site))
        importlib.invalidate_caches()


def _bytes(tensor: Any) -> int:
    wide = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "uint8": 1}[str(tensor.dtype)]
    return wide * int(np.prod(tuple(tensor.shape)))
