"""Are an artifact's results those of its ONNX model? Compared with ONNX Runtime.

Both compute in the same precision and round differently, so results differ by rounding. The
tolerance for an output is

    16 eps sqrt(K) scale

with eps the rounding unit of the narrowest floating type in the model, K the longest sum (the
largest inner dimension of its linear layers, at least 64), and scale the largest magnitude in the
reference's output: the error of K rounded products, a few times over for the layers in between.
Where layers run in a narrower precision than the model's, the results are not the model's any
more, by the user's choice. What was lost is stated then, and the tolerance grows by

    3 step sqrt(L) scale

with step the coarsest precision's (2⁻⁷ for bfloat16, 2⁻¹⁰ for float16 and tf32, 1/127 for int8)
and L the number of such layers.
Integers and booleans must be equal, and NaN and infinities must be in the same places.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile import runtime
from bscompile.artifact import REPORT
from bscompile.errors import ModelError, UsageError, VerificationError
from bscompile.reference import Reference
from bscompile.report import Report
from bscompile.samples import integer_limits, make_inputs, symbols_of

Array = npt.NDArray[Any]

_FACTOR = 16
_SHORTEST_SUM = 64
_NARROW_FACTOR = 3
_STEPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "tf32": 2.0**-10, "int8": 1 / 127}


@dataclass(frozen=True)
class Comparison:
    """One output of one sample.

    Attributes:
        sample: From 0.
        output: Its name.
        lengths: Symbolic dimension -> length in this sample.
        error: Largest |got - wanted|; infinite where NaN or infinities disagree.
        mean: Mean |got - wanted| where both are finite.
        scale: Largest |wanted|.
        tolerance: What it may be.
        index: Where the largest error is.
        got: The value there.
        wanted: The reference's.
    """

    sample: int
    output: str
    lengths: dict[str, int]
    error: float
    tolerance: float
    index: tuple[int, ...]
    got: float
    wanted: float
    mean: float = 0.0
    scale: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def badness(self) -> float:
        """Error over tolerance; more than one fails."""
        return self.error / self.tolerance if self.tolerance else math.inf * bool(self.error)


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        comparisons: Every output of every sample.
        skipped: Why samples were left out: sizes that the model itself refuses.
        formula: The tolerance's, with its numbers.
        dtypes: Precisions narrower than the model's that layers run in, with their number.
        stand_in: What ran it in place of the device that it is made for; empty for that device.
    """

    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...]
    formula: str
    dtypes: Mapping[str, int] = field(default_factory=dict)
    stand_in: str = ""

    @property
    def lost(self) -> str:
        """What the narrower precisions cost, for people; empty where there are none."""
        if not self.dtypes:
            return ""
        layers = ", ".join(f"{count} in {name}" for name, count in self.dtypes.items())
        most = max(self.comparisons, key=lambda entry: _share(entry.error, entry.scale))
        mean = max(self.comparisons, key=lambda entry: _share(entry.mean, entry.scale))
        return (
            f"accuracy lost ({layers}): at most {_share(most.error, most.scale):.3%} and on "
            f"average {_share(mean.mean, mean.scale):.3%} of the largest value "
            f"(max error {most.error:.3g}, mean error {mean.mean:.3g})"
        )

    @property
    def passed(self) -> bool:
        """Whether every output of every sample is within its tolerance."""
        return all(entry.passed for entry in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison with the largest error over tolerance."""
        return max(self.comparisons, key=lambda entry: entry.badness)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an infinite error becomes null."""
        entries = [asdict(entry) | {"passed": entry.passed} for entry in self.comparisons]
        for entry in entries:
            for key in ("error", "got", "wanted"):
                entry[key] = entry[key] if math.isfinite(entry[key]) else None
        worst = self.comparisons.index(self.worst)
        return {
            "passed": self.passed,
            "worst": entries[worst],
            "tolerance": self.formula,
            "skipped": list(self.skipped),
            "dtypes": dict(self.dtypes),
            "lost": self.lost,
            "stand_in": self.stand_in,
            "comparisons": entries,
        }


def verify(
    artifact: str | Path,
    model: str | Path,
    *,
    samples: int = 4,
    seed: int = 0,
    lengths: Mapping[str, int] | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare an artifact with the ONNX model that it was built from.

    Symbolic dimensions are 1 in the first sample, then odd and even sizes at random.

    Args:
        artifact: The .bsc file.
        model: The ONNX file.
        samples: Random inputs to try.
        seed: Of the random inputs.
        lengths: Symbolic dimension -> length, to fix some.
        threads: Worker threads for both.
        progress: Called with one line at the start of each phase.

    Raises:
        VerificationError: the artifact cannot run what onnxruntime runs.
        BscompileError: a file is broken, the two are not the same model, or no sample ran.
    """
    say = progress or (lambda line: None)
    if samples < 1:
        raise UsageError(f"samples: at least 1 is wanted, got {samples}")
    say("loading the artifact")
    compiled = runtime.load(artifact, threads=threads)
    say("loading the model into onnxruntime")
    reference = Reference(model, compiled.threads)
    reference.check_contract(compiled.inputs, compiled.outputs)
    graph = _read_graph(model)
    limits = integer_limits(graph)
    report = Report.from_json(compiled.members[REPORT])
    longest = max([_SHORTEST_SUM, *(layer.shape[1] for layer in report.layers)])
    eps = narrowest_eps(graph)
    dtypes = dict(Counter(la.dtype for la in report.layers if la.dtype in _STEPS))
    step, count = max((_STEPS[name] for name in dtypes), default=0.0), sum(dtypes.values())
    narrow = _NARROW_FACTOR * step * math.sqrt(count)
    rng = np.random.default_rng(seed)
    comparisons: list[Comparison] = []
    skipped: list[str] = []
    for sample in range(samples):
        chosen = {**_sample_lengths(symbols_of(compiled.inputs), sample, rng), **(lengths or {})}
        say(f"sample {sample + 1} of {samples} {_spell(chosen)}")
        inputs = make_inputs(compiled.inputs, chosen, rng, limits)
        try:
            wanted = reference.run(inputs)
        except ModelError as error:
            skipped.append(f"sample {sample}, {_spell(chosen)}: {error.message}")
            continue
        try:
            got = compiled.run(inputs)
        except UsageError as error:
            raise VerificationError(
                f"sample {sample} {_spell(chosen)}: onnxruntime runs it, but {error.message}"
            ) from error
        comparisons += [
            compare(sample, name, chosen, got[name], wanted[name], eps, longest, narrow)
            for name in got
        ]
    if not comparisons:
        raise ModelError(f"no sample could be run: {skipped[0]}", hint="fix sizes with --dim")
    formula = f"{_FACTOR} eps({eps:.3g}) sqrt({longest}) max|wanted|"
    if dtypes and _is_quantized(graph):
        dtypes.pop("int8", None)  # the model's own choice; only its rounding may flip
    if narrow:
        formula += f" + {_NARROW_FACTOR} step({step:.3g}) sqrt({count}) max|wanted|"
    return Verification(
        tuple(comparisons), tuple(skipped), formula, dtypes, stand_in=compiled.stand_in
    )


def _share(error: float, scale: float) -> float:
    return error / scale if scale else math.inf * bool(error)


def compare(
    sample: int,
    output: str,
    lengths: dict[str, int],
    got: Array,
    wanted: Array,
    eps: float,
    longest: int,
    narrow: float = 0.0,
) -> Comparison:
    """Compare one output; see the module's head for the tolerance.

    Args:
        sample: From 0.
        output: Its name.
        lengths: Symbolic dimension -> length in this sample.
        got: The artifact's.
        wanted: The reference's.
        eps: Rounding unit of the model's narrowest floating type.
        longest: Terms of the longest sum.
        narrow: Share of the scale that narrower precisions may lose.

    Raises:
        ModelError: shape or dtype differ.
    """
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ModelError(
            f"output {output} is {got.dtype}{list(got.shape)}, "
            f"the ONNX model gives {wanted.dtype}{list(wanted.shape)}",
            hint="compare with the model that it was built from",
        )
    if not got.size:
        return Comparison(sample, output, lengths, 0.0, 0.0, (), 0.0, 0.0)
    left, right = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(right)
    tolerance = 0.0
    if got.dtype.kind == "f":
        scale = float(np.abs(right[finite]).max(initial=0.0))
        # Outputs that are all zero may differ by what is zero in this precision.
        tolerance = (_FACTOR * eps * math.sqrt(longest) + narrow) * max(scale, eps)
    with np.errstate(invalid="ignore"):
        differences = np.abs(left - right)
    agree = (left == right) | (np.isnan(left) & np.isnan(right))
    both = finite & np.isfinite(left)
    mean = float(differences[both].mean()) if both.any() else 0.0
    differences = np.where(finite & np.isfinite(left), differences, np.where(agree, 0, np.inf))
    index = np.unravel_index(int(differences.argmax()), differences.shape)
    return Comparison(
        sample,
        output,
        lengths,
        float(differences[index]),
        tolerance,
        tuple(int(i) for i in index),
        float(left[index]),
        float(right[index]),
        mean,
        float(np.abs(right[finite]).max(initial=0.0)),
    )


def narrowest_eps(graph: Any) -> float:
    """The rounding unit of the narrowest floating type among inputs, outputs and weights."""
    import onnx

    values = [*graph.graph.input, *graph.graph.output]
    codes = {value.type.tensor_type.elem_type for value in values}
    codes |= {tensor.data_type for tensor in graph.graph.initializer}
    eps = {
        onnx.TensorProto.FLOAT16: float(np.finfo(np.float16).eps),
        onnx.TensorProto.FLOAT: float(np.finfo(np.float32).eps),
        onnx.TensorProto.DOUBLE: float(np.finfo(np.float64).eps),
    }
    present = [eps[code] for code in codes if code in eps]
    return max(present, default=eps[onnx.TensorProto.FLOAT])


def _is_quantized(graph: Any) -> bool:
    """Whether the model itself multiplies in eight bits."""
    return any(n.op_type in ("DequantizeLinear", "MatMulInteger") for n in graph.graph.node)


def _read_graph(path: str | Path) -> Any:
    import onnx

    # ONNX Runtime has read the file already, so it is whole.
    return onnx.load(str(path), load_external_data=False)


def _sample_lengths(symbols: list[str], sample: int, rng: np.random.Generator) -> dict[str, int]:
    """All ones first, then small sizes, then sizes around those of vectors and blocks."""
    if sample == 0:
        return dict.fromkeys(symbols, 1)
    high = 9 if sample == 1 else 40
    return {name: int(rng.integers(2, high)) for name in symbols}


def _spell(lengths: Mapping[str, int]) -> str:
    return f"({', '.join(f'{name}={length}' for name, length in lengths.items())})"
