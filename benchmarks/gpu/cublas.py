"""cuBLAS' dense product, by ctypes: the peer that needs neither torch nor a compiler.

y = x Wᵀ is row-major; cuBLAS sees columns, so it is asked for yᵀ = W xᵀ with W transposed.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

_TRANSPOSED, _PLAIN = 1, 0
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t
_SUMS = 68  # CUBLAS_COMPUTE_32F
_DEFAULT = -1  # CUBLAS_GEMM_DEFAULT: its own heuristics
_WORKSPACE = 32 << 20  # what NVIDIA advises for Hopper


class Cublas:
    """One handle, on a device's stream.

    Args:
        device: A ``device.Gpu``.

    Raises:
        OSError: the library is not here.
    """

    def __init__(self, device: Any) -> None:
        self._library = _open()
        self._handle = ctypes.c_void_p()
        self._ask("cublasCreate_v2", ctypes.byref(self._handle))
        self._ask("cublasSetStream_v2", self._handle, device.stream)
        # Its own would be allocated anew while a graph is captured.
        self._workspace = device.empty((_WORKSPACE,), "uint8")
        place = ctypes.c_void_p(self._workspace.data_ptr())
        size = ctypes.c_size_t(_WORKSPACE)
        self._ask("cublasSetWorkspace_v2", self._handle, place, size)

    def linear(self, x: Any, weight: Any, y: Any) -> None:
        """y[m, n] = x[m, k] weight[n, k]ᵀ, summed in float32; all of one dtype."""
        (m, k), n = (int(size) for size in x.shape), int(weight.shape[0])
        kind = _TYPES[str(x.dtype)]
        one, nothing = ctypes.c_float(1), ctypes.c_float(0)
        places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, x, y)]
        self._ask(
            "cublasGemmEx",
            *(self._handle, _TRANSPOSED, _PLAIN, n, m, k, ctypes.byref(one)),
            *(places[0], kind, k, places[1], kind, k, ctypes.byref(nothing)),
            *(places[2], kind, n, _SUMS, _DEFAULT),
        )

    def _ask(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._library, function)(*arguments):
            raise RuntimeError(f"{function} failed with {code}")


def _open() -> Any:
    names = ("libcublas.so.13", "libcublas.so.12", "libcublas.so")
    wheels = [str(p) for d in sys.path for n in names for p in Path(d).glob(f"nvidia/*/lib/{n}")]
    for name in (*names, *wheels):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("libcublas was not found")
