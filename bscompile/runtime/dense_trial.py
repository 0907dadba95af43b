"""Two ways to compute a layer, compared on the device: do they agree, and which is faster?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.runtime.cuda_calls import ask, median_seconds

Array = npt.NDArray[Any]
Way = Callable[[], Any]

_L2_BYTES = 38  # cudaDevAttrL2CacheSize
_TO_DEVICE, _TO_HOST, _BETWEEN = 1, 2, 3  # cudaMemcpyKind
_ROWS = 16  # at either end of y that are compared; 4 times as many of x differ
_REPEATS = 7
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_ERRORS = 32  # times the rounding error of a sum in float32, as a random walk


class Trial:
    """What a comparison needs of the device.

    Args:
        cuda: CUDA's runtime library.
        empty: (shape, dtype) -> a new tensor on the device.
        stream: The cudaStream_t that TVM launches on now, 0 for the default one.
    """

    def __init__(
        self,
        cuda: Any,
        empty: Callable[[tuple[int, ...], str], Any],
        stream: Callable[[], int],
    ) -> None:
        self._cuda, self.empty, self.stream = cuda, empty, stream

    def random(self, x: Any) -> Any:
        """A tensor like x [m, k] of normal numbers, whose rows repeat themselves."""
        (m, k), dtype = (int(size) for size in x.shape), str(x.dtype)
        made, size = self.empty((m, k), dtype), _SIZES[dtype]
        first = _narrow(np.random.default_rng(0).standard_normal((min(m, 4 * _ROWS), k)), dtype)
        self._copy(made.data_ptr(), first.ctypes.data, first.nbytes, _TO_DEVICE)
        filled, whole = first.nbytes, m * k * size
        while filled < whole:
            part = min(filled, whole - filled)
            self._copy(made.data_ptr() + filled, made.data_ptr(), part, _BETWEEN)
            filled += part
        return made

    def difference(self, ours: Way, theirs: Way, *, x: Any, y: Any) -> str:
        """How the results of two ways differ by more than rounding; empty where they do not.

        To expect are eps sqrt(k) times the largest result, as sums in float32 have whatever the
        products are made of.

        Args:
            ours: Writes y.
            theirs: Writes it, too.
            x: [m, k].
            y: float32 [m, n]; rows at its beginning and end are compared.
        """
        ours()
        wanted = self._ends(y)
        theirs()
        got = self._ends(y)
        told = np.isfinite(wanted)  # what a residual has made NaN tells nothing
        eps, most = np.finfo(np.float32).eps, np.abs(wanted[told]).max(initial=0.0)
        (m, k), n = (int(size) for size in x.shape), int(y.shape[1])
        limit = _ERRORS * eps * np.sqrt(k) * most
        worst = np.abs(got[told] - wanted[told]).max(initial=0.0)
        if worst <= limit:
            return ""
        return f"a layer of {n}x{k} is off by {worst:.1e} with {m} rows, allowed are {limit:.1e}"

    def seconds(self, *ways: Way) -> list[float]:
        """Median time of each, with nothing of use in the second-level cache before."""
        size = ctypes.c_int()
        ask(self._cuda, "cudaDeviceGetAttribute", ctypes.byref(size), _L2_BYTES, 0)
        rest = self.empty((max(1 << 20, 4 * int(size.value)),), "uint8")
        stream, count = ctypes.c_void_p(self.stream()), ctypes.c_size_t(int(rest.shape[0]))
        place = ctypes.c_void_p(rest.data_ptr())

        def clear() -> None:  # and keep the device busy until the launch has reached it
            ask(self._cuda, "cudaMemsetAsync", place, 0, count, stream)

        return [median_seconds(self._cuda, way, _REPEATS, stream, clear) for way in ways]

    def _ends(self, y: Any) -> Array:
        """The first and last rows of y."""
        m, n = (int(size) for size in y.shape)
        rows = min(m, _ROWS)
        got = np.empty((2, rows, n), np.float32)
        for end, row in enumerate((0, m - rows)):
            place = y.data_ptr() + 4 * n * row
            self._copy(got[end].ctypes.data, place, got[end].nbytes, _TO_HOST)
        return got

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        stream = ctypes.c_void_p(self.stream())
        places = ctypes.c_void_p(to), ctypes.c_void_p(source)
        ask(self._cuda, "cudaMemcpyAsync", *places, ctypes.c_size_t(size), kind, stream)
        ask(self._cuda, "cudaStreamSynchronize", stream)


def _narrow(array: Array, dtype: str) -> Array:
    """float64 in a dtype; of bfloat16, which numpy lacks, the bits, the rest cut off."""
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(dtype)
