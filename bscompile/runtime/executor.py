"""What runs the code of an artifact: one executor for each kind of code, found by its name.

A new kind of code is one file here and one line in EXECUTORS.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from bscompile.artifact import Artifact
from bscompile.errors import ArtifactError, UsageError

Array = npt.NDArray[Any]

#: The manifest's ``loader`` -> the module that exports EXECUTOR, a subclass of Executor.
EXECUTORS = {
    "vm": "bscompile.runtime.vm",
    "systolic": "bscompile.runtime.systolic",
    "webgpu": "bscompile.runtime.webgpu",
    "opencl": "bscompile.runtime.opencl",
    "native": "bscompile.runtime.native",
    "cuda": "bscompile.runtime.cuda",
}


class RefusedError(Exception):
    """The code itself found these inputs impossible, such as a length its reshapes cannot split."""


class Executor(ABC):
    """Code and weights, ready to be called.

    The constructor checks whatever the code needs of this machine before anything of it runs.

    Args:
        artifact: As read; its members hold the code.
        threads: Worker threads to use, for code that has any.

    Attributes:
        stand_in: What runs the code here in place of the device that it is made for, such as an
            emulator: its times say nothing of that device. Empty for the device itself.
        remark: How the latest call ran, where a user may want to know: a line, or empty.

    Raises:
        ArtifactError: the code does not fit the manifest, this machine or what is installed.
        TargetError: a device or library that it needs is missing.
    """

    stand_in: str = ""

    @property
    def remark(self) -> str:
        """See the attributes."""
        return ""

    @abstractmethod
    def __init__(self, artifact: Artifact, threads: int) -> None: ...

    @abstractmethod
    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute the outputs.

        Args:
            inputs: One array for each input of the manifest, in its order; they fit its specs
                but may lie in memory in any way. They are not changed.

        Returns:
            One array for each output of the manifest, in its order; the arrays are the caller's.

        Raises:
            RefusedError: the code cannot work with the lengths of the symbolic dimensions.
        """

    def profile(self, inputs: Sequence[Array], repeats: int) -> list[tuple[str, float]]:
        """(kernel, median seconds) of each kernel call, in the order in which they run.

        Raises:
            UsageError: this kind of code does not tell.
        """
        raise UsageError("the kernels of this kind of artifact cannot be timed one by one")

    @abstractmethod
    def close(self) -> None:
        """Free the weights and the device; ``run`` is not called afterwards."""


def open_executor(artifact: Artifact, threads: int) -> Executor:
    """The executor that the artifact's manifest asks for.

    Raises:
        ArtifactError: this version has none of that name, or the code does not fit.
        TargetError: a device or library that it needs is missing.
    """
    loader = artifact.manifest.loader
    if loader not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise ArtifactError(f"made for the loader {loader!r}, this runtime has {known}")
    kind: type[Executor] = importlib.import_module(EXECUTORS[loader]).EXECUTOR
    return kind(artifact, threads)
