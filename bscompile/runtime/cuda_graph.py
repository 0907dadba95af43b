"""Whole calls as CUDA graphs: one launch instead of one for each kernel.

A call is captured when inputs of the same shapes come for the second time; the first has loaded
every kernel and filled the allocator's pool by then. A replay reads its inputs from, and leaves
its results in, the memory that the captured call had. What lies in between may be other calls'
memory too: calls never overlap, and each writes before it reads. Only a call that is no replay
may make the allocator give memory back to the driver, so shapes never met before drop all graphs.

``BSCOMPILE_CUDA_GRAPHS=0`` in the environment turns this off. Calls that the driver refuses to
capture run without.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Signature = tuple[tuple[tuple[int, ...], str], ...]

SWITCH = "BSCOMPILE_CUDA_GRAPHS"
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: an allocation while capturing is no error
_MOST = 16  # graphs that are kept; each holds the results of its call


class CaptureError(Exception):
    """The driver refused to capture or to replay."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One captured call.

    Attributes:
        inputs: Tensors on the device that it reads.
        results: What the call returned; a replay writes the same memory.
        graph: The cudaGraphExec_t.
    """

    inputs: list[Any]
    results: Any
    graph: ctypes.c_void_p


class Recorder:
    """Captures and replays calls, on a stream of its own.

    Args:
        library: The CUDA runtime library.
        use_stream: Address of a stream -> a context in which TVM launches on that stream.
        move: Array -> a new tensor on the device.
        fill: (array, tensor on the device): the tensor takes the array's values.

    Raises:
        CaptureError: no stream can be had.
    """

    def __init__(
        self,
        library: Any,
        use_stream: Callable[[int], Any],
        move: Callable[[Array], Any],
        fill: Callable[[Array, Any], None],
    ) -> None:
        self._cuda, self._use_stream, self._move, self._fill = library, use_stream, move, fill
        self._stream = ctypes.c_void_p()
        self._ask("cudaStreamCreate", ctypes.byref(self._stream))
        self._recorded: dict[Signature, Recording] = {}
        self._met: set[Signature] = set()
        self._refused: set[Signature] = set()

    def run(self, inputs: Sequence[Array], call: Callable[[list[Any]], Any]) -> Any:
        """What ``call`` returns for the inputs, valid until the next call.

        Args:
            inputs: Arrays of the host.
            call: (tensors on the device) -> results on the device.
        """
        signature = tuple((array.shape, array.dtype.name) for array in inputs)
        if signature in self._met and signature not in self._refused:
            try:
                if signature not in self._recorded:
                    self._capture(signature, inputs, call)
                return self._replay(self._recorded[signature], inputs)
            except CaptureError:
                self._refused.add(signature)
        self.drop()
        self._met.add(signature)
        return call([self._move(array) for array in inputs])

    @property
    def graphs(self) -> int:
        """How many calls are captured."""
        return len(self._recorded)

    def drop(self) -> None:
        """Free every graph."""
        for recording in self._recorded.values():
            self._cuda.cudaGraphExecDestroy(recording.graph)
        self._recorded.clear()

    def _capture(
        self, signature: Signature, inputs: Sequence[Array], call: Callable[[list[Any]], Any]
    ) -> None:
        held = [self._move(array) for array in inputs]
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._ask("cudaStreamBeginCapture", self._stream, _RELAXED)
        try:
            with self._use_stream(self._stream.value or 0):
                results = call(held)
        except Exception as error:
            # The plain call that follows says what is wrong with the inputs, if anything is.
            self._cuda.cudaStreamEndCapture(self._stream, ctypes.byref(graph))
            self._cuda.cudaGetLastError()
            raise CaptureError(str(error)) from error
        self._ask("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._ask("cudaGraphInstantiate", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._cuda.cudaGraphDestroy(graph)
        if len(self._recorded) == _MOST:
            oldest = self._recorded.pop(next(iter(self._recorded)))
            self._cuda.cudaGraphExecDestroy(oldest.graph)
        self._recorded[signature] = Recording(held, results, ready)

    def _replay(self, recording: Recording, inputs: Sequence[Array]) -> Any:
        for array, tensor in zip(inputs, recording.inputs, strict=True):
            self._fill(array, tensor)
        self._ask("cudaGraphLaunch", recording.graph, self._stream)
        self._ask("cudaStreamSynchronize", self._stream)
        return recording.results

    def _ask(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._cuda, function)(*arguments):
            self._cuda.cudaGetLastError()  # reads it away: TVM would take it for its own
            raise CaptureError(f"{function} failed with {code}")


def wanted(inputs: Sequence[Array]) -> bool:
    """Whether a call may be captured: the user has not turned it off, and there is work."""
    return os.environ.get(SWITCH, "1") != "0" and all(np.size(array) for array in inputs)
