"""A merged weight becomes the factors that it was built from.

    Dense/BlockSparse MatMul or Conv, W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ already multiplied out
    -> KroneckerMatMul or KroneckerConv

Exporters fold S, A and B of a small layer into one constant, and ``torch.kron`` always ends so;
the rank of the rearranged blocks shows the factors again (formats/recover.py). Zeros of S stay
exact. Nothing is lost where another form runs faster: factors merge back when the form is chosen.

Refuses: weights that are no sum of few terms; float32 weights whose entries were rounded to
float16, unless the model itself came in half precision: the factors would differ by that
rounding. The reason is added to what the layer's metadata say was found.
"""

from __future__ import annotations

import json

import onnx_ir as ir

from bscompile.dialect import FOUND_KEY, is_float_layer, make_node, read_node, tensor_inputs
from bscompile.formats import KroneckerSum
from bscompile.formats.recover import recover_kronecker
from bscompile.passes.base import GraphPass
from bscompile.passes.graph import replace
from bscompile.passes.recognise_factorized import found_kronecker
from bscompile.passes.widen_float16 import WAS_FLOAT16_KEY


class RecoverFactors(GraphPass):
    """Merged weights -> Kronecker factors."""

    def rewrite(self, model: ir.Model) -> bool:
        """Try every layer that is not factorized yet."""
        half = WAS_FLOAT16_KEY in model.metadata_props
        for node in list(model.graph):
            if not is_float_layer(node):
                continue
            op = read_node(node)
            if isinstance(op.weight, KroneckerSum):
                continue
            found = recover_kronecker(op.weight, accept_rounded=half)
            if isinstance(found, str):
                self.refused_for(op.name, found)
                _add_reason(node, found)
                continue
            x = node.inputs[0]
            assert x is not None
            made = make_node(
                op.with_weight(found), model.graph, x, tensor_inputs(node), node.outputs[0]
            )
            pattern = found_kronecker(found)
            made.metadata_props[FOUND_KEY] = pattern.to_json()
            replace(model.graph, [node], [made])
            self.applied_to(op.name, pattern.reason)
        return bool(self.applied)


def _add_reason(node: ir.Node, text: str) -> None:
    """Say in the node's metadata why the weight has no factors."""
    found = json.loads(node.metadata_props.get(FOUND_KEY, "{}"))
    before = found.get("reason")
    found["reason"] = f"{before}; no factors: {text}" if before else f"no factors: {text}"
    node.metadata_props[FOUND_KEY] = json.dumps(found)
