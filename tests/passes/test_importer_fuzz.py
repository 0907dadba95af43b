"""Mutated files give a model or one clear error, never anything else, and never take long."""

import random
import time

import numpy as np
import onnx
import pytest

from bscompile.errors import ModelError
from bscompile.importer import load_model
from bscompile.passes import pipeline
from tests.passes.helpers import blocky, dense, keep_form, model_from

SEEDS = range(600)
TEXT = """g (float[N, 1, 8, 8] x, int64[N] ids) => (float[N, 12] y, float[N, 6] z) {
    c = Conv<pads: ints = [1, 1, 1, 1]>(x, k, kb)
    r = Relu(c)
    f = Reshape(r, shape)
    sa = Mul(s, a)
    t = Transpose<perm: ints = [1, 0]>(sa)
    h = MatMul(f, t)
    b = Add(h, bias)
    g1 = Gelu(b)
    e = Gather(table, ids)
    y = Add(g1, e)
    z = Gemm<transB: int = 1, alpha: float = 0.5>(y, head, hb)
}"""
WEIGHTS = {
    "k": dense(2, 1, 3, 3),
    "kb": dense(2),
    "shape": np.array([-1, 128]),
    "s": blocky((12, 128)),
    "a": dense(12, 128),
    "bias": dense(12),
    "table": dense(5, 12),
    "head": blocky((6, 12), (3, 4)),
    "hb": dense(6),
}


@pytest.fixture(scope="module")
def valid():
    return model_from(TEXT, WEIGHTS).SerializeToString()


def flip(rng, data):
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        data[rng.randrange(len(data))] = rng.randrange(256)


def cut(rng, data):
    del data[rng.randrange(len(data)) :]


def remove(rng, data):
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 40)]


def repeat(rng, data):
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 40)]


def huge_number(rng, data):
    start = rng.randrange(len(data))
    data[start : start + 1] = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[: rng.randrange(2, 10)]


def head(rng, data):
    """Structure lies in the first bytes and between the weights: aim there."""
    for _ in range(4):
        data[rng.randrange(min(600, len(data)))] = rng.randrange(256)


MUTATIONS = (flip, cut, remove, repeat, huge_number, head)


def outcome(path, seed):
    """What came of it; anything but a model or a ModelError escapes and fails the test."""
    start = time.monotonic()
    model, message = None, ""
    try:
        model = load_model(path)
    except ModelError as error:
        message = str(error)
    assert time.monotonic() - start < 10, f"seed {seed} took too long"
    assert "\n" not in message
    if model is None:
        return "error"
    if seed % 6 == 0:  # what came in must also get through the passes
        pipeline.run(model, pipeline.pipeline(keep_form))
    return "model"


def test_random_bytes(valid, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(valid)
    assert outcome(path, 0) == "model"
    seen = {"model": 0, "error": 0}
    for seed in SEEDS:
        rng = random.Random(seed)
        data = bytearray(valid)
        rng.choice(MUTATIONS)(rng, data)
        path.write_bytes(bytes(data))
        seen[outcome(path, seed)] += 1
    assert min(seen.values()) > len(SEEDS) // 20, seen  # the mutations neither all kill nor none


def mutate_fields(rng, proto):
    """Break one field of the parsed message: nearer to a hostile exporter than flipped bits."""
    graph = proto.graph
    node = rng.choice(graph.node)
    tensor = rng.choice(graph.initializer)
    number = rng.choice([-1, 0, 1, 2, 7, 2**31, 2**62, -(2**62)])
    choice = rng.randrange(10)
    if choice == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(["", "x", "y", "w", "ghost"])
    elif choice == 1:
        node.op_type = rng.choice(["MatMul", "Conv", "Gemm", "Concat", "Loop", "", "Reshape"])
    elif choice == 2:
        for attribute in node.attribute:
            attribute.i = number
            attribute.ints[:] = [number] * rng.randrange(5)
            attribute.type = rng.choice([0, 1, 2, 3, 7, 8])
    elif choice == 3:
        tensor.dims[:] = [number] * rng.randrange(4)
    elif choice == 4:
        tensor.data_type = rng.randrange(-1, 30)
    elif choice == 5:
        tensor.raw_data = rng.randbytes(len(tensor.raw_data))
    elif choice == 6:
        value = rng.choice([*graph.input, *graph.output])
        dims = value.type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = number
    elif choice == 7:
        value = rng.choice([*graph.input, *graph.output])
        value.type.tensor_type.elem_type = rng.randrange(30)
    elif choice == 8:
        node.output[0] = rng.choice(["x", "y", "", "h"])
    else:
        proto.opset_import[0].version = number


def test_broken_fields(valid, tmp_path):
    path = tmp_path / "m.onnx"
    seen = {"model": 0, "error": 0}
    for seed in SEEDS:
        rng = random.Random(seed)
        proto = onnx.ModelProto.FromString(valid)
        try:
            for _ in range(rng.choice([1, 1, 2])):
                mutate_fields(rng, proto)
        except ValueError:  # the message itself refuses the value
            continue
        path.write_bytes(proto.SerializeToString())
        seen[outcome(path, seed)] += 1
    assert min(seen.values()) > len(SEEDS) // 20, seen
