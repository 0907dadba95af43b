"""Code for TVM's Relax virtual machine on this CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import CODE, Artifact
from bscompile.artifact.manifest import Manifest, installed_versions
from bscompile.artifact.weights import ALIGNMENT, empty_aligned
from bscompile.devices.cpu import check_machine
from bscompile.errors import ArtifactError
from bscompile.runtime import tvm_library
from bscompile.runtime.executor import Executor, RefusedError

Array = npt.NDArray[Any]

_ENTRY = "main"
_SMALL = 16 << 10  # bytes of an input that are sooner copied than looked at


class VirtualMachine(Executor):
    """A shared library with a Relax executable; the weights are bound to its function main."""

    devices: tuple[int, ...] = tvm_library.CPU_DEVICE

    def __init__(self, artifact: Artifact, threads: int) -> None:
        _check_fits(artifact.manifest)
        if CODE not in artifact.members:
            raise ArtifactError(f"the member {CODE!r} is missing")
        self._manifest = artifact.manifest
        self._threads = threads
        self._ffi = tvm_library.load_ffi()
        code = artifact.members[CODE]
        self._executable = tvm_library.Executable(code, self.devices, self._supply)
        self._param_addresses: set[int] = set()
        self._rooms: dict[int, tuple[Array, Any]] = {}
        self._params = self._load_params(artifact.weights)
        self._main: Any = self._bound_main(self._executable.machine())

    def _supply(self, module: Any) -> Mapping[str, Any]:
        """Functions that the code calls and does not hold."""
        return {}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call main; large inputs that are contiguous and aligned are used without a copy."""
        tensors = [self._input(place, array) for place, array in enumerate(inputs)]
        return self._collect(self._call(tensors), tensors)

    def _begin(self) -> None:
        """A call of main begins."""

    def _call(self, tensors: list[Any]) -> Any:
        self._begin()
        tvm_library.use_threads(self._threads)
        try:
            return self._main(*tensors)
        except Exception as error:  # whatever TVM's own checks raise
            lines = (line.strip() for line in str(error).splitlines())
            raise RefusedError(next((line for line in lines if line), "no reason given")) from error

    def profile(self, inputs: Sequence[Array], repeats: int) -> list[tuple[str, float]]:
        """Time every kernel by the virtual machine's own instrument, in a machine of its own."""
        tensors = [self._tensor(array) for array in inputs]
        vm = self._executable.machine()
        main = self._bound_main(vm)
        calls: list[tuple[str, float]] = []
        started: list[Any] = []

        def watch(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> None:
            if before:
                started.append(self._mark())
            else:
                calls.append((symbol, self._since(started.pop())))

        vm["set_instrument"](self._ffi.convert_func(watch))
        rounds = []
        tvm_library.use_threads(self._threads)
        for _ in range(repeats + 1):  # the first warms up
            calls.clear()
            self._begin()
            main(*tensors)
            rounds.append([call for call in calls if not call[0].startswith("vm.")])
        symbols = [symbol for symbol, _ in rounds[0]]
        times = np.median([[seconds for _, seconds in one] for one in rounds[1:]], axis=0)
        return list(zip(symbols, times.tolist(), strict=True))

    def close(self) -> None:
        """Free the weights and the code's memory."""
        self._main, self._params, self._rooms = None, [], {}

    def _mark(self) -> Any:
        """The beginning of something that ``profile`` times."""
        return time.perf_counter()

    def _since(self, mark: Any) -> float:
        """Seconds since then."""
        return time.perf_counter() - float(mark)

    # ------------------------------------------------------------ into TVM

    def _bound_main(self, vm: Any) -> Any:
        wanted = len(self._manifest.inputs) + len(self._params)
        try:
            arity = int(vm["get_function_arity"](_ENTRY))
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"its code has no function {_ENTRY!r}") from error
        if arity != wanted:
            raise ArtifactError(f"its code takes {arity} arguments, the manifest lists {wanted}")
        return tvm_library.bind(vm, _ENTRY, self._params)

    def _load_params(self, weights: Mapping[str, Array]) -> list[Any]:
        """One tensor per parameter, in the dtype that the code wants, aligned."""
        loaded: dict[tuple[str, str], Any] = {}
        for param in self._manifest.params:
            key = (param.name, param.used)
            if key not in loaded:
                array = weights[param.name]
                if param.used != param.stored:
                    widened = empty_aligned(array.shape, param.used)
                    widened[...] = array
                    array = widened
                loaded[key] = self._tensor(array)
                self._param_addresses.add(loaded[key].data_ptr())
        return [loaded[param.name, param.used] for param in self._manifest.params]

    def _input(self, place: int, array: Array) -> Any:
        """An input for TVM; a small one in memory that is kept for the next call's."""
        if not 0 < array.nbytes <= _SMALL:
            return self._tensor(array)
        room = self._rooms.get(place)
        if room is None or room[0].shape != array.shape:
            aligned = empty_aligned(array.shape, array.dtype.newbyteorder("="))
            room = self._rooms[place] = aligned, self._tensor(aligned)
        room[0][...] = array
        return room[1]

    def _tensor(self, array: Array) -> Any:
        """The array for TVM: without a copy where it is contiguous, aligned and writable."""
        flags = array.flags
        if flags.c_contiguous and flags.writeable and array.dtype.isnative and array.size:
            tensor = self._ffi.from_dlpack(array)
            # Asking numpy for the address would take longer than all the rest.
            if tensor.data_ptr() % ALIGNMENT == 0:
                return tensor
        aligned = empty_aligned(array.shape, array.dtype.newbyteorder("="))
        aligned[...] = array
        return self._ffi.from_dlpack(aligned if array.size else _with_strides(aligned))

    # ------------------------------------------------------------ out of TVM

    def _collect(self, results: Any, inputs: Sequence[Any]) -> list[Array]:
        """The outputs as arrays; copied where the memory belongs to somebody else."""
        outputs = self._manifest.outputs
        many = results if len(outputs) != 1 or _is_sequence(results) else [results]
        if len(many) != len(outputs):
            raise ArtifactError(f"its code returned {len(many)} outputs, not {len(outputs)}")
        arrays = []
        taken = {tensor.data_ptr() for tensor in inputs}
        for result in many:
            array = np.from_dlpack(result)
            address = result.data_ptr()
            if address in taken or address in self._param_addresses:
                array = array.copy()
            taken.add(address)
            arrays.append(array)
        return arrays


EXECUTOR = VirtualMachine


def _with_strides(array: Array) -> Array:
    """An empty array with the strides of its shape, which TVM compares; numpy says 0."""
    sizes = [array.itemsize]
    for length in array.shape[:0:-1]:
        sizes.append(sizes[-1] * length)
    return np.lib.stride_tricks.as_strided(array, array.shape, sizes[::-1])


def _is_sequence(results: Any) -> bool:
    return not hasattr(results, "__dlpack__")


def _check_fits(manifest: Manifest) -> None:
    """Refuse code that this installation or machine cannot run."""
    check_machine(manifest.machine, manifest.features)
    here, built = installed_versions()["apache-tvm"], manifest.versions.get("apache-tvm")
    if built != here:
        raise ArtifactError(
            f"built with apache-tvm {built}, installed is {here}",
            hint="build the model again, or install the version it was built with",
        )
