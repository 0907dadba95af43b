"""Walk an ONNX graph and emit Relax, one converter call per node.

The converters are TVM's own (``tvm.relax.frontend.onnx``) except where ours replace them: see
converters.py. The walk is ours because TVM's ignores operator domains, embeds or re-serialises
weights, and forgets what it knows about sizes.

Weights become parameters of ``main`` in order of first use; only small tensors (shapes, axes,
scalars) are embedded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tvm import relax, tirx

from bscompile.errors import BscompileError, ModelError
from bscompile.passes.graph import static_shape
from bscompile.sizes import Known, evaluate, known, simplified
from bscompile.targets.base import TargetContext
from bscompile.targets.lowering.limits import parameter_limit
from bscompile.targets.lowering.lowered import Lowered, TensorSpec
from bscompile.targets.lowering.shape_values import TIR, plain

Array = npt.NDArray[Any]

#: Floating constants up to this size are embedded: scales, epsilons, resize factors.
MAX_EMBEDDED_FLOATS = 8


@dataclass(frozen=True)
class NodeView:
    """One node as a converter sees it.

    Attributes:
        node: The ONNX node.
        importer: Where its inputs are looked up and new code is emitted.
        attributes: Plain values in the spelling that TVM's converters take (strings as bytes).
        opset: Version of the node's domain.
    """

    node: ir.Node
    importer: Importer
    attributes: dict[str, Any]
    opset: int

    @property
    def standard_opset(self) -> int:
        """Version of the standard domain, which TVM's converters go by."""
        return int(self.importer.model.opset_imports.get("", 1))

    @property
    def bb(self) -> relax.BlockBuilder:
        """The builder that code is emitted to."""
        return self.importer.bb

    def has(self, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def expr(self, index: int) -> Any:
        """An input as a tensor expression, None when it is absent."""
        value = self.node.inputs[index] if self.has(index) else None
        return None if value is None else self.importer.expr(value)

    def known(self, index: int) -> Known | None:
        """An input's value where it is known while compiling."""
        value = self.node.inputs[index] if self.has(index) else None
        return None if value is None else self.importer.known(value)


@dataclass
class Importer:
    """The state of one walk.

    Attributes:
        model: Checked by support.py, its functions inlined.
        context: The target that kernels are built for.
        release_weights: Whether a weight leaves the model when the last node that reads it is
            converted.
        bb: The Relax builder.
        parameters: Variables of ``main``: the inputs, then one for each entry of ``arrays``.
        arrays: (name, array) of the parameters after the inputs.
        shared: What several nodes use, such as packed weights, by any hashable key.
    """

    model: ir.Model
    context: TargetContext
    release_weights: bool = False
    bb: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    parameters: list[relax.Var] = field(default_factory=list)
    arrays: list[tuple[str, Array]] = field(default_factory=list)
    shared: dict[Any, Any] = field(default_factory=dict)
    _exprs: dict[ir.Value, Any] = field(default_factory=dict)
    _known: dict[ir.Value, Known] = field(default_factory=dict)
    _sizes: dict[str, tirx.Var] = field(default_factory=dict)
    _converted: set[ir.Node] = field(default_factory=set)

    def run(self) -> Lowered:
        """Convert the whole graph.

        Raises:
            ModelError: an input has no shape, or a node cannot be converted.
        """
        graph = self.model.graph
        data_inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        for value in data_inputs:
            self._exprs[value] = self._input_variable(value)
            self.parameters.append(self._exprs[value])
        # The builder keeps this very list, so parameters may still be added during the walk.
        with self.bb.function("main", params=self.parameters), self._tidy():
            with self.bb.dataflow():
                for node in graph:
                    self._convert(node)
                    self._release(node)
                results = [self.expr(v) for v in graph.outputs]
                output = results[0] if len(results) == 1 else relax.Tuple(results)
                output = self.bb.emit_output(output)
            self.bb.emit_func_output(output)
        module = self.bb.get()
        module["main"] = module["main"].with_attr("num_input", len(data_inputs))
        return Lowered(
            module,
            tuple(self.arrays),
            tuple(_spec(v, self._exprs[v]) for v in data_inputs),
            tuple(_spec(v, e) for v, e in zip(graph.outputs, results, strict=True)),
        )

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        """End the builder's open block where an error ends the walk: it would complain aloud."""
        try:
            yield
        except BaseException:
            self.bb._end_block()
            raise

    def parameter(self, name: str, array: Array) -> relax.Var:
        """A new parameter of ``main`` that is called with ``array``."""
        taken = {n for n, _ in self.arrays}
        fresh, count = name, 1
        while fresh in taken:
            fresh, count = f"{name}.{count}", count + 1
        var = relax.Var(_identifier(fresh), relax.TensorType(array.shape, array.dtype.name))
        self.parameters.append(var)
        self.arrays.append((fresh, array))
        return var

    def known(self, value: ir.Value) -> Known | None:
        """The value of a tensor that is known while compiling."""
        if value not in self._known and _is_empty(value):
            shape, dtype = static_shape(value), value.dtype
            assert shape is not None
            assert dtype is not None
            self._known[value] = Known(np.empty(shape, object), dtype.numpy().name)
        if value not in self._known:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or not _is_small(tensor):
                return None
            result = known(tensor.numpy().astype(object), tensor.dtype.numpy().name)
            if result is None:
                return None
            self._known[value] = result
        return self._known[value]

    def _is_known(self, value: ir.Value) -> bool:
        # Larger constants than shapes are known as well, such as the values of a OneHot.
        return self.known(value) is not None or ir.convenience.get_const_tensor(value) is not None

    def expr(self, value: ir.Value) -> Any:
        """A tensor expression for any value: computed, known, or a weight."""
        if value not in self._exprs:
            self._exprs[value] = self._materialise(value)
        return self._exprs[value]

    def _materialise(self, value: ir.Value) -> Any:
        constant = self.known(value)
        if constant is not None and constant.array.size:
            return self.tensor_of(constant)
        if constant is not None:  # TVM cannot store a constant without elements
            return self.parameter(value.name or "empty", constant.numpy())
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            raise ModelError(f"value {value.name!r} is used before anything computes it")
        return self.parameter(value.name or "constant", tensor.numpy())

    def tensor_of(self, constant: Known) -> Any:
        """A known tensor as a Relax expression."""
        if constant.is_constant:
            return relax.const(constant.numpy(), constant.dtype)
        sizes = self.bb.emit(relax.op.shape_to_tensor(relax.ShapeExpr(constant.ints())))
        if constant.array.ndim != 1:
            sizes = self.bb.emit(relax.op.reshape(sizes, constant.array.shape))
        if constant.dtype != "int64":
            sizes = self.bb.emit(relax.op.astype(sizes, constant.dtype))
        return sizes

    def _convert(self, node: ir.Node) -> None:
        from bscompile.targets.lowering import channels_last
        from bscompile.targets.lowering.support import converter_of

        if node.op_type == "Constant" and node.domain == "":
            return  # read where it is used
        opset = self.model.opset_imports.get(node.domain, 1)
        try:
            view = NodeView(node, self, _attributes(node), opset)
            if self._convert_known(view):
                return
            if all(_is_empty(value) for value in node.outputs if value.name):
                return  # nothing to compute: known wherever it is read
            self._check_limits(node)
            result = channels_last.convert(view, converter_of(node, opset))
        except BscompileError:
            raise
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ModelError(
                f"node {node.name or node.outputs[0].name!r} ({node.op_type}, opset {opset}) "
                f"cannot be compiled: {reason.strip() or type(error).__name__}"
            ) from error
        self._bind(node, result)

    def _check_limits(self, node: ir.Node) -> None:
        limit = parameter_limit(node, self._is_known) if node.domain == "" else None
        if limit:
            raise ValueError(limit)

    def _release(self, node: ir.Node) -> None:
        """Let go of the weights that no further node reads; kernels hold them packed."""
        self._converted.add(node)
        if not self.release_weights:
            return
        for value in node.inputs:
            if value is None or not value.is_initializer() or value.is_graph_output():
                continue
            if all(use.node in self._converted for use in value.uses()):
                value.const_value = None

    def _convert_known(self, view: NodeView) -> bool:
        """Evaluate a node on known inputs now; whether that worked."""
        node = view.node
        if node.domain != "":
            return False
        if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
            results = _shape_of(view)
        else:
            inputs = [None if v is None else self.known(v) for v in node.inputs]
            if any(k is None and v is not None for k, v in zip(inputs, node.inputs, strict=True)):
                return False
            results = evaluate(node.op_type, inputs, view.attributes, TIR)
        if results is None:
            return False
        for value, result in zip(node.outputs, results, strict=False):
            self._known[value] = result
        return True

    def _bind(self, node: ir.Node, result: Any) -> None:
        if isinstance(result, Known):
            self._known[node.outputs[0]] = result
            return
        if not isinstance(result, (tuple, list)):
            result = self.bb.normalize(result)
            if isinstance(result, relax.Tuple):
                result = list(result.fields)
            elif isinstance(result.ty, relax.TupleType):
                var = self.bb.emit(result)
                result = [relax.TupleGetItem(var, i) for i in range(len(result.ty.fields))]
            else:
                result = [result]
        for value, expr in zip(node.outputs, result, strict=False):
            if value.name:  # an empty name marks an output that nobody wants
                expr = self.bb.normalize(expr)
                self._exprs[value] = expr if isinstance(expr, relax.Var) else self.bb.emit(expr)

    def _input_variable(self, value: ir.Value) -> relax.Var:
        if value.shape is None or value.dtype is None:
            raise ModelError(
                f"input {value.name!r} has no type and shape; export the model with both"
            )
        sizes: list[Any] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                sizes.append(tirx.const(dim, "int64"))
            else:
                name = dim.value or f"{value.name}_{axis}"
                size = self._sizes.setdefault(name, tirx.Var(_identifier(name), "int64"))
                sizes.append(size)
        dtype = value.dtype.numpy().name
        return relax.Var(_identifier(value.name or "input"), relax.TensorType(sizes, dtype))


def _shape_of(view: NodeView) -> tuple[Known, ...] | None:
    """The output of Shape or Size, where the input's rank is known."""
    constant = view.known(0)
    if constant is None:
        shape = view.expr(0).ty.shape
        if shape is None:
            return None
        sizes = list(shape.values)
    else:
        sizes = list(constant.array.shape)
    if view.node.op_type == "Size":
        total: Any = 1
        for size in sizes:
            total = total * size
        result = known(total, "int64")
    else:
        window = slice(view.attributes.get("start", 0), view.attributes.get("end"))
        picked = np.empty(len(sizes[window]), dtype=object)
        picked[:] = sizes[window]
        result = known(picked, "int64")
    return None if result is None else (simplified(result, TIR),)


def _is_empty(value: ir.Value) -> bool:
    """Whether a value has no elements, whatever the inputs are."""
    return value.dtype is not None and 0 in (static_shape(value) or ())


def _is_small(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype.is_floating_point():
        return tensor.size <= MAX_EMBEDDED_FLOATS and tensor.dtype.itemsize >= 2
    return tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL


def _attributes(node: ir.Node) -> dict[str, Any]:
    """Attributes as TVM's converters spell them."""
    plain: dict[str, Any] = {
        "tvm_custom": {"name": node.name or "", "num_outputs": len(node.outputs)}
    }
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.STRING:
            plain[name] = attribute.as_string().encode()
        elif attribute.type == ir.AttributeType.STRINGS:
            plain[name] = tuple(s.encode() for s in attribute.as_strings())
        elif attribute.type == ir.AttributeType.TENSOR:
            plain[name] = ir.to_proto(attribute.as_tensor())
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
            plain[name] = tuple(attribute.value)
        elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT):
            plain[name] = attribute.value
        else:
            raise ModelError(
                f"node {node.name!r} ({node.op_type}): attribute {name} holds a "
                f"{attribute.type.name.lower()}, which cannot be compiled"
            )
    return plain


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"v_{cleaned}"


def _spec(value: ir.Value, expr: Any) -> TensorSpec:
    shape: Sequence[Any] = [] if expr.ty.shape is None else expr.ty.shape.values
    sizes = tuple(int(d.value) if isinstance(d, tirx.IntImm) else plain(d) for d in shape)
    return TensorSpec(value.name or "", sizes, str(expr.ty.dtype))
