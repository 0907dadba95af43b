"""A layer spelled out as factors becomes one KroneckerMatMul.

    y = x Wᵀ,  W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ

is written in many ways: a loop over the terms (Reshape; MatMul by Bᵢ; MatMul by S∘Aᵢ; Add;
Reshape), stacked ("VecPar": one MatMul for all Bᵢ, Transpose, one for all S∘Aᵢ), Einsum of two or
three operands with any letters, from any exporter. No spelling is matched here. A region of the
graph that is linear in x [..., n] and ends in y [..., m] is evaluated on the rows of the identity,
which gives Wᵀ; random x then show that the region is y = x Wᵀ for every row; and the factors
are recovered from W.

Refuses: intermediate results that are read elsewhere; regions that mix rows; W that is no sum of
few Kronecker products, or so large that evaluating it costs too much. Bias and activation are
left to fuse_epilogues.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, LinearOp, make_node
from bscompile.formats import KroneckerSum
from bscompile.formats.detect import BlockPattern
from bscompile.formats.recover import recover_kronecker
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import constant, is_op, layer_name, replace
from bscompile.passes.linear_region import LinearRegion, NotLinear, regions_from

Array = npt.NDArray[Any]

_LARGEST_WEIGHT = 2**27  # entries; more are not evaluated
_DOUBLE_WEIGHT = 2**18  # entries up to which W is evaluated in float64, which takes longer
_WORK_ENTRIES = 2**21  # of x or y, per evaluated batch of rows


class RecogniseFactorized(GraphPass):
    """Sub-graphs of factors -> KroneckerMatMul."""

    def rewrite(self, model: ir.Model) -> bool:
        """Try every value that some Reshape takes apart."""
        graph = model.graph
        nodes = list(graph)
        order = {node: place for place, node in enumerate(nodes)}
        tried: set[ir.Value] = set()
        for node in nodes:
            x = node.inputs[0] if is_op(node, "Reshape") and node.graph is graph else None
            if x is None or constant(x) is not None:
                continue
            if x not in tried:
                tried.add(x)
                if self._try(graph, x, nodes, order):
                    continue
            for joined in _joinable(x):
                if node.graph is graph and self._try_flattened(
                    graph, x, joined, node, nodes, order
                ):
                    break
        return bool(self.applied)

    def _try_flattened(
        self,
        graph: ir.Graph,
        x: ir.Value,
        joined: int,
        reshape: ir.Node,
        nodes: list[ir.Node],
        order: dict[ir.Node, int],
    ) -> bool:
        """Try x with its last ``joined`` axes as one.

        Exporters merge the Reshape that joins attention heads, or flattens an image, with the
        one that takes a layer's input apart.
        """
        assert x.shape is not None
        lead = x.shape[:-joined]
        size = math.prod(_tail(x.shape, joined))
        target = ir.tensor(np.array([0] * len(lead) + [-1]), name=f"{x.name}.joined")
        shape = ir.Value(name=target.name, const_value=target)
        shape.shape, shape.dtype = ir.Shape([len(lead) + 1]), ir.DataType.INT64
        join = ir.Node("", "Reshape", [x, shape])
        flat = join.outputs[0]
        flat.name, flat.type = f"{x.name}.flat", x.type
        flat.shape = ir.Shape([*lead, size])
        reshape.replace_input_with(0, flat)
        if self._try(graph, flat, nodes, order):
            graph.register_initializer(shape)
            graph.insert_before(next(iter(flat.uses())).node, join)
            return True
        reshape.replace_input_with(0, x)
        join.replace_input_with(0, None)
        return False

    def _try(
        self, graph: ir.Graph, x: ir.Value, nodes: list[ir.Node], order: dict[ir.Node, int]
    ) -> bool:
        """Rewrite the nearest region from x that is a factorized layer, if there is one."""
        if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) < 2:
            return False
        if not isinstance(x.shape[-1], int):
            return False
        for region in regions_from(x, nodes, order):
            if region.factors < 2 or any(node.graph is None for node in region.nodes):
                continue
            probe = Probe(region)
            try:
                out = probe.outputs()
            except NotLinear:
                continue
            if out is None:
                continue
            name = layer_name(next(n for n in region.nodes if is_op(n, "MatMul", "Einsum", "Gemm")))
            found = region.leak() or probe.factorize(out)
            if isinstance(found, str):
                self.refused_for(name, f"looks factorized, but {found}")
            else:
                self._rewrite(graph, name, region, found, probe)
                return True
        return False

    def _rewrite(
        self, graph: ir.Graph, name: str, region: LinearRegion, factors: KroneckerSum, probe: Probe
    ) -> None:
        assert region.x.shape is not None
        op = LinearOp(name, factors)
        found = found_kronecker(factors)
        if probe.rearranged is not None:
            made = make_node(op, graph, region.x)
            y = made.outputs[0]
            y.name, y.type = f"{name}.product", region.y.type
            y.shape = ir.Shape([*region.x.shape[:-1], factors.shape[0]])
            target = ir.tensor(np.array(probe.rearranged), name=f"{name}.rows")
            shape = ir.Value(name=target.name, const_value=target)
            shape.shape, shape.dtype = ir.Shape([2]), ir.DataType.INT64
            graph.register_initializer(shape)
            last = ir.Node("", "Reshape", [y, shape])
            last.outputs[0].type, last.outputs[0].shape = region.y.type, region.y.shape
            last.outputs[0].name = region.y.name
            new = [made, last]
        else:
            made = make_node(op, graph, region.x, output=region.y)
            new = [made]
        made.metadata_props[FOUND_KEY] = found.to_json()
        replace(graph, region.nodes, new)
        self.applied_to(name, f"{len(region.nodes)} nodes are one layer: {found.reason}")


def _tail(shape: ir.Shape, count: int) -> list[int]:
    """The last sizes of a shape where they are known."""
    return [d for d in shape[-count:] if isinstance(d, int)]


def _joinable(x: ir.Value) -> list[int]:
    """How many last axes of x may be one feature axis: their sizes are known, one axis is left."""
    if x.dtype != ir.DataType.FLOAT or x.shape is None:
        return []
    known = [isinstance(d, int) for d in reversed(x.shape[1:])]
    return [count for count in range(2, len(known) + 1) if all(known[:count])]


def found_kronecker(factors: KroneckerSum) -> BlockPattern:
    """What is told about recovered or recognised factors."""
    bh, bw = factors.block
    terms = "1 Kronecker term" if factors.rank == 1 else f"{factors.rank} Kronecker terms"
    macs = min(factors.macs_per_row("b_first"), factors.macs_per_row("a_first"))
    share = macs / (factors.shape[0] * factors.shape[1])
    reason = (
        f"a sum of {terms} of {bh}x{bw} blocks, {factors.density:.0%} of them live: "
        f"{share:.1%} of the dense multiply-adds"
    )
    return BlockPattern("kronecker", factors.block, factors.density, 1 - factors.density, reason)


class Probe:
    """Finds out by evaluation which matrix a region is.

    Attributes:
        rearranged: Target of the Reshape that arranges the rows of y where they are not as in x:
            one axis, or those of what reads y, such as windows of an image; else None.
    """

    def __init__(self, region: LinearRegion) -> None:
        self.rearranged: list[int] | None = None
        self._region = region
        self._constants: dict[type, dict[ir.Value, Array]] = {np.float64: {}, np.float32: {}}
        self._resolved: dict[ir.Node, tuple[int, ...]] = {}
        shape = region.x.shape
        assert shape is not None
        self._lead: list[int | str] = [
            d if isinstance(d, int) else str(d.value) for d in shape[:-1]
        ]
        self._inner = int(shape[-1])  # type: ignore[arg-type]  # checked by the caller

    def outputs(self) -> int | None:
        """M if the region makes [..., m] of [..., n], None if it makes something else.

        Raises:
            NotLinear: it cannot be evaluated.
        """
        lead = self._sizes(2, 3)
        y = self._run(np.ones((*lead, self._inner)), lead)
        if y.ndim < 1 or math.prod(y.shape[:-1]) != math.prod(lead):
            return None
        if y.shape[:-1] != lead:
            known = self._region.y.shape
            others = list(known[1:]) if known is not None and len(known) > 1 else []
            fixed = [size for size in others if isinstance(size, int)]
            if not fixed or len(fixed) < len(others):
                return None
            self.rearranged = [-1, *fixed]
        return int(y.shape[-1])

    def factorize(self, out: int) -> KroneckerSum | str:
        """The region's weight as float32 factors, or why it is none."""
        size = out * self._inner
        if size > _LARGEST_WEIGHT:
            return f"its weight of {out}x{self._inner} is too large to evaluate"
        dtype: type = np.float64 if size <= _DOUBLE_WEIGHT else np.float32
        try:
            weight = self._weight(out, dtype)
            mismatch = self._mismatch(weight)
        except NotLinear as problem:
            return str(problem)
        if mismatch:
            return mismatch
        found = recover_kronecker(weight.astype(np.float32))
        if isinstance(found, str):
            return found
        # Ranks are found quickly in float32; then the factors of that block in full.
        exact = recover_kronecker(weight, (found.block,)) if dtype is np.float64 else found
        return found if isinstance(exact, str) else exact.astype(np.float32)

    def _weight(self, out: int, dtype: type) -> Array:
        """W [out, in]: what the region makes of each row of the identity."""
        rows = min(self._inner, max(16, _WORK_ENTRIES // max(out, self._inner)))
        if isinstance(self._lead[0], str):
            return self._columns(out, dtype, self._sizes(rows, 1), 1)
        base = self._sizes(1, 1)
        self._run(np.zeros((*base, self._inner), dtype), base)
        stretch = -(-rows // math.prod(base))
        try:
            return self._columns(out, dtype, (base[0] * stretch, *base[1:]), stretch)
        except NotLinear:  # the rows are not the first axis of every Reshape
            return self._columns(out, dtype, base, 1)

    def _columns(self, out: int, dtype: type, lead: tuple[int, ...], stretch: int) -> Array:
        """W by evaluating x [*lead, in] as often as it takes."""
        rows = math.prod(lead)
        weight: Array = np.empty((out, self._inner), dtype)
        for start in range(0, self._inner, rows):
            count = min(rows, self._inner - start)
            x: Array = np.zeros((rows, self._inner), dtype)
            x[np.arange(count), start + np.arange(count)] = 1
            y = self._run(x.reshape(*lead, self._inner), lead, stretch)
            if y.size != rows * out:
                raise NotLinear("it does not treat all rows alike")
            weight[:, start : start + count] = y.reshape(rows, out)[:count].T
        return weight

    def _mismatch(self, weight: Array) -> str | None:
        """Compare with x Wᵀ on random x of several sizes."""
        rng = np.random.default_rng(0)
        for first, others in ((1, 1), (2, 3), (3, 2)):
            lead = self._sizes(first, others)
            x = rng.standard_normal((*lead, self._inner)).astype(weight.dtype)
            want = (x @ weight.T).reshape(-1)
            got = self._run(x, lead).reshape(-1)
            scale = float(np.abs(want).max(initial=1e-30))
            limit = 100 * float(np.finfo(weight.dtype).eps) * self._inner**0.5 * scale
            if got.shape != want.shape or not np.abs(got - want).max(initial=0) <= limit:
                return "it does not multiply each row of x by one matrix"
        return None

    def _sizes(self, first: int, others: int) -> tuple[int, ...]:
        """Leading sizes of x: static ones, ``first`` for the first symbol, ``others`` after."""
        sizes: list[int] = []
        names: dict[str, int] = {}
        for dim in self._lead:
            if isinstance(dim, int):
                sizes.append(dim)
            else:
                sizes.append(names.setdefault(dim, others if names else first))
        return tuple(sizes)

    def _run(self, x: Array, lead: tuple[int, ...], stretch: int = 1) -> Array:
        dims = {d: s for d, s in zip(self._lead, lead, strict=True) if isinstance(d, str)}
        default = next(iter(dims.values()), lead[0])
        cache = self._constants[x.dtype.type]
        return self._region.evaluate(x, dims, default, cache, self._resolved, stretch)
