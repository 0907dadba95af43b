"""The order as data: each state between passes is a sound model; failures name the pass."""

import numpy as np
import onnx_ir as ir
import pytest

from bscompile.errors import ModelError
from bscompile.importer import load_model
from bscompile.passes import pipeline
from bscompile.passes.base import GraphPass
from tests.passes.helpers import blocky, check_equal, dense, keep_form, model_from

TEXT = """g (float[N, 16] x, int64[N] ids) => (float[N, 8] y) {
    sa = Mul(s, a)
    t = Transpose<perm: ints = [1, 0]>(sa)
    h = MatMul(x, t)
    b = Add(h, bias)
    g1 = Gelu(b)
    e = Gather(table, ids)
    r = Add(e, g1)
    n = LayerNormalization(r, scale)
    y = Gemm<transB: int = 1, alpha: float = 0.5>(n, head, hb)
}"""
WEIGHTS = {
    "s": (blocky((12, 16)) != 0).astype(np.float32),
    "a": dense(12, 16),
    "bias": dense(12),
    "table": dense(5, 12),
    "scale": dense(12),
    "head": blocky((8, 12), (2, 3)),
    "hb": dense(8),
}
FEEDS = {"x": dense(3, 16), "ids": np.array([0, 4, 2])}


def test_after_every_pass_the_model_means_the_same():
    proto = model_from(TEXT, WEIGHTS)
    seen = []

    def check(number, name, model):
        check_equal(proto, model, FEEDS)
        seen.append((number, name))

    passes = pipeline.pipeline(keep_form)
    pipeline.run(load_model(proto), passes, dump=check)
    assert seen == [(i, type(step).__name__) for i, step in enumerate(passes, 1)]


def test_notes_come_in_order_and_name_their_pass():
    proto = model_from(TEXT, WEIGHTS)
    lines = []
    notes = pipeline.run(load_model(proto), pipeline.pipeline(keep_form), progress=lines.append)
    order = [type(step).__name__ for step in pipeline.pipeline(keep_form)]
    places = [order.index(note.pass_name) for note in notes]
    assert places == sorted(places)
    assert {"FoldConstants", "RecogniseLinear", "FuseEpilogues", "ChooseForm"} <= {
        note.pass_name for note in notes
    }
    assert lines[0] == f"pass 1/{len(order)}: {order[0]}"
    assert len(lines) == len(order)


class _Works(GraphPass):
    def rewrite(self, model: ir.Model) -> bool:
        return False


class _Breaks(GraphPass):
    def rewrite(self, model: ir.Model) -> bool:
        raise KeyError("inner")


class _Declines(GraphPass):
    def rewrite(self, model: ir.Model) -> bool:
        raise ModelError("fc1: cannot be compiled")


def test_a_pass_that_breaks_is_named_with_those_before_it():
    model = load_model(model_from(TEXT, WEIGHTS))
    with pytest.raises(ir.passes.PassError, match="pass _Breaks failed after _Works") as caught:
        pipeline.run(model, [_Works(), _Breaks(), _Works()])
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_for_the_user_passes_through():
    model = load_model(model_from(TEXT, WEIGHTS))
    with pytest.raises(ModelError, match="fc1: cannot be compiled"):
        pipeline.run(model, [_Declines()])
