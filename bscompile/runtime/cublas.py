"""The user's cuBLAS, by ctypes: one dense product, on tensors of TVM's runtime.

y = x Wᵀ is row-major; cuBLAS sees columns, so it is asked for yᵀ = W xᵀ with W transposed.
Products are summed in float32, and float32 is multiplied as such: its default forbids TF32.
"""

from __future__ import annotations

import ctypes
from typing import Any

from bscompile.devices.nvidia import load_library

NAMES = ("libcublas.so.13", "libcublas.so.12", "libcublas.so")
WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for Hopper
_TRANSPOSED, _PLAIN = 1, 0
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t
_SUMS = 68  # CUBLAS_COMPUTE_32F
_DEFAULT = -1  # CUBLAS_GEMM_DEFAULT: its own heuristics


class Cublas:
    """One handle.

    Args:
        library: As ``open_library`` gives it.
        workspace: ``WORKSPACE`` bytes on the device. Its own would be allocated anew while a
            graph is captured.

    Attributes:
        version: Such as ``13.1``.

    Raises:
        RuntimeError: the library refuses.
        AttributeError: it lacks a function.
    """

    def __init__(self, library: Any, workspace: Any) -> None:
        self._library, self._workspace = library, workspace
        self._handle, self._stream = ctypes.c_void_p(), -1
        self._ask("cublasCreate_v2", ctypes.byref(self._handle))
        number = ctypes.c_int()
        self._ask("cublasGetVersion_v2", self._handle, ctypes.byref(number))
        self.version = f"{number.value // 10000}.{number.value // 100 % 100}"

    def linear(self, x: Any, weight: Any, y: Any, stream: int) -> None:
        """y[m, n] = x[m, k] weight[n, k]ᵀ, put on a stream.

        Args:
            x: float32, float16 or bfloat16.
            weight: In the same.
            y: In the same, or in float32.
            stream: The cudaStream_t; 0 for the default one.

        Raises:
            RuntimeError: the library refuses.
        """
        (m, k), n = (int(size) for size in x.shape), int(y.shape[1])
        kind, made = _TYPES[str(x.dtype)], _TYPES[str(y.dtype)]
        self._use(stream)
        one, nothing = ctypes.c_float(1), ctypes.c_float(0)
        places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, x, y)]
        self._ask(
            "cublasGemmEx",
            *(self._handle, _TRANSPOSED, _PLAIN, n, m, k, ctypes.byref(one)),
            *(places[0], kind, k, places[1], kind, k, ctypes.byref(nothing)),
            *(places[2], made, n, _SUMS, _DEFAULT),
        )

    def close(self) -> None:
        """Free the handle."""
        if self._handle:
            self._library.cublasDestroy_v2(self._handle)
        self._handle = ctypes.c_void_p()

    def _use(self, stream: int) -> None:
        if stream != self._stream:
            self._ask("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            # Setting the stream has brought back the library's own workspace.
            place = ctypes.c_void_p(self._workspace.data_ptr())
            self._ask("cublasSetWorkspace_v2", self._handle, place, ctypes.c_size_t(WORKSPACE))
            self._stream = stream

    def _ask(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._library, function)(*arguments):
            raise RuntimeError(f"{function} failed with {code}")


def open_library(path: str = "") -> Any:
    """The library of that path, or the newest that is here.

    Raises:
        OSError: there is none.
    """
    if path:
        return ctypes.CDLL(path)
    library = load_library(*NAMES)
    if library is None:
        raise OSError("libcublas was not found")
    return library
