"""The runtime: results, contract checks, memory, threads."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from bscompile import runtime
from bscompile.artifact import CODE, ParamSpec, TensorSpec, write_artifact
from bscompile.errors import ArtifactError, StorageError, UsageError
from bscompile.runtime import tvm_library
from bscompile.runtime.model import _check_shape
from tests.handmade import (
    REPORT,
    affine_manifest,
    affine_reference,
    affine_weights,
    four_only_code,
    write_affine,
)
from tests.tolerance import assert_close


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_affine(tmp_path_factory.mktemp("artifact") / "affine.bsc")


@pytest.fixture(scope="module")
def model(path):
    return runtime.load(path)


def rows(count):
    return np.random.default_rng(count).standard_normal((count, 8), np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_results_equal_the_reference(model, count):
    x = rows(count)
    results = model.run({"x": x})
    assert list(results) == ["y", "product", "same_x", "same_w"]
    for name, want in affine_reference(x).items():
        assert results[name].dtype == np.float32
        assert_close(results[name], want, np.float32, 8, what=name)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x[::-1][::-1],
        lambda x: np.concatenate([np.zeros(1, np.float32), x.ravel()])[1:].reshape(x.shape),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist() and memoryview(x),
    ],
    ids=["fortran", "strided", "double-reversed", "misaligned", "big-endian", "buffer"],
)
def test_any_memory_layout_gives_the_same_result(model, arrange):
    x = rows(5)
    want = model.run({"x": x})["y"]
    np.testing.assert_array_equal(model.run({"x": arrange(x)})["y"], want)


def test_read_only_input_is_accepted_and_left_alone(model):
    x = rows(3)
    x.flags.writeable = False
    before = x.copy()
    model.run({"x": x})
    np.testing.assert_array_equal(x, before)


def test_results_belong_to_the_caller(model):
    x = rows(4)
    first = model.run({"x": x})
    kept = {name: array.copy() for name, array in first.items()}
    for array in first.values():
        array[...] = 7  # neither the input, the weights nor a later result may change
    np.testing.assert_array_equal(x, rows(4))
    second = model.run({"x": x})
    for name, array in second.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_result_outlives_the_next_call(model, count):
    """Small inputs are copied into memory that the next call uses again."""
    first, second = rows(count), rows(count) + 1
    before = model.run({"x": first})
    kept = {name: array.copy() for name, array in before.items()}
    model.run({"x": second})
    for name, array in before.items():
        np.testing.assert_array_equal(array, kept[name])


def test_an_output_that_is_a_weight_or_an_input_is_a_copy(model):
    x = rows(4)
    results = model.run({"x": x})
    assert not np.shares_memory(results["same_x"], x)
    np.testing.assert_array_equal(results["same_w"], affine_weights()["w"].astype(np.float32))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"^input x is missing \(the model takes x: float32\[n, 8\]\)$"),
        (None, r"^run: inputs by name are wanted, got NoneType \(call run\({'x': array}\)\)$"),
        ([np.zeros((2, 8), np.float32)], r"^run: inputs by name are wanted, got list"),
        ({"z": 1}, r"^no input is named 'z' \(known: x\)$"),
        ({"x": np.zeros((2, 8))}, r"^input x: float32 is wanted, got float64 .*astype"),
        ({"x": np.zeros((2, 8), np.int64)}, "float32 is wanted, got int64"),
        ({"x": np.zeros(8, np.float32)}, r"has 2 axes, got the shape \[8\]"),
        ({"x": np.zeros((2, 9), np.float32)}, r"axis 1 is 8 long, got \[2, 9\]"),
        ({"x": np.zeros((0, 8), np.float32)}, "axis 0 is empty"),
        ({"x": [[1, 2], [3]]}, "not an array"),
        ({"x": np.array(["a"])}, "float32 is wanted"),
    ],
)
def test_a_wrong_input_is_named_in_one_line(model, inputs, message):
    with pytest.raises(UsageError, match=message) as caught:
        model.run(inputs)
    assert "\n" not in str(caught.value)


def test_equal_symbols_must_have_equal_lengths():
    specs = [TensorSpec("a", ("n", "m"), "float32"), TensorSpec("b", ("m", "n"), "float32")]
    lengths: dict[str, tuple[int, str]] = {}
    _check_shape(specs[0], (2, 3), lengths)
    _check_shape(specs[1], (3, 2), lengths)
    with pytest.raises(UsageError, match=r"axis 0 \(m\) is 4 long, but 3 in input a"):
        _check_shape(specs[1], (4, 2), lengths)


def test_one_input_may_be_passed_alone(tmp_path, model):
    results = model(rows(2))
    assert set(results) == {"y", "product", "same_x", "same_w"}


def test_a_closed_model_says_so(path):
    with runtime.load(path) as closing:
        closing.run({"x": rows(1)})
    with pytest.raises(UsageError, match="closed"):
        closing.run({"x": rows(1)})


def test_threads_share_a_model(model):
    wanted = {count: model.run({"x": rows(count)})["y"] for count in range(1, 9)}
    failures = []

    def work(count):
        for _ in range(50):
            if not np.array_equal(model.run({"x": rows(count)})["y"], wanted[count]):
                failures.append(count)

    workers = [threading.Thread(target=work, args=(count,)) for count in wanted]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_threads_that_end_take_their_workers_along(path):
    out = run_python(
        """
        import os, sys, threading, time
        import numpy as np
        import bscompile
        model = bscompile.load(sys.argv[1])
        x = np.ones((3, 8), np.float32)
        model.run({"x": x})
        before = len(os.listdir("/proc/self/task"))
        for _ in range(10):
            thread = threading.Thread(target=model.run, args=({"x": x},))
            thread.start()
            thread.join()
        deadline = time.monotonic() + 30
        while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        print(len(os.listdir("/proc/self/task")) - before)
        """,
        path,
    )
    assert out.split() == ["0"]


def test_profile_names_every_kernel(model):
    calls = model.profile({"x": rows(16)}, repeats=2)
    assert any("matmul" in symbol for symbol, _ in calls)
    assert all(seconds > 0 and not symbol.startswith("vm.") for symbol, seconds in calls)


def test_thread_counts(path, model):
    assert runtime.load(path, threads=1).threads == 1
    assert runtime.load(path, threads=10_000).threads == len(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match="at least 1 is wanted, got 0"):
        runtime.load(path, threads=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("avx99", "fma")}, "needs CPU features that .* lacks: avx99"),
        ({"machine": "z80"}, "built for z80 processors"),
        ({"loader": "quantum"}, "made for the loader 'quantum'"),
        ({"versions": {"apache-tvm": "0.1"}}, "built with apache-tvm 0.1, installed is"),
    ],
)
def test_code_for_another_machine_is_not_loaded(tmp_path, monkeypatch, changes, message):
    path = write_affine(tmp_path / "other.bsc", **changes)
    monkeypatch.setattr(tvm_library, "Executable", None)  # would fail if reached
    with pytest.raises(ArtifactError, match=message) as caught:
        runtime.load(path)
    assert str(path) in str(caught.value)


def test_a_manifest_that_disagrees_with_the_code_is_refused(tmp_path):
    params = (*(ParamSpec("w", (8, 4), "float16", "float32"),) * 2,)
    params += (ParamSpec("b", (4,), "float32", "float32"),)
    path = write_affine(tmp_path / "arity.bsc", params=params)
    with pytest.raises(ArtifactError, match="takes 3 arguments, the manifest lists 4"):
        runtime.load(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StorageError, match="cannot be read, no such file"):
        runtime.load(tmp_path / "none.bsc")


def test_code_that_is_no_library_is_refused(tmp_path):
    for content in (b"", b"not a library", b"\x7fELF" + bytes(1000)):
        path = write_artifact(
            tmp_path / "m.bsc", affine_manifest(), {CODE: content}, affine_weights(), REPORT
        )
        with pytest.raises(ArtifactError, match="its code cannot be loaded") as caught:
            runtime.load(path)
        assert "\n" not in str(caught.value)


def test_an_artifact_without_code_is_refused(tmp_path):
    path = write_artifact(tmp_path / "m.bsc", affine_manifest(), {}, affine_weights(), REPORT)
    with pytest.raises(ArtifactError, match=r"the member 'code/model.so' is missing"):
        runtime.load(path)


def test_lengths_that_only_the_code_refuses_are_one_line(tmp_path):
    manifest = affine_manifest(
        inputs=(TensorSpec("x", ("n",), "float32"),),
        outputs=(TensorSpec("y", (4,), "float32"),),
        params=(),
    )
    path = write_artifact(tmp_path / "m.bsc", manifest, {CODE: four_only_code()}, {}, REPORT)
    model = runtime.load(path)
    x = np.array([-1, 0, 1, 2], np.float32)
    np.testing.assert_array_equal(model(x), [0, 0, 1, 2])
    with pytest.raises(UsageError, match=r"the model cannot run on x \[5\]: ") as caught:
        model(np.arange(5, dtype=np.float32))
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(model(x), [0, 0, 1, 2])  # it still works afterwards


def run_python(code, *arguments):
    """Run code in a fresh interpreter and return its stdout."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_needs_neither_compiler_nor_torch_nor_onnx(path):
    out = run_python(
        """
        import sys
        import numpy as np
        import bscompile

        model = bscompile.load(sys.argv[1])
        y = model.run({"x": np.ones((3, 8), np.float32)})["y"]
        heavy = ("torch", "onnx", "onnx_ir", "onnxruntime", "tvm", "bscompile.compiler",
                 "bscompile.dialect", "rich", "click", "networkx")
        print([name for name in heavy if name in sys.modules])
        print("libtvm_compiler" in open("/proc/self/maps").read(), y.shape)
        """,
        path,
    )
    assert out.splitlines() == ["[]", "False (3, 4)"]


def test_numpy_and_the_tvm_runtime_are_all_that_it_takes(path, tmp_path):
    """An interpreter whose whole path holds nothing else."""
    needed = ("bscompile", "numpy", "tvm", "tvm_ffi", "typing_extensions")
    for name in needed:
        origin = Path(importlib.util.find_spec(name).origin)
        origin = origin.parent if origin.name == "__init__.py" else origin
        (tmp_path / origin.name).symlink_to(origin)
    site = Path(importlib.util.find_spec("numpy").origin).parents[1]
    for extra in (*site.glob("numpy.libs"), *site.glob("apache_tvm-*.dist-info")):
        (tmp_path / extra.name).symlink_to(extra)
    code = """
        import sys
        import numpy as np
        import bscompile
        y = bscompile.load(sys.argv[1]).run({"x": np.ones((3, 8), np.float32)})["y"]
        print(y.shape, "click" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code), str(path)],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(3, 4) False"


def test_the_compiler_may_be_imported_before_and_after(path):
    out = run_python(
        """
        import sys
        import numpy as np
        import bscompile
        x = np.ones((3, 8), np.float32)
        first = bscompile.load(sys.argv[1])
        before = first.run({"x": x})["y"]
        import tvm
        tvm.runtime.tensor(x)
        after = bscompile.load(sys.argv[1]).run({"x": x})["y"]
        print(np.array_equal(before, after), np.array_equal(before, first.run({"x": x})["y"]))
        """,
        path,
    )
    assert out.split() == ["True", "True"]


def test_no_copy_of_the_code_is_left_behind(path, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runtime.load(path).run({"x": rows(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_instead_of_hanging(model):
    model.run({"x": rows(3)})
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            model.run({"x": rows(3)})
        except UsageError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
