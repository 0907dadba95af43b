"""One kernel alone on a device that TVM's own runtime does not reach: what the tuner measures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from bscompile.targets.base import Array


@dataclass(frozen=True)
class Times:
    """What a timer returns.

    Attributes:
        results: Seconds of one call, repeat by repeat.
    """

    results: list[float]


class LoneKernel(ABC):
    """A compiled kernel, called and timed as a tvm.runtime.Executable and its module are.

    Attributes:
        exact: Whether a measurement counts something and so says the same every time.
    """

    exact: ClassVar[bool] = False

    @abstractmethod
    def run(self, arrays: Sequence[Array], y: Array) -> Array:
        """Call it once.

        Args:
            arrays: Every argument before y.
            y: What y holds before.

        Returns:
            y afterwards.
        """

    @abstractmethod
    def times(self, arrays: Sequence[Array], number: int, repeat: int) -> list[float]:
        """Seconds of one call, from ``repeat`` runs of ``number`` calls; y is the last array."""

    def jit(self) -> LoneKernel:
        """It is loaded already."""
        return self

    def __getitem__(self, name: str) -> Callable[..., None]:
        if name != "kernel":
            raise KeyError(name)
        return self._call

    def time_evaluator(
        self, name: str, device: Any, number: int, repeat: int
    ) -> Callable[..., Times]:
        """A timer, with the signature of TVM's."""

        def timer(*tensors: Any) -> Times:
            return Times(self.times([tensor.numpy() for tensor in tensors], number, repeat))

        return timer

    def _call(self, *tensors: Any) -> None:
        *arrays, y = (tensor.numpy() for tensor in tensors)
        tensors[-1].copyfrom(self.run(arrays, y))


class CountedKernel(LoneKernel):
    """A kernel whose measure is a count, such as cycles, in seconds at a nominal rate.

    Running and counting are one thing: what a run took is told afterwards. Layers that differ in
    their pattern alone share a kernel, so that each has its own count.
    """

    exact = True

    @cached_property
    def _spent(self) -> dict[bytes, float]:
        """Digest of the arrays of a run -> what it took."""
        return {}

    @abstractmethod
    def count(self, arrays: Sequence[Array], y: Array) -> tuple[Array, float]:
        """(y afterwards, seconds of the call); arguments as of ``run``."""

    def run(self, arrays: Sequence[Array], y: Array) -> Array:
        """Call it once; what that took is kept."""
        result, self._spent[_digest(arrays)] = self.count(arrays, y)
        return result

    def times(self, arrays: Sequence[Array], number: int, repeat: int) -> list[float]:
        """The count of the run with these arrays, as often as it was asked for."""
        given = _digest(arrays[:-1])
        if given not in self._spent:
            self.run(arrays[:-1], arrays[-1])
        return [self._spent[given]] * repeat


def _digest(arrays: Sequence[Array]) -> bytes:
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()
