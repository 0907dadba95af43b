"""One measured candidate of one layer, as a value and as a line of JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from bscompile.targets.base import Config, Problem

FORMAT: Final = 1  # of the JSON lines
OK, WRONG, CRASHED, TIMEOUT = "ok", "wrong", "crashed", "timeout"
STATUSES: Final = (OK, WRONG, CRASHED, TIMEOUT)


@dataclass(frozen=True)
class TuningKey:
    """Everything that a measured time depends on, beside the candidate itself.

    Attributes:
        problem: The layer in the form in which it was recognised.
        pattern: Digest of where its weight is not zero; values do not change the time.
        target: Such as ``cpu``.
        isa: Instruction set variant.
        hardware: The exact machine, threads included.
        code: Version of the code generator.
    """

    problem: Problem
    pattern: str
    target: str
    isa: str
    hardware: str
    code: str

    @cached_property
    def digest(self) -> str:
        """Equal for equal keys, on any machine and in any process."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def machine(self) -> tuple[str, ...]:
        """What must agree for times to be comparable at all."""
        return self.target, self.isa, self.hardware, self.code


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run a layer.

    Attributes:
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        block: Execution block (bh, bw); (1, 1) for dense.
        template: Name of the kernel template.
        config: Its configuration.
        expected: Seconds by the cost model; not part of what makes two variants equal.
    """

    form: str
    block: tuple[int, int]
    template: str
    config: Config
    expected: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))

    def __reduce__(self) -> tuple[Any, ...]:  # mapping proxies do not pickle
        return Variant, (self.form, self.block, self.template, dict(self.config), self.expected)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variant) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[object, ...]:
        """What two equal variants share."""
        return self.form, self.block, self.template, tuple(sorted(self.config.items()))

    @property
    def label(self) -> str:
        """For people, such as ``block_sparse 16x8``."""
        return self.form if self.form == "dense" else f"{self.form} {self.block[0]}x{self.block[1]}"

    def __str__(self) -> str:
        config = ", ".join(f"{key} {value}" for key, value in self.config.items())
        return f"{self.label} by {self.template} ({config})"


@dataclass(frozen=True)
class TuningRecord:
    """What came of one candidate.

    Attributes:
        key: What the times depend on.
        variant: The candidate.
        status: ``ok``, ``wrong``, ``crashed`` or ``timeout``.
        seconds: Each measured time of one call.
        error: Largest difference to float64 over the largest value; None where nothing ran.
        detail: What went wrong.
        final: Measured in turns with the dense form and the other finalists.
        run: When the tuning began, as sortable text; times of one run are comparable.
    """

    key: TuningKey
    variant: Variant
    status: str
    seconds: tuple[float, ...] = ()
    error: float | None = None
    detail: str = ""
    final: bool = False
    run: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if not all(math.isfinite(time) and time > 0 for time in self.seconds):
            raise ValueError(f"seconds must be positive, got {list(self.seconds)}")
        if self.status == OK and not self.seconds:
            raise ValueError("a candidate that ran has a time")

    @property
    def time(self) -> float:
        """Seconds of one call, or infinity where it may not be chosen.

        The least of the rounds: what else the machine does can only add to a time.
        """
        return min(self.seconds) if self.status == OK else math.inf

    def to_json(self) -> str:
        """One line."""
        variant = {f.name: getattr(self.variant, f.name) for f in fields(Variant)}
        variant["config"] = dict(self.variant.config)
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        body |= {"format": FORMAT, "key": asdict(self.key), "variant": variant}
        return json.dumps(body, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> TuningRecord:
        """Read a line.

        Raises:
            ValueError: it is not a record of this format; the message says why.
        """
        try:
            body = json.loads(line)
            if body.pop("format") != FORMAT:
                raise ValueError("of another format version")
            key, variant = body.pop("key"), body.pop("variant")
            return cls(
                key=TuningKey(problem=_problem(key.pop("problem")), **_texts(key)),
                variant=_variant(variant),
                status=str(body.pop("status")),
                seconds=tuple(float(time) for time in body.pop("seconds")),
                error=None if body["error"] is None else float(body["error"]),
                detail=str(body["detail"]),
                final=bool(body["final"]),
                run=str(body["run"]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a tuning record, {type(error).__name__} {error}") from error


def _problem(body: dict[str, Any]) -> Problem:
    block, epilogue = _pair(body.pop("block")), tuple(str(step) for step in body.pop("epilogue"))
    return Problem(block=block, epilogue=epilogue, **body)


def _variant(body: dict[str, Any]) -> Variant:
    config: Mapping[str, Any] = body["config"]
    if not all(isinstance(value, int | str) for value in config.values()):
        raise ValueError(f"a configuration holds numbers and words, got {dict(config)}")
    return Variant(
        str(body["form"]),
        _pair(body["block"]),
        str(body["template"]),
        config,
        float(body["expected"]),
    )


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


def _texts(body: dict[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in body.items()}
