"""ONNX Runtime as the reference: the same inputs, the same number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.artifact.manifest import TensorSpec
from bscompile.errors import ModelError
from bscompile.files import check_readable

Array = npt.NDArray[Any]


class Reference:
    """An ONNX model opened by ONNX Runtime.

    Attributes:
        inputs: Names of what it takes, in the order of its file.
        outputs: Names of what it gives.
    """

    def __init__(self, path: str | Path, threads: int) -> None:
        """Open a model.

        Args:
            path: The ONNX file.
            threads: Threads inside one operator.

        Raises:
            StorageError: the file cannot be opened.
            ModelError: ONNX Runtime refuses the file.
        """
        check_readable(path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings about a model are not ours to show
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its error classes have no common public base
            raise ModelError(f"{path}: onnxruntime refuses it, {_first_line(error)}") from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.outputs = tuple(entry.name for entry in self._session.get_outputs())

    def check_contract(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Refuse to compare with a model that has other inputs or outputs.

        Raises:
            ModelError: the names differ.
        """
        for what, ours, theirs in (
            ("inputs", [spec.name for spec in inputs], self.inputs),
            ("outputs", [spec.name for spec in outputs], self.outputs),
        ):
            if set(ours) != set(theirs):
                raise ModelError(
                    f"the artifact has the {what} {', '.join(ours)}, "
                    f"the ONNX model has {', '.join(theirs)}",
                    hint="compare with the model that it was built from",
                )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs.

        Raises:
            ModelError: ONNX Runtime cannot run the model on these inputs.
        """
        try:
            results = self._session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime cannot run it, {_first_line(error)}") from error
        return {
            name: np.asarray(result) for name, result in zip(self.outputs, results, strict=True)
        }


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
