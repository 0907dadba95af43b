"""Dense layers on the user's own cuBLAS, where that was measured to be faster on this device.

The artifact lists kernels whose weight lies row by row; its code calls each through a function
that is supplied here. Without cuBLAS that function is the kernel itself. With it, the first call
with so many rows (up to a power of two) tries both ways on random x: the results must agree, and
the faster one, the epilogue's own launch counted, is remembered. All run on TVM's current stream
and in a workspace that is there before, so that CUDA graphs hold them like any kernel.

``BSCOMPILE_CUBLAS`` in the environment: ``off`` never uses it, ``always`` wherever it is right,
and a path names the library. A library that fails, or is wrong, costs a line in ``remark``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bscompile.artifact.dense_layers import PREFIX
from bscompile.errors import ArtifactError, TargetError
from bscompile.runtime.cublas import WORKSPACE, Cublas, open_library
from bscompile.runtime.dense_trial import Trial

SWITCH = "BSCOMPILE_CUBLAS"


@dataclass(eq=False)
class Layer:
    """One kernel of dense layers, and what may stand in its place.

    Attributes:
        own: The kernel: (x, weight, ..., epilogue tensors, y).
        finish: The epilogue, (x, epilogue tensors, y); None where there is none.
        tensors: How many tensors that takes.
        chosen: Rows, as the power of two that they reach -> whether cuBLAS.
    """

    own: Callable[..., Any]
    finish: Callable[..., Any] | None
    tensors: int
    chosen: dict[int, bool] = field(default_factory=dict)


class DenseLayers:
    """The dense layers of one model.

    Args:
        member: What the artifact says of them.
        trial: How the two ways are compared on the device.

    Raises:
        ArtifactError: the member is broken.
        TargetError: the library that the user names cannot be loaded.
    """

    def __init__(self, member: bytes, trial: Trial) -> None:
        self._listed, self._trial = _read(member), trial
        self._layers: dict[str, Layer] = {}
        self._wanted = os.environ.get(SWITCH, "")
        self._cublas: Cublas | None = None
        self._failure = ""
        self._calls = self._taken = 0
        if self._listed and self._wanted not in ("off", "0"):
            self._open("" if self._wanted == "always" else self._wanted)

    @property
    def remark(self) -> str:
        """A line on how the latest call ran; empty where there is nothing to say."""
        if self._failure or self._cublas is None or not self._calls:
            return self._failure
        return f"{self._taken} of {self._calls} dense layers on cuBLAS {self._cublas.version}"

    def functions(self, module: Any) -> Mapping[str, Any]:
        """Name -> what the code of a loaded module calls under it.

        Raises:
            ArtifactError: it has no such kernel.
        """
        found = {}
        for name, about in self._listed.items():
            if name not in self._layers:
                finish = _function(module, about["epilogue"]) if about["epilogue"] else None
                self._layers[name] = Layer(_function(module, name), finish, about["tensors"])
            layer = self._layers[name]
            found[PREFIX + name] = self._either(layer) if self._usable else layer.own
        return found

    def begin(self) -> None:
        """A call of the whole model begins, whose layers ``remark`` counts."""
        self._calls = self._taken = 0

    def close(self) -> None:
        """Free the handle; nothing runs afterwards."""
        if self._cublas is not None:
            self._cublas.close()
        self._cublas = None

    # ------------------------------------------------------------ which way

    @property
    def _usable(self) -> bool:
        return self._cublas is not None and not self._failure

    def _either(self, layer: Layer) -> Callable[..., None]:
        def call(*tensors: Any) -> None:
            self._calls += 1
            reach = (int(tensors[0].shape[0]) - 1).bit_length()
            if self._usable and reach not in layer.chosen:
                layer.chosen[reach] = self._choose(layer, tensors)
            if self._usable and layer.chosen[reach]:
                try:
                    self._theirs(layer, *tensors)
                except Exception as error:  # the kernel says what is wrong with x, if anything is
                    self._give_up(str(error))
                else:
                    self._taken += 1
                    return
            layer.own(*tensors)

        return call

    def _theirs(self, layer: Layer, *tensors: Any) -> None:
        assert self._cublas is not None
        x, weight, *_, y = tensors
        self._cublas.linear(x, weight, y, self._trial.stream())
        if layer.finish is not None:
            layer.finish(x, *tensors[len(tensors) - 1 - layer.tensors :])

    def _choose(self, layer: Layer, tensors: tuple[Any, ...]) -> bool:
        try:
            given = (self._trial.random(tensors[0]), *tensors[1:])
            ways = (lambda: layer.own(*given), lambda: self._theirs(layer, *given))
            if wrong := self._trial.difference(*ways, x=given[0], y=given[-1]):
                self._give_up(wrong)
                return False
            if self._wanted == "always":
                return True
            ours, theirs = self._trial.seconds(*ways)
        except Exception as error:  # the library's, CUDA's, or whatever TVM raises without memory
            self._give_up(str(error))
            return False
        return theirs < ours

    # ------------------------------------------------------------ the library

    def _open(self, path: str) -> None:
        try:
            library = open_library(path)
        except OSError as error:
            if path:
                raise TargetError(
                    f"{SWITCH}: {path!r} cannot be loaded: {error}",
                    "give the path of libcublas.so, or off, or always",
                ) from error
            return  # nobody has promised that it is here
        try:
            self._cublas = Cublas(library, self._trial.empty((WORKSPACE,), "uint8"))
        except (RuntimeError, AttributeError) as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        """Use it no more; what graphs hold of it stays."""
        first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
        self._failure = f"cuBLAS is not used, since it failed here: {first}"


def _read(member: bytes) -> dict[str, Any]:
    try:
        listed = {
            str(name): {"epilogue": str(about["epilogue"]), "tensors": int(about["tensors"])}
            for name, about in json.loads(member or b"{}").items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError("its list of dense layers cannot be read") from error
    return listed


def _function(module: Any, name: str) -> Any:
    try:
        return module.get_function(name, query_imports=True)
    except (AttributeError, RuntimeError) as error:
        raise ArtifactError(f"its code has no kernel {name!r}") from error
