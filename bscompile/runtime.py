"""Run an artifact: ``load(path)`` gives a ``Model``.

Needs numpy and the TVM runtime; no compiler, no torch, no onnx. An artifact holds machine code:
its hashes protect against damage, not against a hostile author, so load what you trust.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile import runtime_loader
from bscompile.artifact import CODE, Artifact, Manifest, TensorSpec, read_artifact
from bscompile.errors import ArtifactError, UsageError, did_you_mean
from bscompile.machine import available_threads, check_machine
from bscompile.manifest import installed_versions
from bscompile.weights_file import ALIGNMENT, empty_aligned

Array = npt.NDArray[Any]

_ENTRY = "main"


def load(path: str | Path, *, threads: int | None = None) -> Model:
    """Load an artifact; nothing of it runs before its hashes and CPU features are checked.

    Args:
        path: The .bsc file.
        threads: Worker threads; by default as many as it was built for, or as many as there are.

    Raises:
        StorageError: the file cannot be read.
        ArtifactError: the file is broken, changed, or made for another machine or version.
        UsageError: ``threads`` is not a positive number.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: at least 1 is wanted, got {threads}")
    artifact = read_artifact(path)
    try:
        _check_fits(artifact.manifest)
        return Model(artifact, threads)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}", error.hint) from error


class Model:
    """A loaded artifact. Calls from several threads are run one after the other.

    Attributes:
        manifest: What the artifact says about itself.
        members: Code and report as stored.
        threads: Worker threads that calls use, where the machine gives them.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        if CODE not in artifact.members:
            raise ArtifactError(f"the member {CODE!r} is missing")
        self.manifest = artifact.manifest
        self.members = artifact.members
        self.threads = min(threads or self.manifest.threads, available_threads())
        self._ffi = runtime_loader.load_ffi()
        self._lock = threading.Lock()
        self._specs = {spec.name: spec for spec in self.inputs}
        self._dtypes = [np.dtype(spec.dtype) for spec in self.inputs]
        self._executable = runtime_loader.Executable(artifact.members[CODE])
        self._param_addresses: set[int] = set()
        self._params = self._load_params(artifact.weights)
        self._main: Any = self._bound_main(self._executable.machine())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` gives."""
        return self.manifest.outputs

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """Compute the outputs.

        Args:
            inputs: Name -> array, for every input.

        Returns:
            Name -> array, for every output; the arrays are the caller's.

        Raises:
            UsageError: an input is missing, unknown, misshapen or of another dtype, or the model
                cannot work with the lengths of its symbolic dimensions.
        """
        arrays = self._check(inputs)
        tensors = [self._tensor(array) for array in arrays]
        with self._lock:
            if self._main is None:
                raise UsageError("this model was closed")
            runtime_loader.use_threads(self.threads)
            try:
                results = self._main(*tensors)
            except Exception as error:  # whatever TVM's own checks raise
                raise self._refusal(arrays, error) from error
        return self._collect(results, arrays)

    def __call__(self, x: npt.ArrayLike) -> Array | dict[str, Array]:
        """Run a model of one input; one output is returned as an array, more as a dict.

        Raises:
            UsageError: the model has several inputs, or ``x`` does not fit.
        """
        if len(self.inputs) != 1:
            names = ", ".join(self._specs)
            raise UsageError(f"the model has {len(self.inputs)} inputs: {names}; use run({{...}})")
        results = self.run({self.inputs[0].name: x})
        return next(iter(results.values())) if len(results) == 1 else results

    def profile(
        self, inputs: Mapping[str, npt.ArrayLike], repeats: int = 5
    ) -> list[tuple[str, float]]:
        """Time every kernel of a call.

        Returns:
            (kernel symbol, median seconds over the repeats), one entry for each kernel call in
            the order in which they run.

        Raises:
            UsageError: as ``run``.
        """
        tensors = [self._tensor(array) for array in self._check(inputs)]
        vm = self._executable.machine()
        main = self._bound_main(vm)
        calls: list[tuple[str, float]] = []
        started = [0.0]

        def watch(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> None:
            if before:
                started.append(time.perf_counter())
            else:
                calls.append((symbol, time.perf_counter() - started.pop()))

        vm["set_instrument"](self._ffi.convert_func(watch))
        rounds = []
        with self._lock:
            runtime_loader.use_threads(self.threads)
            for _ in range(repeats + 1):  # the first warms up
                calls.clear()
                main(*tensors)
                rounds.append([call for call in calls if not call[0].startswith("vm.")])
        symbols = [symbol for symbol, _ in rounds[0]]
        times = np.median([[seconds for _, seconds in one] for one in rounds[1:]], axis=0)
        return list(zip(symbols, times.tolist(), strict=True))

    def close(self) -> None:
        """Free the weights and the code's memory; the model cannot be used afterwards."""
        with self._lock:
            self._main, self._params = None, []

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"Model {self.manifest.name} ({inputs}) -> ({outputs}) for {self.manifest.target}"

    # ------------------------------------------------------------ into TVM

    def _bound_main(self, vm: Any) -> Any:
        wanted = len(self.inputs) + len(self._params)
        try:
            arity = int(vm["get_function_arity"](_ENTRY))
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"its code has no function {_ENTRY!r}") from error
        if arity != wanted:
            raise ArtifactError(f"its code takes {arity} arguments, the manifest lists {wanted}")
        return runtime_loader.bind(vm, _ENTRY, self._params)

    def _load_params(self, weights: Mapping[str, Array]) -> list[Any]:
        """One tensor per parameter, in the dtype that the code wants, aligned."""
        loaded: dict[tuple[str, str], Any] = {}
        for param in self.manifest.params:
            key = (param.name, param.used)
            if key not in loaded:
                array = weights[param.name]
                if param.used != param.stored:
                    widened = empty_aligned(array.shape, param.used)
                    widened[...] = array
                    array = widened
                self._param_addresses.add(_address(array))
                loaded[key] = self._tensor(array)
        return [loaded[param.name, param.used] for param in self.manifest.params]

    def _check(self, inputs: Mapping[str, npt.ArrayLike]) -> list[Array]:
        """The inputs in order, as arrays that fit their specs."""
        given: object = inputs
        if not isinstance(given, Mapping):
            example = ", ".join(f"{name!r}: array" for name in self._specs)
            raise UsageError(
                f"run: inputs by name are wanted, got {type(given).__name__}",
                hint=f"call run({{{example}}})",
            )
        for name in inputs:
            if name not in self._specs:
                raise UsageError(f"no input is named {name!r}", did_you_mean(name, self._specs))
        arrays: list[Array] = []
        lengths: dict[str, tuple[int, str]] = {}
        for spec, dtype in zip(self.inputs, self._dtypes, strict=True):
            name = spec.name
            if name not in inputs:
                raise UsageError(f"input {name} is missing", hint=f"the model takes {spec}")
            try:
                array = np.asarray(inputs[name])
            except ValueError as error:
                raise UsageError(f"input {name} is not an array: {error}") from error
            if array.dtype != dtype and array.dtype != dtype.newbyteorder():
                raise UsageError(
                    f"input {name}: {dtype} is wanted, got {array.dtype}",
                    hint=f"convert it with .astype({spec.dtype!r})",
                )
            _check_shape(spec, array.shape, lengths)
            arrays.append(array)
        return arrays

    def _tensor(self, array: Array) -> Any:
        """The array for TVM: without a copy where it is contiguous, aligned and writable."""
        flags = array.flags
        plain = flags.c_contiguous and flags.writeable and array.dtype.isnative
        if not plain or _address(array) % ALIGNMENT:
            aligned = empty_aligned(array.shape, array.dtype.newbyteorder("="))
            aligned[...] = array
            array = aligned
        return self._ffi.from_dlpack(array)

    def _refusal(self, arrays: Sequence[Array], error: Exception) -> UsageError:
        """What the code itself found wrong, such as a length that its reshapes cannot split."""
        given = ", ".join(
            f"{spec.name} {list(array.shape)}"
            for spec, array in zip(self.inputs, arrays, strict=True)
        )
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        return UsageError(
            f"the model cannot run on {given}: {reason.strip()}",
            hint="its symbolic dimensions may not take these lengths",
        )

    # ------------------------------------------------------------ out of TVM

    def _collect(self, results: Any, inputs: Sequence[Array]) -> dict[str, Array]:
        """Name -> array; copied where the memory belongs to somebody else."""
        many = results if len(self.outputs) != 1 or _is_sequence(results) else [results]
        if len(many) != len(self.outputs):
            raise ArtifactError(f"its code returned {len(many)} outputs, not {len(self.outputs)}")
        arrays = {}
        taken = {_address(array) for array in inputs}
        for spec, result in zip(self.outputs, many, strict=True):
            array = np.from_dlpack(result)
            address = _address(array)
            if address in taken or address in self._param_addresses:
                array = array.copy()
            taken.add(address)
            arrays[spec.name] = array
        return arrays


def _address(array: Array) -> int:
    # Half the time of array.ctypes.data, and it counts in every call.
    address: int = array.__array_interface__["data"][0]
    return address


def _is_sequence(results: Any) -> bool:
    return not hasattr(results, "__dlpack__")


def _check_shape(
    spec: TensorSpec, shape: tuple[int, ...], lengths: dict[str, tuple[int, str]]
) -> None:
    """Compare with the spec; ``lengths`` holds symbolic dimension -> (length, input) so far."""
    if len(shape) != len(spec.shape):
        raise UsageError(f"input {spec} has {len(spec.shape)} axes, got the shape {list(shape)}")
    for axis, (length, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if length != wanted:
                raise UsageError(f"input {spec}: axis {axis} is {wanted} long, got {list(shape)}")
        elif length == 0:
            raise UsageError(f"input {spec}: axis {axis} is empty, at least 1 is wanted")
        elif wanted != "?":
            known, where = lengths.setdefault(wanted, (length, spec.name))
            if known != length:
                raise UsageError(
                    f"input {spec}: axis {axis} ({wanted}) is {length} long, "
                    f"but {known} in input {where}"
                )


def _check_fits(manifest: Manifest) -> None:
    """Refuse an artifact whose code this installation or machine cannot run."""
    if manifest.loader != "vm":
        raise ArtifactError(f"made for the loader {manifest.loader!r}, this runtime has vm")
    check_machine(manifest.machine, manifest.features)
    here, built = installed_versions()["apache-tvm"], manifest.versions.get("apache-tvm")
    if built != here:
        raise ArtifactError(
            f"built with apache-tvm {built}, installed is {here}",
            hint="build the model again, or install the version it was built with",
        )
