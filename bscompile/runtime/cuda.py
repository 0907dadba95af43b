"""Code for an NVIDIA GPU: TVM's virtual machine on the host, kernels and weights on the device.

The artifact holds the kernels as one fat binary, machine code and PTX. TVM's runtime asks a
function named ``tvm_callback_cuda_compile`` for the code of the source text that the library names;
here that answer is the fat binary, so nothing is compiled where a model runs. Dense layers may run
on the user's cuBLAS, see dense.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.artifact.dense_layers import MEMBER as DENSE_LAYERS
from bscompile.artifact.dense_layers import PREFIX
from bscompile.devices.nvidia import load_library
from bscompile.errors import ArtifactError, TargetError
from bscompile.runtime import cuda_graph, tvm_library
from bscompile.runtime.dense import DenseLayers
from bscompile.runtime.dense_trial import Trial
from bscompile.runtime.vm import VirtualMachine

Array = npt.NDArray[Any]

SOURCE = "code/kernels.cu"
KERNELS = "code/kernels.fatbin"
_CALLBACK = "tvm_callback_cuda_compile"
_CUDA = 2  # kDLCUDA
_RUNTIME = "libcudart.so.13"
_DRIVER_VERSION = 13000
_COMPUTE_VERSION = 4  # kComputeVersion of TVM's device attributes, such as "9.0"


class CudaMachine(VirtualMachine):
    """The virtual machine with a GPU as its first device; arrays cross over at each call."""

    devices: tuple[int, ...] = (_CUDA, 0, 2, *tvm_library.CPU_DEVICE)

    def __init__(self, artifact: Artifact, threads: int) -> None:
        for name in (SOURCE, KERNELS):
            if name not in artifact.members:
                raise ArtifactError(f"the member {name!r} is missing")
        ffi = load_cuda()
        _check_architecture(artifact.manifest.isa)
        source = artifact.members[SOURCE].decode("utf-8", "replace")
        cuda = ctypes.CDLL(_RUNTIME)  # loaded already, maybe from a wheel
        trial = Trial(cuda, _empty, lambda: int(ffi.get_raw_stream(_device(_CUDA))))
        self._dense = DenseLayers(artifact.members.get(DENSE_LAYERS, b""), trial)
        give = _give(source, artifact.members[KERNELS])
        before = ffi.get_global_func(_CALLBACK, allow_missing=True)
        ffi.register_global_func(_CALLBACK, give, override=True)
        try:
            super().__init__(artifact, threads)
        finally:
            if before is not None:
                ffi.register_global_func(_CALLBACK, before, override=True)
        self._recorder = cuda_graph.Recorder(
            cuda,
            lambda stream: ffi.use_raw_stream(_device(_CUDA), stream),
            self._tensor,
            self._fill,
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call main, by a CUDA graph where these shapes came before."""
        if cuda_graph.wanted(inputs):
            return self._collect(self._recorder.run(inputs, self._call), inputs)
        self._recorder.drop()
        return super().run(inputs)

    @property
    def remark(self) -> str:
        """How many dense layers of the latest call ran on cuBLAS, where one is here."""
        return self._dense.remark

    def profile(self, inputs: Sequence[Array], repeats: int) -> list[tuple[str, float]]:
        """Time every kernel; one that cuBLAS stands in for goes by the kernel's name."""
        calls = super().profile(inputs, repeats)
        return [(symbol.removeprefix(PREFIX), seconds) for symbol, seconds in calls]

    def close(self) -> None:
        """Free the graphs, the weights and the code's memory."""
        self._recorder.drop()
        self._dense.close()
        super().close()

    def _supply(self, module: Any) -> Mapping[str, Any]:
        return self._dense.functions(module)

    def _begin(self) -> None:
        self._dense.begin()

    def _input(self, place: int, array: Array) -> Any:
        return self._tensor(array)  # copied in any case

    def _tensor(self, array: Array) -> Any:
        """A copy on the device."""
        device = _empty(array.shape, str(array.dtype))
        self._fill(array, device)
        return device

    def _fill(self, array: Array, device: Any) -> None:
        _functions()["copy"](super()._tensor(array), device)

    def _mark(self) -> Any:
        _functions()["wait"](_device(_CUDA), 0)  # kernels run on after the call that starts them
        return super()._mark()

    def _since(self, mark: Any) -> float:
        _functions()["wait"](_device(_CUDA), 0)
        return super()._since(mark)

    def _collect(self, results: Any, inputs: Sequence[Any]) -> list[Array]:
        """The outputs, copied back; that waits until they are computed."""
        outputs = self._manifest.outputs
        many = [results] if hasattr(results, "__dlpack__") else list(results)
        if len(many) != len(outputs):
            raise ArtifactError(f"its code returned {len(many)} outputs, not {len(outputs)}")
        return [_to_host(result) for result in many]


EXECUTOR = CudaMachine


@cache
def load_cuda() -> Any:
    """The tvm_ffi module with the CUDA part of the TVM runtime loaded and a GPU found.

    Raises:
        TargetError: no driver, no CUDA runtime library, or no GPU.
    """
    ffi = tvm_library.load_ffi()
    if ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        _load_driver()
        package = importlib.util.find_spec("tvm")
        assert package is not None  # load_ffi has found it
        assert package.origin is not None
        library = Path(package.origin).parent / "lib" / "libtvm_runtime_cuda.so"
        try:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise TargetError(f"TVM's CUDA runtime cannot be loaded: {error}") from error
    if not ffi.get_global_func("runtime.GetDeviceAttr")(_CUDA, 0, 0):
        raise TargetError(
            "this model runs on an NVIDIA GPU, and none is here",
            "run it where one is, or build it with --target cpu",
        )
    return ffi


def _check_architecture(isa: str) -> None:
    """Refuse kernels for newer GPUs than the one here; PTX of the lowest serves all others."""
    ffi = tvm_library.load_ffi()
    found = str(ffi.get_global_func("runtime.GetDeviceAttr")(_CUDA, 0, _COMPUTE_VERSION))
    here = int(found.replace(".", ""))
    lowest = min(int(name.strip("sm_abcdef")) for name in isa.split("+"))
    if here < lowest:
        raise TargetError(
            f"this model is built for {isa.replace('+', ' and ')}, and the GPU here is sm_{here}",
            f"build it with --target cuda:sm_{here}, or cuda:sm_{here}+{isa} for both",
        )


def _load_driver() -> None:
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        raise TargetError(
            "this model runs on an NVIDIA GPU, and no driver for one is here (libcuda.so.1)",
            "run it where a GPU is, or build it with --target cpu",
        ) from None
    if version.value < _DRIVER_VERSION:
        major, minor = version.value // 1000, version.value % 1000 // 10
        raise TargetError(
            f"the NVIDIA driver here is for CUDA {major}.{minor}, and TVM's runtime needs 13.0",
            "update the driver (580 or newer)",
        )
    if load_library(_RUNTIME, mode=ctypes.RTLD_GLOBAL) is None:
        raise TargetError(
            f"running on an NVIDIA GPU needs {_RUNTIME}",
            "install the CUDA 13 toolkit, or pip install nvidia-cuda-runtime",
        )


def _give(source: str, kernels: bytes) -> Any:
    def compile_cuda(wanted: str, *_target: Any) -> bytes:
        if str(wanted) != source:
            raise RuntimeError("the library names other kernels than the artifact holds")
        return kernels

    return compile_cuda


@cache
def _functions() -> dict[str, Any]:
    ffi = tvm_library.load_ffi()
    names = {
        "allocate": "runtime.TVMTensorAllocWithScope",
        "copy": "runtime.TVMTensorCopyFromTo",
        "wait": "runtime.Device_StreamSync",
    }
    return {key: ffi.get_global_func(name) for key, name in names.items()}


@cache
def _device(kind: int) -> Any:
    return tvm_library.load_ffi().device({1: "cpu", _CUDA: "cuda"}[kind], 0)


def _empty(shape: tuple[int, ...], dtype: str) -> Any:
    """Memory on the device, with whatever it holds."""
    return _functions()["allocate"](shape, dtype, _device(_CUDA), None)


def _to_host(tensor: Any) -> Array:
    host = _functions()["allocate"](tuple(tensor.shape), str(tensor.dtype), _device(1), None)
    _functions()["copy"](tensor, host)
    return np.array(np.from_dlpack(host))  # a copy: the caller's own, and writable
