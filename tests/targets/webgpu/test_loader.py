"""The JavaScript loader in Node: the same answers, and clear errors; and what needs no GPU."""

import json
import shutil
import subprocess
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from bscompile.export import ExportOptions, export
from tests.targets.webgpu.handmade import MANIFEST, WEIGHT, expected, some_inputs, write_handmade
from tests.targets.webgpu.stacks import run_in_node

WEB = resources.files("bscompile.targets").joinpath("webgpu", "web")


@pytest.fixture
def folder(tmp_path):
    artifact = write_handmade(tmp_path / "model.bsc")
    return export(artifact, tmp_path / "web", "web", ExportOptions(inputs=some_inputs())).parent


def test_it_answers_right(folder):
    inputs = some_inputs()
    results = run_in_node(folder, inputs)
    for name, wanted in expected(inputs).items():
        np.testing.assert_array_equal(results[name], wanted)
        assert results[name].dtype == wanted.dtype


def test_one_changed_weight_changes_the_answer(tmp_path):
    weight = WEIGHT.copy()
    weight[2, 1] += 1
    artifact = write_handmade(tmp_path / "model.bsc", weight=weight)
    folder = export(artifact, tmp_path / "web", "web").parent
    y = run_in_node(folder, some_inputs())["y"]
    np.testing.assert_array_equal(y, expected(some_inputs(), weight)["y"])
    assert not np.array_equal(y, expected(some_inputs())["y"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.safetensors", "the sha256 differs"),
        ("code/kernels.wgsl", "the sha256 differs"),
        ("manifest.json", "manifest.json: not valid JSON"),
    ],
)
def test_a_changed_file_is_refused(folder, name, message):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    answer = run_in_node(folder, some_inputs())
    assert answer.startswith("BscompileError: ")
    assert name in answer
    assert message in answer


def test_a_missing_file_is_named(folder):
    (folder / "code" / "program.json").unlink()
    answer = run_in_node(folder, some_inputs())
    assert answer == "BscompileError: code/program.json: cannot be read, ENOENT"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input x is missing; the model takes float32[2, 3]"),
        ({"x": np.zeros(5)}, "input x: float32[2, 3] is 6 numbers, got 5"),
        ({"z": np.zeros(1)}, "no input is named z; known: count, x"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(folder, change, message):
    inputs = {name: array for name, array in (some_inputs() | change).items() if array is not None}
    assert run_in_node(folder, inputs) == f"BscompileError: {message}"


def test_a_missing_feature_is_named(tmp_path):
    manifest = replace(MANIFEST, features=("ray-tracing",))
    artifact = write_handmade(tmp_path / "model.bsc", manifest=manifest)
    answer = run_in_node(export(artifact, tmp_path / "web", "web").parent, some_inputs())
    assert "this GPU lacks the WebGPU feature ray-tracing" in answer


def test_an_artifact_for_another_loader_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "loader": "vm"}))
    answer = run_in_node(folder, some_inputs())
    assert "not for webgpu; build the model with --target webgpu" in answer


# ------------------------------------------------------------ without a GPU


def _javascript(code, content=b""):
    """What a script prints that is given bytes."""
    if not shutil.which("node"):
        pytest.skip("node is not installed: apt-get install nodejs")
    head = """
        const chunks = [];
        for await (const chunk of process.stdin) chunks.push(chunk);
        const given = Uint8Array.from(Buffer.concat(chunks)).buffer;
    """
    imports = f"const web = 'file://{WEB}/';"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", imports + head + code],
        input=content,
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_every_half_is_read_and_written():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    code = """
        const { halvesToFloats, floatsToHalves } = await import(web + "tensors.js");
        const floats = halvesToFloats(new Uint16Array(given));
        process.stdout.write(Buffer.concat([floats, floatsToHalves(floats)].map(
            (array) => Buffer.from(array.buffer))));
    """
    result = _javascript(code, halves.tobytes())
    floats = np.frombuffer(result[: 4 << 16], np.float32)
    back = np.frombuffer(result[4 << 16 :], np.float16)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    np.testing.assert_array_equal(back, halves)


def test_floats_are_rounded_to_halves_as_numpy_does():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2  # the ties
    near = np.concatenate([middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    values = np.concatenate([near, -near, [65519, 65520, 1e30, 1e-30, -0.0]]).astype(np.float32)
    code = """
        const { floatsToHalves } = await import(web + "tensors.js");
        process.stdout.write(Buffer.from(floatsToHalves(new Float32Array(given)).buffer));
    """
    result = np.frombuffer(_javascript(code, values.tobytes()), np.uint16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(result, values.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([-1, 2**40]),
        np.array([True, False]),
        np.float16(1.5).reshape(()),
        np.zeros((0, 3), np.uint8),
    ],
    ids=str,
)
def test_an_npy_file_is_read(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    code = """
        const { readNpy } = await import(web + "npy.js");
        const { dtype, shape, data } = readNpy("a.npy", given);
        const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
        process.stdout.write(JSON.stringify({ dtype, shape, bytes: bytes.toString("hex") }));
    """
    result = json.loads(_javascript(code, (tmp_path / "a.npy").read_bytes()))
    assert (result["dtype"], result["shape"]) == (array.dtype.name, list(array.shape))
    assert result["bytes"] == array.tobytes().hex()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "not a .npy file"),
        ("transposed", "stored by columns"),
        ("objects", "only plain numbers"),
        ("cut", "ends too early"),
    ],
)
def test_a_file_that_is_no_plain_array_is_refused(tmp_path, content, message):
    if isinstance(content, str):
        arrays = {"transposed": np.ones((3, 2)).T, "objects": np.array([{}]), "cut": np.ones(9)}
        np.save(tmp_path / "a.npy", arrays[content])
        content = (tmp_path / "a.npy").read_bytes()[: -8 if content == "cut" else None]
    code = """
        const { readNpy } = await import(web + "npy.js");
        try { readNpy("a.npy", given); } catch (error) { process.stdout.write(String(error)); }
    """
    answer = _javascript(code, content).decode()
    assert answer.startswith("BscompileError: a.npy: ")
    assert message in answer
