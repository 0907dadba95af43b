"""The road of static programs: whole models equal onnxruntime; what it cannot carry is named."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from bscompile.errors import ModelError
from bscompile.targets.lowering import lower
from bscompile.targets.programs import Rules, make_program, plan
from tests.end_to_end.families import FAMILIES, export
from tests.targets.lowering_helpers import context, model
from tests.targets.program_interpreter import interpret
from tests.tolerance import assert_close


def planned(proto, where=None):
    from bscompile.targets.cpu.legalize import FAST_MATH
    from bscompile.targets.cpu.schedules import schedule

    where = where or context(1)
    rules = Rules(lambda func: schedule(func, where.hardware), FAST_MATH)
    return plan(lower(ir.from_proto(proto), where), where, rules)


def check(proto, feeds, k=64):
    made = planned(proto)
    program, kernels = make_program(made, "cpu")
    got = interpret(
        program, kernels, [feeds[s.name] for s in made.inputs], [a for _, a in made.params]
    )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, feeds)
    assert len(got) == len(wanted)
    for spec, g, w in zip(made.outputs, got, wanted, strict=True):
        assert g.dtype == w.dtype
        if w.dtype.kind == "f":
            assert_close(g, w, w.dtype, k, what=spec.name)
        else:
            np.testing.assert_array_equal(g, w)
    return program


@pytest.mark.parametrize("name", ["mlp", "lenet5", "vit", "bert"])
def test_whole_models(name, tmp_path):
    family = FAMILIES[name]
    proto = onnx.load(export(family, tmp_path / "model.onnx"))
    torch.manual_seed(0)
    feeds = {key: value.numpy() for key, value in family.inputs(False, 2).items()}
    program = check(proto, feeds, k=1024)
    scratch = sum(program.storages[i].bytes for i in program.indices("scratch"))
    written = {i for step in program.steps for i in step.buffers[-1:]}
    if name == "vit":  # memory is used again
        assert scratch < sum(program.buffers[i].bytes for i in written) / 2


def test_outputs_that_are_somebody_elses_memory():
    proto = model(
        """g (float[2, 3] x) => (float[2, 3] same, float[6] flat, float[3, 2] y, float[2, 3] z,
                                float[3] fixed)
        <float[3] w = {1, 2, 3}, int64[1] six = {-1}, int64[2] back = {3, 2}>
        {
            same = Identity(x)
            flat = Reshape(x, six)
            s = Add(x, w)
            y = Reshape(s, back)
            z = Identity(s)
            fixed = Identity(w)
        }"""
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    program = check(proto, {"x": x})
    assert len({program.buffers[i].storage for i in program.outputs}) == 5
    assert all(program.storages[program.buffers[i].storage].role == "scratch"
               for i in program.outputs)  # fmt: skip


def test_constants_become_parameters():
    proto = model(
        """g (float[2, 5] x) => (float[2, 3] y, float[3, 5] z)
        <int64[3] picked = {4, 0, 2}, int64[3] rows = {1, 0, 1}>
        {
            y = Gather <axis = 1> (x, picked)
            z = Gather <axis = 0> (x, rows)
        }"""
    )
    check(proto, {"x": np.random.default_rng(0).standard_normal((2, 5), np.float32)})
    names = [name for name, _ in planned(proto).params]
    assert names == ["constant.0", "constant.1"]


def test_several_results_of_one_operator():
    proto = model(
        """g (float[4, 6] x) => (float[4, 2] a, float[4, 4] c)
        <int64[2] sizes = {2, 4}> { a, b = Split <axis = 1> (x, sizes) c = Relu(b) }"""
    )
    check(proto, {"x": np.random.default_rng(0).standard_normal((4, 6), np.float32)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }", "input x leaves 'batch'"),
        (
            """g (float[4, 9] x) => (float[4, 2] y, int64[4, 2] i)
            <int64[1] k = {2}> { y, i = TopK(x, k) }""",
            "operator topk",
        ),
    ],
)
def test_what_it_cannot_carry_is_named(text, message):
    with pytest.raises(ModelError, match=message) as caught:
        make_program(planned(model(text)), "cpu")
    assert caught.value.message.startswith("target cpu ")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
