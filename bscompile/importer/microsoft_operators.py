"""Operators of com.microsoft that onnxruntime's optimizer writes, in standard operators.

Each is the text of an ONNX function of the inputs that a node has; passes then see what the model
was before it was optimised for onnxruntime. See spell_out.py for how it takes the node's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import onnx

from bscompile.errors import ModelError
from bscompile.importer import microsoft_attention as attention

DOMAIN = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Call:
    """A node: its attributes, and its inputs by what they are.

    Attributes:
        node: The node.
        roles: What its inputs are called, in order.
        types: Of the graph's values, by name.
    """

    node: onnx.NodeProto
    roles: tuple[str, ...]
    types: Mapping[str, onnx.TypeProto]

    @property
    def inputs(self) -> dict[str, str]:
        """Role -> value, of those that it has."""
        pairs = zip(self.roles, self.node.input, strict=False)
        return {role: name for role, name in pairs if name}

    def has(self, role: str) -> bool:
        """Whether there is such an input."""
        return role in self.inputs

    def dims(self, role: str) -> list[Any]:
        """The shape of an input, symbols by name; [] where it is not known."""
        found = self.types.get(self.inputs.get(role, ""))
        shape = None if found is None else found.tensor_type.shape
        return [] if shape is None else [d.dim_value or d.dim_param for d in shape.dim]

    def rank(self, role: str) -> int | None:
        """The number of axes of an input, None where it is not known."""
        found = self.types.get(self.inputs.get(role, ""))
        known = found is not None and found.tensor_type.HasField("shape")
        return len(self.dims(role)) if known else None

    def _given(self, name: str, otherwise: Any) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return otherwise

    def number(self, name: str, otherwise: int = 1) -> int:
        """An attribute."""
        return int(self._given(name, otherwise))

    def real(self, name: str, otherwise: float) -> float:
        """An attribute."""
        return float(self._given(name, otherwise))

    def ints(self, name: str) -> list[int]:
        """An attribute, [] where it is not given."""
        return [int(v) for v in self._given(name, ())]

    def refuse(self, what: str) -> NoReturn:
        """Say that the node has what is not supported."""
        raise ModelError(
            f"node {self.node.name or self.node.op_type!r} ({DOMAIN} {self.node.op_type}): "
            f"{what} is not supported",
            hint="export the model without onnxruntime's optimizer",
        )


@dataclass(frozen=True)
class Spelling:
    """One operator.

    Attributes:
        inputs: Roles, in order; what is not named is refused.
        text: The function's body, which makes ``y``, and others of ``outputs``.
        outputs: What can be asked for besides ``y``, by place.
        refused: Attributes that must be 0 where they are given.
    """

    inputs: tuple[str, ...]
    text: Callable[[Call], str]
    outputs: Mapping[int, str]
    refused: tuple[str, ...] = ()


def _bias_gelu(call: Call) -> str:
    return "sum = Add(x, bias)  y = Gelu(sum)"


def _gelu(call: Call) -> str:
    return "y = Gelu(x)"


def _fast_gelu(call: Call) -> str:
    lead = "sum = Add(x, bias)" if call.has("bias") else "sum = Identity(x)"
    return f'{lead}  y = Gelu <approximate = "tanh"> (sum)'


def _quick_gelu(call: Call) -> str:
    alpha = call.real("alpha", 1.702)
    return (
        f"alpha = Constant <value_float = {alpha!r}> ()  wide = Mul(x, alpha)"
        "  gate = Sigmoid(wide)  y = Mul(x, gate)"
    )


def _summed(call: Call) -> str:
    lead = "added = Add(x, bias)" if call.has("bias") else "added = Identity(x)"
    return f"{lead}  sum = Add(added, skip)"


def _skip_layer_norm(call: Call) -> str:
    epsilon = call.real("epsilon", 1e-12)
    beta = ", beta" if call.has("beta") else ""
    norm = f"LayerNormalization <axis = -1, epsilon = {epsilon!r}> (sum, gamma{beta})"
    return f"{_summed(call)}  y = {norm}"


def _skip_rms_norm(call: Call) -> str:
    epsilon = call.real("epsilon", 1e-12)
    return (
        f"{_summed(call)}  square = Mul(sum, sum)  last = Constant <value_ints = [-1]> ()"
        f"  mean = ReduceMean <keepdims = 1> (square, last)"
        f"  epsilon = Constant <value_float = {epsilon!r}> ()  safe = Add(mean, epsilon)"
        "  root = Sqrt(safe)  unit = Div(sum, root)  y = Mul(unit, gamma)"
    )


def _fused_matmul(call: Call) -> str:
    lines = []
    for name, key, batch in (("a", "transA", "transBatchA"), ("b", "transB", "transBatchB")):
        rank = call.rank(name)
        if call.number(batch, 0):
            call.refuse(batch)
        if call.number(key, 0) and rank is None:
            call.refuse(f"{key} of a value of unknown rank")
        perm = [*range((rank or 2) - 2), (rank or 2) - 1, (rank or 2) - 2]
        turn = f"Transpose <perm = {perm}> ({name})"
        lines.append(f"{name}1 = {turn if call.number(key, 0) else f'Identity({name})'}")
    alpha = call.real("alpha", 1.0)
    lines.append(f"alpha = Constant <value_float = {alpha!r}> ()  p = MatMul(a1, b1)")
    return "  ".join([*lines, "y = Mul(p, alpha)" if alpha != 1.0 else "y = Identity(p)"])


_QKV = ("x", "weight", "bias")
_ROTARY = ("do_rotary", "past_present_share_buffer")
_NORM_OUTPUTS = {3: "sum"}
SPELLINGS = {
    "Attention": Spelling((*_QKV, "mask", "", "more"), attention.attention, {}, _ROTARY),
    "QAttention": Spelling(
        (*_QKV, "x_scale", "weight_scale", "mask", "x_zero", "weight_zero"),
        attention.quantized_attention, {}, _ROTARY,
    ),
    "MultiHeadAttention": Spelling(
        ("query", "key", "value", "bias", "mask", "more"), attention.multi_head_attention, {}
    ),
    "BiasGelu": Spelling(("x", "bias"), _bias_gelu, {}),
    "Gelu": Spelling(("x",), _gelu, {}),
    "FastGelu": Spelling(("x", "bias"), _fast_gelu, {}),
    "QuickGelu": Spelling(("x",), _quick_gelu, {}),
    "SkipLayerNormalization": Spelling(
        ("x", "skip", "gamma", "beta", "bias"), _skip_layer_norm, _NORM_OUTPUTS
    ),
    "SkipSimplifiedLayerNormalization": Spelling(
        ("x", "skip", "gamma", "bias"), _skip_rms_norm, _NORM_OUTPUTS
    ),
    "FusedMatMul": Spelling(("a", "b"), _fused_matmul, {}),
}  # fmt: skip


def function_of(
    node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], opset: int
) -> onnx.FunctionProto:
    """The function that stands for a node; its inputs and outputs are those that the node has.

    Raises:
        ModelError: the node has something that is not supported.
    """
    spelling = SPELLINGS[node.op_type]
    call = Call(node, spelling.inputs, types)
    for place, name in enumerate(node.input):
        if name and (place >= len(spelling.inputs) or not spelling.inputs[place]):
            call.refuse(f"input {place} ({name!r})")
    for key in spelling.refused:
        if call.number(key, 0):
            call.refuse(key)
    outputs = []
    for place, name in enumerate(node.output):
        if name and place and place not in spelling.outputs:
            call.refuse(f"output {place} ({name!r})")
        if name:
            outputs.append(spelling.outputs.get(place, "y"))
    return onnx.parser.parse_function(
        f'<domain: "local", opset_import: ["": {opset}]> {node.op_type} '
        f"({', '.join(call.inputs)}) => ({', '.join(outputs)}) {{ {spelling.text(call)} }}"
    )
