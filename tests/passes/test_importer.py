"""Any sound model comes in; everything else is one clear line."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bscompile.errors import ModelError
from bscompile.importer import FIXED_INPUTS_KEY, load_model
from tests.passes.helpers import check_equal, dense, model_from, op_types, run_ort

TEXT = """g (float[N, 8] x) => (float[N, 600] y) {
    h = MatMul(x, w)
    y = Relu(h)
}"""
WEIGHTS = {"w": dense(8, 600)}  # over a kilobyte: not part of the skeleton
FEEDS = {"x": dense(3, 8)}


def sound(**options):
    return model_from(TEXT, WEIGHTS, **options)


def save(proto, path, external=None):
    onnx.save(
        proto, path, save_as_external_data=external is not None, location=external,
        size_threshold=0,
    )  # fmt: skip
    return path


def error_of(source):
    with pytest.raises(ModelError) as caught:
        load_model(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("opset", range(13, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_from_13_comes_in_as_20_or_newer(opset):
    model = load_model(sound(opset=opset))
    assert model.opset_imports[""] == max(opset, 20)
    assert str(model.graph.outputs[0].shape) == "[N,600]"
    assert model.graph[0].outputs[0].shape is not None


@pytest.mark.parametrize("external", [None, "weights.bin"])
@pytest.mark.parametrize("source", ["path", "text path", "proto", "ir"])
def test_weights_inside_and_beside_the_file(tmp_path, external, source):
    path = save(sound(), tmp_path / "m.onnx", external)
    given = {
        "path": path,
        "text path": str(path),
        "proto": onnx.load(path),
        "ir": ir.load(path),
    }[source]
    check_equal(sound(), load_model(given), FEEDS)


def test_external_weights_are_mapped_not_read(tmp_path):
    model = load_model(save(sound(), tmp_path / "m.onnx", "w.bin"))
    array = model.graph.initializers["w"].const_value.numpy()
    base = array
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert type(base).__name__ in ("memmap", "mmap")


def test_a_model_in_memory_is_left_unchanged():
    proto = sound()
    before = proto.SerializeToString()
    load_model(proto)
    assert proto.SerializeToString() == before
    graph = ir.serde.deserialize_model(proto)
    before = ir.serde.serialize_model(graph).SerializeToString()
    load_model(graph)
    assert ir.serde.serialize_model(graph).SerializeToString() == before


def test_old_operators_are_raised_to_todays_form():
    text = """g (float[2, 6] x) => (float[2, 1] y, float[2, 3] a, float[2, 3] b) {
        y = ReduceMean<axes: ints = [1]>(x)
        a, b = Split<axis: int = 1>(x)
    }"""
    proto = model_from(text, opset=13)
    feeds = {"x": dense(2, 6)}
    check_equal(proto, load_model(proto), feeds)


def test_local_functions_are_inlined():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 20, "acme": 1]>
        g (float[N] x) => (float[N] y) { y = acme.twice(x) }
        <domain: "acme", opset_import: ["": 20]>
        twice (a) => (b) { b = Add(a, a) }
    """)
    model = load_model(proto)
    assert op_types(model) == ["Add"]
    assert not model.functions


def test_our_own_functions_stay():
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20, "ai.bscompile": 1]>
        g (float[N] x) => (float[N] y) { y = ai.bscompile.Keep(x) }
        <domain: "ai.bscompile", opset_import: ["": 20]>
        Keep (a) => (b) { b = Neg(a) }
    """)
    assert op_types(load_model(proto)) == ["Keep"]


def test_a_sparse_initializer_becomes_dense():
    for places in (np.array([1, 6]), np.array([[0, 1], [1, 2]])):
        proto = model_from("g (float[N, 2] x) => (float[N, 4] y) { y = MatMul(x, w) }")
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                numpy_helper.from_array(np.array([5, 7], np.float32), "w"),
                numpy_helper.from_array(places, "i"),
                [2, 4],
            )
        )
        got = load_model(proto).graph.initializers["w"].const_value.numpy()
        np.testing.assert_array_equal(got, [[0, 5, 0, 0], [0, 0, 7, 0]])


def test_nodes_in_any_order_are_sorted():
    proto = sound()
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    assert op_types(load_model(proto)) == ["MatMul", "Relu"]


def test_an_overridable_default_is_compiled_in_and_said():
    proto = model_from(
        "g (float[N, 8] x, float[8, 600] w) => (float[N, 600] y) { y = MatMul(x, w) }", WEIGHTS
    )
    model = load_model(proto)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.metadata_props[FIXED_INPUTS_KEY] == "w"


def test_a_mask_of_infinities_is_welcome():
    mask = np.where(np.tri(4) > 0, 0, -np.inf).astype(np.float32)
    text = """g (float[4, 4] x) => (float[4, 4] y) {
        s = Add(x, mask)
        y = Softmax(s)
    }"""
    proto = model_from(text, {"mask": mask})
    check_equal(proto, load_model(proto), {"x": dense(4, 4)})


def test_half_precision_and_int4_weights_come_in(tmp_path):
    text = """g (float16[N, 8] x) => (float16[N, 4] y) {
        y = MatMul(x, w)
    }"""
    proto = model_from(text, {"w": dense(8, 4).astype(np.float16)})
    assert load_model(proto).graph.initializers["w"].dtype == ir.DataType.FLOAT16
    packed = model_from(
        "g (float[N] x) => (float[N] y) { f = Cast<to: int = 1>(q) y = Add(x, f) }", opset=21
    )
    packed.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [3], [1, -2, 7]))
    path = save(packed, tmp_path / "m.onnx", "q.bin")
    for source in (packed, path):
        got = load_model(source).graph.initializers["q"].const_value.numpy()
        assert got.astype(int).tolist() == [1, -2, 7]


def test_strings_come_in():
    text = "g (string[N] a) => (string[N] y) { y = StringConcat(a, b) }"
    proto = model_from(text)
    proto.graph.initializer.append(helper.make_tensor("b", TensorProto.STRING, [1], [b"!"]))
    feeds = {"a": np.array(["x", "y"], dtype=object)}
    (got,) = run_ort(load_model(proto), feeds)
    assert got.tolist() == ["x!", "y!"]


def test_a_dimension_of_minus_one_means_any():
    proto = model_from("g (float[N, 8] x) => (float[N, 600] y) { y = MatMul(x, w) }", WEIGHTS)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    shape = load_model(proto).graph.inputs[0].shape
    assert not isinstance(shape[0], int)
    assert shape[1] == 8


def test_an_output_without_a_shape_gets_one():
    proto = sound()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert str(load_model(proto).graph.outputs[0].shape) == "[N,600]"


def test_an_operator_that_onnx_cannot_infer_comes_in():
    text = "g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) { y = MeanVarianceNormalization(x) }"
    proto = model_from(text)
    check_equal(proto, load_model(proto), {"x": dense(2, 3, 4, 4)})


# ---------------------------------------------------------------- files that are none


def test_missing_directory_and_empty(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.onnx")
    assert "is a directory" in error_of(tmp_path)
    (tmp_path / "e.onnx").write_bytes(b"")
    assert "is empty" in error_of(tmp_path / "e.onnx")


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "p.onnx")
    assert "not a regular file" in error_of(tmp_path / "p.onnx")


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = save(sound(), tmp_path / "m.onnx")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    assert "cannot be read: Permission denied" in error_of(path)


@pytest.mark.parametrize("content", [b"hello world\n", b"\x00" * 64, b"PK\x03\x04 not a model"])
def test_not_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "not an ONNX" in error_of(path)


def test_truncated_anywhere(tmp_path):
    data = sound().SerializeToString()
    for cut in range(1, len(data), 97):
        path = tmp_path / "m.onnx"
        path.write_bytes(data[:cut])
        error_of(path)


# ---------------------------------------------------------------- versions and structure


@pytest.mark.parametrize("opset", [7, 12, 10**6])
def test_opsets_outside_the_range(opset):
    assert f"opset {opset}, but 13 to" in error_of(sound(opset=opset))


@pytest.mark.parametrize("version", [2, 99])
def test_ir_versions_outside_the_range(version):
    assert f"IR version {version}" in error_of(sound(ir_version=version))


def test_no_opset_at_all():
    proto = sound()
    del proto.opset_import[:]
    assert "names no opset" in error_of(proto)


def test_a_graph_without_nodes_or_outputs():
    empty = sound()
    del empty.graph.node[:]
    assert "no nodes" in error_of(empty)
    silent = sound()
    del silent.graph.output[:]
    assert "no outputs" in error_of(silent)


def test_an_output_that_nothing_computes():
    proto = sound()
    proto.graph.output[0].name = "elsewhere"
    assert "'elsewhere' is computed by no node" in error_of(proto)


def test_a_cycle_is_named():
    proto = model_from("g (float[N] x) => (float[N] y) { y = Add(x, z)  z = Neg(y) }")
    assert "cyclic: " in error_of(proto)
    assert "Neg" in error_of(proto)


def test_duplicate_names():
    twice = sound()
    twice.graph.initializer.append(twice.graph.initializer[0])
    assert "'w' is empty or used twice" in error_of(twice)
    inputs = sound()
    inputs.graph.input.append(inputs.graph.input[0])
    assert "duplicate names" in error_of(inputs)
    values = model_from("g (float[N] x) => (float[N] y) { y = Neg(x)  y = Relu(x) }")
    assert "single static assignment" in error_of(values)


def test_an_unknown_operator_is_named():
    proto = model_from("g (float[N] x) => (float[N] y) { y = Frobnicate(x) }")
    assert "Frobnicate" in error_of(proto)


def test_a_value_that_nobody_makes():
    proto = model_from("g (float[N] x) => (float[N] y) { y = Add(x, ghost) }")
    assert "ghost" in error_of(proto)


def test_shapes_that_do_not_fit():
    proto = model_from("g (float[N, 7] x) => (float[N, 600] y) { y = MatMul(x, w) }", WEIGHTS)
    assert "shapes or types do not fit" in error_of(proto)


def test_functions_that_call_themselves():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 20, "acme": 1]>
        g (float[N] x) => (float[N] y) { y = acme.f(x) }
        <domain: "acme", opset_import: ["": 20, "acme": 1]>
        f (a) => (b) { b = acme.f(a) }
    """)
    assert "in a circle" in error_of(proto)


def test_functions_that_double_forty_times():
    bodies = "".join(
        f'<domain: "acme", opset_import: ["": 20, "acme": 1]> '
        f"f{i} (a) => (c) {{ b = acme.f{i + 1}(a)  c = acme.f{i + 1}(b) }}\n"
        for i in range(40)
    )
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 20, "acme": 1]>
        g (float[N] x) => (float[N] y) {{ y = acme.f0(x) }}
        {bodies}
        <domain: "acme", opset_import: ["": 20]> f40 (a) => (b) {{ b = Neg(a) }}
    """)
    assert "expand to" in error_of(proto)


def field(number, payload):
    """One length-delimited field on protobuf's wire."""
    size, length = len(payload), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


@pytest.mark.parametrize("depth", [20, 200, 5_000])
def test_graphs_nested_too_deep(tmp_path, depth):
    # protobuf's own tools do not write such a file: graph (7) . node (1) . attribute (5) . g (6)
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x0a" + field(7, graph) + field(8, b"\x10\x14"))
    error_of(path)


# ---------------------------------------------------------------- tensors


def test_nan_is_found_and_named():
    weights = {"w": WEIGHTS["w"].copy()}
    weights["w"][3, 77] = np.nan
    assert "'w' holds NaN" in error_of(model_from(TEXT, weights))


def test_an_infinite_weight_is_named():
    weights = {"w": WEIGHTS["w"].copy()}
    weights["w"][3, 77] = np.inf
    assert "'w' holds an infinity" in error_of(model_from(TEXT, weights))


@pytest.mark.parametrize(
    ("dims", "text"),
    [([8, 601], "holds"), ([1 << 40, 1 << 20], "holds"), ([-1, 600], "negative")],
)
def test_shapes_that_the_data_does_not_fill(dims, text):
    proto = sound()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    assert text in error_of(proto)


def test_values_larger_than_any_memory():
    text = f"g (float[{1 << 30}, {1 << 30}] x) => (float[N, M] y) {{ y = Neg(x) }}"
    assert "larger than any machine" in error_of(model_from(text))


def test_an_unknown_data_type():
    proto = sound()
    proto.graph.initializer[0].data_type = 99
    assert "unknown data type 99" in error_of(proto)


@pytest.mark.parametrize(
    ("dims", "indices", "text"),
    [([2, 4], [8], "outside"), ([2, 4], [-1], "outside"), ([1 << 20, 1 << 20], [0], "too large")],
)
def test_broken_sparse_initializers(dims, indices, text):
    proto = model_from("g (float[N, 2] x) => (float[N, 4] y) { y = MatMul(x, w) }")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "i"))
    sparse.dims.extend(dims)
    assert text in error_of(proto)


# ---------------------------------------------------------------- external data


def external(tmp_path, **entries):
    """A model whose weight lies in w.bin, with some entries of its location changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(sound(), folder / "m.onnx", "w.bin")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "..\\secret.bin", "C:\\x"]
)
def test_data_outside_the_folder_is_not_read(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\x00" * 19200)
    assert "outside the model's folder" in error_of(external(tmp_path, location=location))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\x00" * 19200)
    path = external(tmp_path, location="link.bin")
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "link to a file outside" in error_of(path)


def test_a_link_within_the_folder_is_followed(tmp_path):
    path = external(tmp_path, location="link.bin")
    (path.parent / "link.bin").symlink_to("w.bin")
    check_equal(sound(), load_model(path), FEEDS)


def test_links_in_a_circle(tmp_path):
    path = external(tmp_path, location="link.bin")
    (path.parent / "link.bin").symlink_to("link.bin")
    error_of(path)


@pytest.mark.parametrize("location", ["", ".", "none.bin", "a\0b"])
def test_data_that_is_not_there(tmp_path, location):
    error_of(external(tmp_path, location=location))


@pytest.mark.parametrize(
    "entries",
    [{"offset": "4"}, {"offset": "-4"}, {"offset": "x"}, {"length": "4"}, {"offset": str(2**70)}],
)
def test_bytes_that_the_file_does_not_have(tmp_path, entries):
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    data = {e.key: e.value for e in proto.graph.initializer[0].external_data} | entries
    del proto.graph.initializer[0].external_data[:]
    for key, value in data.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    assert "external data" in error_of(path)


def test_a_data_file_cut_short(tmp_path):
    path = external(tmp_path)
    data = path.parent / "w.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert "shorter than the model says" in error_of(path)


def test_external_data_of_a_model_without_a_folder(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    assert "not read from a file" in error_of(proto)
