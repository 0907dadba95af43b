"""The artifact file: round trip, atomic writing, refusal of everything that is not right."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from bscompile.artifact import ParamSpec, pack_params, read_artifact, write_artifact
from bscompile.artifact import archive as artifacts
from bscompile.artifact.manifest import DTYPES, Manifest
from bscompile.artifact.weights import chunks_of
from bscompile.errors import ArtifactError, StorageError
from tests.handmade import REPORT, affine_manifest, affine_weights

CODE = {"code/model.so": b"not really code " * 100}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "m.bsc")


def write(path, manifest=None, members=CODE, weights=None):
    weights = affine_weights() if weights is None else weights
    return write_artifact(path, manifest or affine_manifest(), members, weights, REPORT)


def rewrite(path, change=None, extra=(), drop=(), method=None):
    """Write the zip again: members changed by ``change(name, bytes)``, dropped or added."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            if info.filename in drop:
                continue
            if method is not None:
                info.compress_type = method
            archive.writestr(info, change(info.filename, content) if change else content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def change_manifest(path, **changes):
    def change(name, content):
        if name != "manifest.json":
            return content
        body = {**json.loads(content), **changes}
        return json.dumps({k: v for k, v in body.items() if v is not ...}).encode()

    return rewrite(path, change)


# ---------------------------------------------------------------- round trip


def test_what_was_written_is_read(path):
    read = read_artifact(path)
    assert dataclasses.replace(read.manifest, members={}) == affine_manifest()
    assert read.members == {**CODE, "report.json": REPORT.encode()}
    for name, array in affine_weights().items():
        np.testing.assert_array_equal(read.weights[name], array)
        assert read.weights[name].dtype == array.dtype
        assert read.weights[name].ctypes.data % 64 == 0


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a.bsc"), write(tmp_path / "b.bsc")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_safetensors_for_every_dtype(tmp_path, dtype):
    weights = {
        "odd": np.arange(7).astype(dtype),
        "two": np.arange(6).reshape(2, 3).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
        "scalar": np.array(1, dtype),
        "strided": np.arange(10).astype(dtype)[::3],
    }
    params = tuple(ParamSpec(n, a.shape, dtype, dtype) for n, a in weights.items())
    path = write(tmp_path / "m.bsc", affine_manifest(params=params), weights=weights)
    with zipfile.ZipFile(path) as archive:
        theirs = safetensors.numpy.load(archive.read("weights.safetensors"))
    ours = read_artifact(path).weights
    for name, array in weights.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
        assert ours[name].shape == array.shape


def test_the_file_is_little_more_than_the_weights(tmp_path):
    weights = {"w": np.random.default_rng(0).standard_normal((256, 1024), np.float32)}
    manifest = affine_manifest(params=(ParamSpec("w", (256, 1024), "float32", "float32"),))
    path = write(tmp_path / "m.bsc", manifest, weights=weights)
    assert path.stat().st_size < 1.01 * weights["w"].nbytes


def test_looking_leaves_the_weights_out(path):
    assert read_artifact(path, weights=False).weights == {}


def test_manifest_and_weights_must_agree_when_writing(tmp_path):
    weights = affine_weights()
    with pytest.raises(ValueError, match="'b' that is not there"):
        write(tmp_path / "m.bsc", weights={"w": weights["w"]})
    with pytest.raises(ValueError, match="'spare' is used by no parameter"):
        write(tmp_path / "m.bsc", weights={**weights, "spare": weights["b"]})
    with pytest.raises(ValueError, match="is float64"):
        write(tmp_path / "m.bsc", weights={**weights, "b": weights["b"].astype(np.float64)})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- packing


def test_a_shared_array_is_stored_once():
    shared = np.ones((3, 3), np.float32)
    weights, params = pack_params([("a", shared), ("b", shared), ("c", shared.copy())])
    assert list(weights) == ["a", "c"]
    assert [param.name for param in params] == ["a", "a", "c"]


def test_equal_names_are_told_apart():
    weights, params = pack_params([("w", np.zeros(2)), ("w", np.ones(3))])
    assert [param.name for param in params] == ["w", "w.1"]
    assert [array.shape for array in weights.values()] == [(2,), (3,)]


def test_narrow_storage_only_where_it_loses_nothing():
    halves = np.array([0.5, -2, 65504, 6e-8, 0], np.float16).astype(np.float32)
    late = np.zeros(10_000, np.float32)
    late[-1] = 1e-3
    arrays = {"halves": halves, "late": late, "huge": np.array([1e9], np.float32)}
    arrays |= {"double": np.array([0.5]), "whole": np.array([1]), "none": np.zeros(0, np.float32)}
    weights, params = pack_params(arrays.items())
    stored = [param.stored for param in params]
    assert stored == ["float16", "float32", "float32", "float64", "int64", "float32"]
    for param, (name, array) in zip(params, arrays.items(), strict=True):
        assert param.used == array.dtype.name
        np.testing.assert_array_equal(weights[name].astype(array.dtype), array)


# ---------------------------------------------------------------- writing


def test_an_interrupt_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def interrupted(weights):
        pieces = list(chunks_of(weights))
        yield pieces[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "chunks_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"m\.bsc: cannot be written, no space left"):
        write(tmp_path / "m.bsc")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_more_leaves_nothing(tmp_path):
    """The limit is the kernel's own, and it strikes in the middle of the weights."""
    script = """
        import resource, sys
        import numpy as np
        from bscompile.artifact import ParamSpec, write_artifact
        from bscompile.errors import StorageError
        from tests.handmade import affine_manifest
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        params = (ParamSpec("w", (1_000_000,), "float32", "float32"),)
        weights = {"w": np.zeros(1_000_000, np.float32)}
        try:
            write_artifact(sys.argv[1], affine_manifest(params=params), {}, weights, "{}")
        except StorageError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "m.bsc")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "m.bsc: cannot be written, file too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"no such file .*make the folder .*none first"):
        write(tmp_path / "none" / "m.bsc")


def test_a_folder_is_not_overwritten(tmp_path):
    with pytest.raises(StorageError, match="it is a folder"):
        write(tmp_path)


def test_a_device_is_not_replaced():
    with pytest.raises(StorageError, match="not a regular file"):
        write("/dev/null")


# ---------------------------------------------------------------- refusals


def refused(path, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        read_artifact(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 100, b"\x00" * 1000])
def test_what_is_no_zip_is_refused(tmp_path, content):
    path = tmp_path / "m.bsc"
    path.write_bytes(content)
    refused(path, "not an artifact")


def test_a_truncated_file_is_refused(path):
    content = path.read_bytes()
    for keep in range(0, len(content), max(1, len(content) // 50)):
        path.write_bytes(content[:keep])
        refused(path, "not an artifact")


@pytest.mark.parametrize("name", ["code/model.so", "report.json", "weights.safetensors"])
def test_a_changed_member_is_refused_by_its_hash(path, name):
    def change(member, content):
        if member != name:
            return content
        return content[:-1] + bytes([content[-1] ^ 1])

    refused(rewrite(path, change), rf"{name}: its content was changed after the build")


def test_a_changed_byte_of_the_weights_is_found_without_the_zip_checksum(path):
    content = bytearray(path.read_bytes())
    position = content.find(affine_weights()["w"].tobytes())
    content[position] ^= 1
    path.write_bytes(content)
    refused(path, "weights.safetensors: its content was changed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.so", "not a plain path"),
        ("/etc/evil", "not a plain path"),
        ("code/../../evil", "not a plain path"),
        ("code\\evil", "not a plain path|not in the manifest"),
        ("code//evil", "not a plain path"),
        ("extra.txt", "'extra.txt' is not in the manifest"),
    ],
)
def test_a_foreign_member_is_refused(path, name, message):
    refused(rewrite(path, extra=[(name, b"x")]), message)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_is_there_twice_is_refused(path):
    refused(rewrite(path, extra=[("code/model.so", b"x")]), "is there twice")


@pytest.mark.parametrize("name", ["code/model.so", "weights.safetensors", "manifest.json"])
def test_a_missing_member_is_refused(path, name):
    refused(rewrite(path, drop=[name]), f"'{name}' is missing|has no {name}")


def test_compressed_weights_are_refused(path):
    refused(rewrite(path, method=zipfile.ZIP_DEFLATED), "must not be compressed")


def test_other_compressions_are_refused(path):
    refused(rewrite(path, method=zipfile.ZIP_LZMA), "unknown compression 14")


def test_a_zip_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_DEFLATED_LIMIT", 1 << 20)
    path = write(tmp_path / "m.bsc", members={"code/model.so": bytes(2 << 20)})
    assert path.stat().st_size < 1 << 16
    refused(path, "code/model.so: its size of 2097152 bytes cannot be true")


def test_a_manifest_bomb_is_refused(path, monkeypatch):
    monkeypatch.setattr(artifacts, "_MANIFEST_LIMIT", 1000)
    refused(path, r"manifest.json: \d+ bytes are too many")


def test_too_many_members_are_refused(path):
    refused(rewrite(path, extra=[(f"m{i}", b"") for i in range(1001)]), "at most 1000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this bscompile reads 1"),
        ({"format": "other"}, "not a bscompile artifact"),
        ({"target": ...}, "the field 'target' is missing"),
        ({"target": 3}, "target: text is wanted, got int"),
        ({"threads": True}, "threads: a whole number"),
        ({"threads": 0}, "threads: a whole number of at least 1"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"features": "avx"}, "features: a list is wanted, got str"),
        ({"inputs": [3]}, "an object is wanted, got int"),
        ({"inputs": [{"name": "x", "shape": [-1], "dtype": "float32"}]}, "shape of 'x'"),
        ({"inputs": [{"name": "x", "shape": [1.5], "dtype": "float32"}]}, "shape of 'x'"),
        ({"inputs": [{"name": "x", "shape": [1], "dtype": "object"}]}, "unknown dtype 'object'"),
        ({"inputs": [{"name": "x", "shape": [], "dtype": "int8"}] * 2}, "two inputs"),
        ({"members": {"code/model.so": {"size": 1, "sha256": "a" * 64}}}, "is not in|missing"),
        ({"members": {"a": {"size": 1, "sha256": "xyz"}}}, "not 64 hex digits"),
        ({"params": []}, "is used by no parameter"),
    ],
)
def test_every_field_of_the_manifest_is_checked(path, changes, message):
    refused(change_manifest(path, **changes), message)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "9" * 10_000, "\xff", "null"])
def test_a_manifest_that_is_no_object_is_refused(text):
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Manifest.from_json(text.encode("latin-1"))


def test_a_weights_header_that_lies_is_refused(path):
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    lies = [
        ({"w": {**good, "shape": [5]}}, "16 bytes for a shape of 20"),
        ({"w": {**good, "data_offsets": [4, 20]}}, "overlap, leave a gap or overrun"),
        ({"w": good, "b": good}, "overlap, leave a gap or overrun"),
        ({"w": {**good, "shape": [2**40, 2**40]}}, "bytes for a shape of"),
        ({"w": {**good, "data_offsets": [0, 2**61], "shape": [2**59]}}, "overrun"),
        ({"w": {**good, "dtype": "BF16"}}, "broken header entry"),
        ({"w": {**good, "shape": 4}}, "broken header entry"),
        ({"w": {**good, "data_offsets": [0]}}, "broken header entry"),
        ({"w": 3}, "dtype, shape and data_offsets"),
        ([], "not an object"),
    ]
    for header, message in lies:
        text = json.dumps(header).encode()
        blob = len(text).to_bytes(8, "little") + text + bytes(16)
        refused(with_weights(path, blob), message)
    refused(with_weights(path, b"\xff" * 8 + b"{}"), "does not fit the file")
    refused(with_weights(path, b"\x02\0\0\0\0\0\0\0{}xx"), "2 bytes belong to no weight")
    refused(with_weights(path, b"\x02\0\0\0\0\0\0\0[{"), "not valid JSON")
    refused(with_weights(path, b"abc"), "too few for a header")


def with_weights(path, blob):
    """The artifact with other bytes as its weights, and a manifest that agrees with them."""
    import hashlib

    with zipfile.ZipFile(path) as archive:
        members = json.loads(archive.read("manifest.json"))["members"]
    digest = hashlib.sha256(blob).hexdigest()
    members["weights.safetensors"] = {"size": len(blob), "sha256": digest}
    rewrite(path, lambda name, old: blob if name == "weights.safetensors" else old)
    return change_manifest(path, members=members)
