"""One kernel alone on a device that TVM's own runtime does not reach: what the tuner measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    Running and counting are one thing: what the last run took is what is told.
    """

    exact = True
    _spent: float = 0.0

    @abstractmethod
    def count(self, arrays: Sequence[Array], y: Array) -> tuple[Array, float]:
        """(y afterwards, seconds of the call); arguments as of ``run``."""

    def run(self, arrays: Sequence[Array], y: Array) -> Array:
        """Call it once; what that took is kept."""
        result, self._spent = self.count(arrays, y)
        return result

    def times(self, arrays: Sequence[Array], number: int, repeat: int) -> list[float]:
        """The count of the last run, as often as it was asked for."""
        if not self._spent:
            self.run(arrays[:-1], arrays[-1])
        return [self._spent] * repeat
