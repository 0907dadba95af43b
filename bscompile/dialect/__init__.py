"""The ``ai.bscompile`` operators: one layer meaning, six spellings.

==================  ==========================================  =========================
op                  weight inputs                               meaning of W [out, in]
==================  ==========================================  =========================
DenseMatMul         weight [out, in]                            itself
BlockSparseMatMul   values [nnzb, bh, bw], indices, indptr      BlockSparseMatrix
KroneckerMatMul     a [r, m1, n1], b [r, bh, bw]                Σᵢ aᵢ ⊗ bᵢ
Dense/BlockSparse/  as above, W [out, in/1 · kh · kw]           2-D convolution, one group
KroneckerConv
==================  ==========================================  =========================

Matmuls compute y[..., out] = x[..., in] Wᵀ; convolutions x [n, c, h, w] -> [n, out, oh, ow].
A weight in bfloat16 or float16 is widened to x's float32; one in tf32 is float32 already, and
the attribute ``precision`` says so. With an int8 weight the op is called
Quantized..., has one more weight input ``scale`` [out], and means what quantization.py says.
Then the epilogue runs, an ordered tuple of steps: ``bias`` (+ bias [out]), ``residual``
(+ a tensor of y's shape) and activations (see activations.py). The inputs of a node are x, the
weight inputs, then one input for each ``bias`` and ``residual`` step in order.

In a saved model every node names an ONNX function (domain, op type, overload) whose body is
plain ONNX, so any ONNX runtime opens and runs it; ``attach_functions`` writes those.
"""

from bscompile.dialect.activations import is_activation, is_short, step_of
from bscompile.dialect.bodies import attach_functions
from bscompile.dialect.meaning import evaluate, im2col
from bscompile.dialect.ops import (
    CHOICE_KEY,
    DOMAIN,
    FOUND_KEY,
    LAYER_KEY,
    TENSOR_STEPS,
    VERSION,
    ConvGeometry,
    LinearOp,
    Weight,
    dense_weight,
    form_of,
    is_dialect,
    is_float_layer,
    is_quantized,
    make_node,
    node_form,
    read_node,
    tensor_inputs,
    weight_inputs,
)

__all__ = [
    "CHOICE_KEY",
    "DOMAIN",
    "FOUND_KEY",
    "LAYER_KEY",
    "TENSOR_STEPS",
    "VERSION",
    "ConvGeometry",
    "LinearOp",
    "Weight",
    "attach_functions",
    "dense_weight",
    "evaluate",
    "form_of",
    "im2col",
    "is_activation",
    "is_dialect",
    "is_float_layer",
    "is_quantized",
    "is_short",
    "make_node",
    "node_form",
    "read_node",
    "step_of",
    "tensor_inputs",
    "weight_inputs",
]
