"""The onnx package's own backend tests, as cases for the road: small graphs with given answers.

Each node test comes as it is written and, where it feeds sizes, axes or bounds at run time that
exporters write as constants, once more with those as constants. The ``light_*`` networks (opset 9,
raised by onnx's version converter) are compared with onnxruntime on random images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper

#: Operators that the model families use, in the spellings of every exporter.
_FAMILY_OPERATORS = """
    Abs Add And ArgMax Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat
    Constant ConstantOfShape Conv Cos CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear
    Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
    Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual
    Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    RotaryEmbedding Round Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt
    Squeeze Sub Sum Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
FAMILY_OPERATORS = frozenset(_FAMILY_OPERATORS.split())

#: Inputs that an exporter writes as constants: operator -> positions.
_PARAMETERS = {
    **dict.fromkeys(("ConstantOfShape",), (0,)),
    **dict.fromkeys(("CumSum", "Expand", "OneHot", "Reshape", "Split", "Squeeze", "Tile"), (1,)),
    **dict.fromkeys(("TopK", "Trilu", "Unsqueeze"), (1,)),
    **dict.fromkeys(("Clip", "Dropout"), (1, 2)),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
}

#: Where this package's sums may round differently from numpy's; the tests' own rtol is 1e-3.
_ATOL = 1e-6


@dataclass(frozen=True)
class Case:
    """A model and what it must answer.

    Attributes:
        name: The onnx package's name; ``[constants]`` marks the second form.
        model: One node, or its function body.
        data: (inputs by name, wanted outputs in order) of each data set.
        rtol: The test's own relative tolerance.
        atol: The test's own absolute tolerance, at least 1e-6.
    """

    name: str
    model: onnx.ModelProto
    data: tuple[tuple[dict[str, Any], list[Any]], ...]
    rtol: float
    atol: float

    @property
    def operators(self) -> list[str]:
        """Types of its nodes, each once."""
        return list(dict.fromkeys(node.op_type for node in self.model.graph.node))

    @property
    def feeds_sizes(self) -> bool:
        """Whether sizes, axes or bounds, which exporters write as constants, are inputs."""
        return bool(_parameters(self.model.graph) & set(self.data[0][0]))

    @property
    def tested(self) -> str:
        """The test without its form: spelled out in simpler operators, sizes as constants."""
        return self.name.removesuffix("[constants]").removesuffix("_expanded")


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``equal``, ``declined`` with a reason, or ``wrong`` and how."""

    kind: str
    reason: str = ""


@cache
def node_cases() -> dict[str, Case]:
    """Every node test of opset 13 and newer, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests compute infinities on purpose
        tests = load_model_tests(kind="node")
    cases = (form for test in tests for form in _forms(test))
    return {case.name: case for case in cases}


def _forms(test: Any) -> Iterator[Case]:
    model = test.model
    names = [value.name for value in model.graph.input]
    given = [
        (
            dict(zip(names, (_plain(v) for v in inputs if v is not None), strict=False)),
            [_plain(v) for v in outputs],
        )
        for inputs, outputs in test.data_sets
    ]
    tolerance = {"rtol": test.rtol, "atol": max(test.atol, _ATOL)}
    yield Case(test.name, model, tuple(given), **tolerance)
    fixed = _parameters(model.graph) & set(names)
    if fixed and len(given) == 1:
        inputs, outputs = given[0]
        rest = {name: value for name, value in inputs.items() if name not in fixed}
        constant = _with_constants(model, {n: inputs[n] for n in fixed if n in inputs})
        yield Case(f"{test.name}[constants]", constant, ((rest, outputs),), **tolerance)


def _plain(value: Any) -> Any:
    """An input or output as an array; some tests give messages."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _parameters(graph: onnx.GraphProto) -> set[str]:
    """Values read only where a constant is usual."""
    usual, other = set(), set()
    for node in graph.node:
        positions = (1,) if node.op_type.startswith("Reduce") else _PARAMETERS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            (usual if position in positions else other).add(name)
    return usual - other - {""}


def _with_constants(model: onnx.ModelProto, values: dict[str, Any]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    keep = [value for value in changed.graph.input if value.name not in values]
    del changed.graph.input[:]
    changed.graph.input.extend(keep)
    for name, value in values.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return changed


def networks() -> dict[str, Path]:
    """The ``light_*`` networks, whose weights are constants so that they ship in kilobytes."""
    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return {path.stem: path for path in sorted(folder.glob("*.onnx"))}


def network_case(name: str) -> Case:
    """A whole network, opset raised to 20, with onnxruntime's answer to one random image."""
    import onnxruntime

    model = onnx.version_converter.convert_version(onnx.load(networks()[name]), 20)
    _make_weights_differ(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in constants)
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, {image.name: x})
    return Case(name, model, (({image.name: x}, wanted),), 1e-3, 1e-6)


def _make_weights_differ(model: onnx.ModelProto) -> None:
    """Random weights instead of one number for each: a swapped axis must not go unseen."""
    rng = np.random.default_rng(1)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        shape = [int(size) for size in shapes[node.input[0]]]
        if len(shape) < 2:
            continue  # scales, biases, statistics: a negative variance is no network
        weight = rng.standard_normal(shape, np.float32)
        weight *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        del model.graph.node[index]


def outcome(case: Case, folder: Path) -> Outcome:
    """Build, save, load and run a case."""
    import bscompile
    from bscompile.errors import BscompileError

    try:
        artifact = bscompile.build(case.model, target="cpu").save(folder / "model.bsc")
        model = bscompile.load(artifact)
        results = [(list(model.run(inputs).items()), wanted) for inputs, wanted in case.data]
    except BscompileError as error:
        return Outcome("declined" if "\n" not in str(error) else "wrong", str(error))
    for got, wanted in results:
        for (name, array), want in zip(got, wanted, strict=True):
            reason = _difference(array, np.asarray(want), case)
            if reason:
                return Outcome("wrong", f"output {name}: {reason}")
    return Outcome("equal")


def _difference(got: np.ndarray, want: np.ndarray, case: Case) -> str:
    """How a result differs from what is wanted; empty where it does not."""
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return f"{got.dtype} {list(got.shape)} where {want.dtype} {list(want.shape)} is wanted"
    if want.dtype.kind != "f":
        return "" if np.array_equal(got, want) else f"{int((got != want).sum())} values differ"
    got, want = got.astype(np.float64), want.astype(np.float64)
    if np.allclose(got, want, case.rtol, case.atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        return f"error {np.nanmax(np.abs(got - want)):.3g}, NaN {np.isnan(got).sum()} times"
