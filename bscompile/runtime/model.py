"""A loaded artifact: its contract checked, its calls handed to an executor."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact import Artifact, TensorSpec, read_artifact
from bscompile.devices.cpu import available_threads
from bscompile.errors import ArtifactError, UsageError, did_you_mean
from bscompile.runtime.executor import Executor, RefusedError, open_executor

Array = npt.NDArray[Any]


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
        self.manifest = artifact.manifest
        self.members = artifact.members
        self.threads = min(threads or self.manifest.threads, available_threads())
        self._lock = threading.Lock()
        self._specs = {spec.name: spec for spec in self.inputs}
        self._dtypes = [np.dtype(spec.dtype) for spec in self.inputs]
        self._shapes = [spec.shape for spec in self.inputs]
        self._executor: Executor | None = open_executor(artifact, self.threads)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes."""
        return self.manifest.inputs

    @property
    def stand_in(self) -> str:
        """What runs it here in place of the device that it is made for; empty for that device."""
        return self._open().stand_in

    @property
    def remark(self) -> str:
        """How the latest call ran, where that is worth a line, such as on cuBLAS; else empty."""
        return self._open().remark

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
        with self._lock:
            try:
                results = self._open().run(arrays)
            except RefusedError as error:
                given = ", ".join(
                    f"{spec.name} {list(array.shape)}"
                    for spec, array in zip(self.inputs, arrays, strict=True)
                )
                raise UsageError(
                    f"the model cannot run on {given}: {error}",
                    hint="its symbolic dimensions may not take these lengths",
                ) from error
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

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
        arrays = self._check(inputs)
        with self._lock:
            return self._open().profile(arrays, repeats)

    def close(self) -> None:
        """Free the weights and the code's memory; the model cannot be used afterwards."""
        with self._lock:
            if self._executor is not None:
                self._executor.close()
            self._executor = None

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

    def _open(self) -> Executor:
        if self._executor is None:
            raise UsageError("this model was closed", hint="load it again")
        return self._executor

    def _check(self, inputs: Mapping[str, npt.ArrayLike]) -> list[Array]:
        """The inputs in order, as arrays that fit their specs."""
        return self._fitting(inputs) or self._examined(inputs)

    def _fitting(self, inputs: Mapping[str, npt.ArrayLike]) -> list[Array]:
        """The inputs in order where they plainly fit, in a microsecond; else nothing."""
        if type(inputs) is not dict or len(inputs) != len(self._specs):
            return []
        arrays = []
        for name, dtype, shape in zip(self._specs, self._dtypes, self._shapes, strict=True):
            array = inputs.get(name)
            # A symbolic length equals no number, so such inputs are looked at more closely.
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return []
            arrays.append(array)
        return arrays

    def _examined(self, inputs: Mapping[str, npt.ArrayLike]) -> list[Array]:
        """The inputs in order, as arrays that fit their specs.

        Raises:
            UsageError: they do not.
        """
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
