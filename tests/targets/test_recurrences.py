"""The steps of recurrent layers on the CPU: one function for all, and right in float64."""

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

import bscompile
from bscompile.targets.cpu.code import region
from bscompile.targets.kernels.code import emit
from tests.recurrences import in_float64, recurrent
from tests.tolerance import assert_close

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def build(proto, folder, threads=2):
    """A model as users have it."""
    return bscompile.load(bscompile.build(proto, threads=threads).save(folder / "m.bsc"))


def recurrences(compiled, feeds):
    """How many recurrences are among the calls of a model."""
    names = [name for name, _ in compiled.profile(feeds, 1)]
    return sum(name.startswith("recurrence") for name in names)


def check(compiled, proto, feeds, k):
    got = list(compiled.run(feeds).values())
    for one, want in zip(got, in_float64(proto, feeds), strict=False):
        assert_close(one, want, np.float32, k)


CASES = [
    ("LSTM", {"hidden": 13, "direction": "bidirectional", "batch": 3}, 2),
    (
        "LSTM",
        {"hidden": 40, "initial": False, "bias": False, "direction": "reverse", "batch": 3},
        1,
    ),
    ("LSTM", {"hidden": 32, "initial": False, "batch": 1}, 1),
    ("GRU", {"hidden": 17, "batch": 1}, 1),
    ("GRU", {"hidden": 24, "linear_before_reset": 1, "initial": False, "batch": 8}, 1),
    ("RNN", {"hidden": 33, "activations": ["Relu"], "batch": 3}, 1),
    ("RNN", {"hidden": 5, "steps": 9, "batch": 1}, 1),
]


@pytest.mark.parametrize(("op", "options", "count"), CASES)
def test_all_steps_are_one_call(op, options, count, tmp_path):
    proto, feeds = recurrent(op, **{"steps": 7, **options})
    compiled = build(proto, tmp_path)
    assert recurrences(compiled, feeds) == count
    check(compiled, proto, feeds, 7 * options["hidden"])


def test_blocks_of_the_recurrent_weight_stay_blocks(tmp_path):
    proto, feeds = recurrent("LSTM", steps=6, hidden=64, inner=32, live=0.1, batch=1)
    built = bscompile.build(proto, threads=2)
    assert "block_sparse" in {layer.form for layer in built.report.layers}
    compiled = bscompile.load(built.save(tmp_path / "m.bsc"))
    assert recurrences(compiled, feeds) == 1
    check(compiled, proto, feeds, 6 * 64)


@pytest.mark.parametrize(("built", "run"), [(8, 8), (4, 1), (1, 1), (2, 5)])
def test_any_number_of_workers(built, run, tmp_path):
    proto, feeds = recurrent("LSTM", steps=4, hidden=3, batch=1)
    if built > 2:  # enough work for many workers
        proto, feeds = recurrent("LSTM", steps=4, hidden=256, inner=8, batch=1)
    path = bscompile.build(proto, threads=built).save(tmp_path / "m.bsc")
    compiled = bscompile.load(path, threads=run)
    assert recurrences(compiled, feeds) == 1
    for _ in range(20):
        check(compiled, proto, feeds, 4 * 256)


def test_one_step_is_no_recurrence(tmp_path):
    proto, feeds = recurrent("GRU", steps=1, batch=2)
    compiled = build(proto, tmp_path)
    assert recurrences(compiled, feeds) == 0
    check(compiled, proto, feeds, 8)


def unrolled(steps, last="r"):
    """Steps as an exporter writes them out, the last one with a weight of its own."""
    text = ["g (float[6,2,9] x, float[2,9] h0) => (float[2,9] y, float[2,9] middle) {"]
    text.append("axis = Constant<value_ints: ints = [0]>()")
    for t in range(steps):
        weight = last if t == steps - 1 else "r"
        text.append(f"""
            from{t} = Constant<value_ints: ints = [{t}]>()
            to{t} = Constant<value_ints: ints = [{t + 1}]>()
            s{t} = Slice(x, from{t}, to{t}, axis)  x{t} = Squeeze(s{t}, axis)
            p{t} = MatMul(h{t}, {weight})  a{t} = Add(p{t}, x{t})  h{t + 1} = Tanh(a{t})""")
    text.append(f"y = Identity(h{steps})  middle = Identity(a2) }}")
    header = '<ir_version: 10, opset_import: ["": 20]>\n'
    proto = onnx.parser.parse_model(header + "\n".join(text))
    for name in {"r", last}:
        proto.graph.initializer.append(numpy_helper.from_array(normal(9, 9), name))
    return proto


@pytest.mark.parametrize("last", ["r", "other"])
def test_steps_written_out_by_an_exporter(last, tmp_path):
    """A value from the middle of one step is an output, too; a last step may be different."""
    proto = unrolled(6, last)
    feeds = {"x": normal(6, 2, 9), "h0": normal(2, 9)}
    compiled = build(proto, tmp_path)
    assert recurrences(compiled, feeds) == 1
    weights = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
    h, sums = feeds["h0"].astype(float), []
    for t in range(6):
        sums.append(h @ weights[last if t == 5 else "r"] + feeds["x"][t])
        h = np.tanh(sums[-1])
    got = compiled.run(feeds)
    assert_close(got["y"], h, np.float32, 6 * 9)
    assert_close(got["middle"], sums[2], np.float32, 3 * 9)


def test_steps_with_weights_of_their_own_stay_apart(tmp_path):
    proto = unrolled(4)
    for t, node in enumerate(n for n in proto.graph.node if n.op_type == "MatMul"):
        node.input[1] = f"r{t}"
        proto.graph.initializer.append(numpy_helper.from_array(normal(9, 9), f"r{t}"))
    feeds = {"x": normal(6, 2, 9), "h0": normal(2, 9)}
    compiled = build(proto, tmp_path)
    assert recurrences(compiled, feeds) == 0


def kernel(scratch):
    """y[i] = x[i] in two tasks, through memory that they share or without."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("kernel")
        x, y = (T.match_buffer(T.arg(n, T.handle()), (2,), "float32") for n in "xy")

        def copy(source, target):
            with T.parallel(0, 2) as i, emit.opaque():
                T.buffer_store(target, source[i], [i])

        if not scratch:
            copy(x, y)
        else:
            with emit.opaque():
                shared = T.sblock_alloc_buffer((2,), "float32")
                copy(x, shared)
                copy(shared, y)
    return builder.get()


def test_a_kernel_whose_tasks_share_memory_of_their_own_does_not_fit_into_a_region():
    assert region.fits(kernel(scratch=False))
    assert not region.fits(kernel(scratch=True))
