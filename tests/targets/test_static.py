"""Static executables: whole models equal onnxruntime on every processor; what is refused."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest

import bscompile
from bscompile.artifact import read_artifact, write_artifact
from bscompile.artifact.program import image_checksum, image_size, weights_image
from bscompile.cli import main
from bscompile.devices import cpu as machine
from bscompile.errors import ArtifactError, ModelError, StorageError, TargetError
from bscompile.export import export as export_artifact
from bscompile.runtime.native import write_weights
from bscompile.targets import native
from bscompile.verification import verify
from tests.end_to_end.families import FAMILIES, export
from tests.targets.static_running import machine_cases, needs, sparse_mlp

HERE = platform.machine()
CROSS = machine_cases(["aarch64", "riscv64"])
EVERYWHERE = machine_cases(
    ["static", "aarch64", "aarch64-sve", "aarch64-sme", "riscv64", "riscv64-vla"]
)


@pytest.fixture(scope="module")
def mlp():
    return sparse_mlp()


@pytest.fixture(scope="module")
def artifact(mlp, tmp_path_factory):
    """The small model, built for this machine."""
    path = tmp_path_factory.mktemp("static") / "mlp.bsc"
    bscompile.build(mlp, "cpu:static", threads=2).save(path)
    return path


def feeds(seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)}


def wanted(proto, inputs):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("variant", EVERYWHERE)
def test_block_sparse_model(variant, mlp, tmp_path):
    compiled = bscompile.build(mlp, f"cpu:{variant}", threads=2)
    assert all(layer.form == "block_sparse" for layer in compiled.report.layers)
    with bscompile.load(compiled.save(tmp_path / "mlp.bsc")) as model:
        for seed in range(3):
            got = model.run(feeds(seed))["y"]
            np.testing.assert_allclose(got, wanted(mlp, feeds(seed)), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        pytest.param(family, *case.values, marks=case.marks)
        for family, cases in {
            "lenet5": CROSS,
            "vit": machine_cases(["static", "aarch64"]),
        }.items()
        for case in cases
    ],
)
def test_whole_models(family, variant, tmp_path):
    path = export(FAMILIES[family], tmp_path / "model.onnx")
    built = bscompile.build(str(path), f"cpu:{variant}", threads=2).save(tmp_path / "model.bsc")
    result = verify(built, path, samples=2)
    assert result.passed, result.worst


# ---------------------------------------------------------------- the program itself


@pytest.fixture
def unpacked(artifact, tmp_path):
    """The artifact as files: the program, its weights, an object to link with, its header."""
    read = read_artifact(artifact)
    for name in ("model", "model.o", "bscompile_model.h"):
        (tmp_path / name).write_bytes(read.members[f"code/{name}"])
    (tmp_path / "model").chmod(0o755)
    write_weights(read, tmp_path / "weights.bin")
    return tmp_path


def call(folder, *options, data=None):
    data = feeds()["x"].tobytes() if data is None else data
    return subprocess.run(
        [folder / "model", folder / "weights.bin", *options], input=data, capture_output=True
    )


@needs(HERE)
def test_the_program_answers_until_its_input_ends(unpacked, mlp):
    done = call(unpacked, data=feeds(0)["x"].tobytes() + feeds(1)["x"].tobytes())
    assert done.returncode == 0
    got = np.frombuffer(done.stdout, np.float32).reshape(2, 3, 32)
    for seed in range(2):
        np.testing.assert_allclose(got[seed], wanted(mlp, feeds(seed)), rtol=0, atol=2e-5)
    assert call(unpacked, data=b"").stdout == b""


@needs(HERE)
@pytest.mark.parametrize("threads", ["1", "3", "64"])
def test_threads_do_not_change_the_answer(unpacked, threads):
    done = call(unpacked, "--threads", threads, "--repeat", "50")
    assert done.stdout == call(unpacked).stdout
    assert done.stderr.startswith(b"fastest call:")


@needs(HERE)
@pytest.mark.parametrize(
    ("options", "data", "code", "line"),
    [
        ([], b"12345", 1, b"bscompile: standard input ends in the middle of the inputs\n"),
        (["--thread", "2"], None, 2, b"usage: model weights.bin"),
        (["--threads"], None, 2, b"usage: model weights.bin"),
        (["--threads", "many"], None, 2, b"usage: model weights.bin"),
    ],
)
def test_wrong_use_gives_one_line(unpacked, options, data, code, line):
    done = call(unpacked, *options, data=data)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(line)
    assert done.stderr.count(b"\n") == 1


@needs(HERE)
@pytest.mark.parametrize("damage", ["changed", "short", "long", "absent"])
def test_wrong_weights_are_refused(unpacked, damage):
    weights = unpacked / "weights.bin"
    data = bytearray(weights.read_bytes())
    if damage == "absent":
        weights.unlink()
    else:
        data[len(data) // 2] ^= 1 if damage == "changed" else 0
        weights.write_bytes(data[:-128] if damage == "short" else data + b"1" * (damage == "long"))
    done = call(unpacked)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"weights" in done.stderr
    assert done.stderr.count(b"\n") == 1


_CALLER = """
#include "bscompile_model.h"
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **words) {
  size_t bytes = bscompile_weights_bytes();
  void *weights = aligned_alloc(BSCOMPILE_ALIGNMENT, bytes);
  FILE *file = fopen(words[1], "rb");
  if (count != 2 || !file || fread(weights, 1, bytes, file) != bytes) return 3;
  void *x = aligned_alloc(BSCOMPILE_ALIGNMENT, bscompile_input_bytes(0));
  void *y = malloc(bscompile_output_bytes(0));
  const void *inputs[] = {x};
  void *outputs[] = {y};
  if (bscompile_run(inputs, outputs) == 0) return 4; /* not loaded yet */
  if (bscompile_load(weights, bytes)) return 5;
  if (fread(x, 1, bscompile_input_bytes(0), stdin) != bscompile_input_bytes(0)) return 6;
  if (bscompile_input_count() != 1 || bscompile_output_count() != 1) return 7;
  if (bscompile_run(inputs, outputs)) return 8;
  fwrite(y, 1, bscompile_output_bytes(0), stdout);
  return 0;
}
"""


@needs(HERE)
def test_the_model_as_a_c_library(unpacked, mlp):
    (unpacked / "caller.c").write_text(_CALLER)
    compiler = native.MACHINES[HERE].compiler()
    command = [*compiler, "caller.c", "model.o", "-lm", "-pthread", "-o", "caller"]
    subprocess.run(command, cwd=unpacked, check=True)
    done = subprocess.run(
        [unpacked / "caller", unpacked / "weights.bin"],
        input=feeds()["x"].tobytes(), capture_output=True, check=True,
    )  # fmt: skip
    got = np.frombuffer(done.stdout, np.float32).reshape(3, 32)
    np.testing.assert_allclose(got, wanted(mlp, feeds()), rtol=0, atol=2e-5)
    assert done.stderr == b"bscompile: bscompile_load comes first\n"


@pytest.mark.parametrize("sizes", [(), (8,), (128, 3), (70000, 1, 65536)])
def test_the_checksum_is_that_of_its_words(sizes):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size).astype(np.uint8) for size in sizes]
    data = b"".join(weights_image(arrays))
    assert len(data) == image_size(weights_image(arrays)) == sum(-(-s // 128) * 128 for s in sizes)
    total = 0
    for word in np.frombuffer(data, "<u8").tolist():
        total = (total * 0x100000001B3 + word) % 2**64
    assert image_checksum(weights_image(arrays)) == total


# ---------------------------------------------------------------- export and the list of targets


@needs(HERE)
def test_export_of_a_folder_that_runs_alone(artifact, mlp, tmp_path, capsys):
    folder = tmp_path / "device"
    for _ in range(2):  # the second replaces the first
        assert main(["export", str(artifact), str(folder), "--format", "native"]) == 0
        assert capsys.readouterr().out.startswith(f"{folder / 'model'}: ")
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "model.o", "weights.bin", "bscompile_model.h", "README.txt"}
    said = (folder / "README.txt").read_text()
    assert "    x: float32[3, 64], 768 bytes\n" in said
    assert "    y: float32[3, 32], 384 bytes\n" in said
    run = subprocess.run(["./model", "weights.bin"], cwd=folder, input=feeds()["x"].tobytes(),
                         capture_output=True, check=True)  # fmt: skip
    got = np.frombuffer(run.stdout, np.float32).reshape(3, 32)
    np.testing.assert_allclose(got, wanted(mlp, feeds()), rtol=0, atol=2e-5)


def test_export_refusals(artifact, mlp, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(StorageError, match="holds files that are no export"):
        export_artifact(artifact, tmp_path / "mine", "native")
    other = bscompile.build(mlp, "cpu").save(tmp_path / "vm.bsc")
    with pytest.raises(TargetError, match="this format needs a static executable"):
        export_artifact(other, tmp_path / "new", "native")
    assert not (tmp_path / "new").exists()


def test_the_list_of_targets_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native.machines, "find_zig", list)
    assert main(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("  cpu:riscv64: "))
    assert lines[at + 1] == (
        "    here: no tools; needs: apt-get install gcc-riscv64-linux-gnu libc6-dev-riscv64-cross,"
        " or pip install ziglang; apt-get install qemu-user to run it here"
    )


# ---------------------------------------------------------------- the executor


@needs(HERE)
def test_a_killed_program_is_said_and_started_again(artifact):
    with bscompile.load(artifact) as model:
        before = model.run(feeds())["y"]
        process = model._executor._process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(ArtifactError, match="its program ended early"):
            model.run(feeds())
        np.testing.assert_array_equal(model.run(feeds())["y"], before)


@needs(HERE)
def test_changed_weights_are_refused_by_the_program(artifact, tmp_path):
    read = read_artifact(artifact)
    weights = {name: array.copy() for name, array in read.weights.items()}
    next(array for array in weights.values() if array.dtype == np.float32).flat[0] += 1
    members = {k: v for k, v in read.members.items() if k.startswith("code/")}
    changed = write_artifact(
        tmp_path / "changed.bsc",
        read.manifest,
        members,
        weights,
        read.members["report.json"].decode(),
    )
    with bscompile.load(changed) as model, pytest.raises(ArtifactError) as caught:
        model.run(feeds())
    assert "status 1: bscompile: these are not the weights" in str(caught.value)


@needs("aarch64")
def test_no_emulator(mlp, tmp_path, monkeypatch):
    path = bscompile.build(mlp, "cpu:aarch64").save(tmp_path / "mlp.bsc")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError) as caught:
        bscompile.load(path)
    assert str(caught.value) == (
        f"built for aarch64 processors, this one is {HERE} (apt-get install qemu-user to run it "
        "here by qemu-aarch64, or copy what bscompile export --format native writes)"
    )


@needs("riscv64")
def test_vectors_that_are_too_short(mlp, tmp_path, monkeypatch):
    path = bscompile.build(mlp, "cpu:riscv64").save(tmp_path / "mlp.bsc")
    monkeypatch.setenv("QEMU_CPU", "rv64,v=true,vlen=128,vext_spec=v1.0")
    with bscompile.load(path) as model, pytest.raises(ArtifactError) as caught:
        model.run(feeds())
    assert "this processor's vectors are shorter than the model was compiled for" in str(
        caught.value
    )


def test_riscv_features(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nisa\t\t: rv64imafdcv_zicsr_zba\n")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    machine.processor_fields.cache_clear()
    try:
        assert {"i", "v", "zicsr", "zba"} <= machine.cpu_features()
    finally:
        machine.processor_fields.cache_clear()


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(native.machines, "find_zig", list)
    with pytest.raises(TargetError) as caught:
        native.MACHINES["riscv64"].compiler()
    assert str(caught.value) == (
        "no C compiler for riscv64 was found (apt-get install gcc-riscv64-linux-gnu "
        "libc6-dev-riscv64-cross, or pip install ziglang)"
    )


def test_a_compiler_that_fails_is_quoted(mlp, monkeypatch, tmp_path):
    compiler = tmp_path / "broken-gcc"
    compiler.write_text("#!/bin/sh\necho 'cc1: fatal error: no space' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(native.Machine, "compiler", lambda self: [str(compiler)])
    with pytest.raises(TargetError) as caught:
        bscompile.build(mlp, "cpu:static")
    assert str(caught.value) == (
        "broken-gcc could not make the executable: cc1: fatal error: no space"
    )


def test_open_lengths_are_refused():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }""")
    with pytest.raises(ModelError, match=r"leaves 'batch' open \(give --dim batch=N\)"):
        bscompile.build(proto, "cpu:aarch64")


def test_unknown_variant():
    with pytest.raises(TargetError, match="Did you mean 'aarch64'"):
        bscompile.build(sparse_mlp(), "cpu:aarch46")
