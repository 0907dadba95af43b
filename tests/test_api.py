"""The public names, and what happens where parts of an installation are missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import bscompile
from bscompile.errors import TargetError
from bscompile.runtime import tvm_library
from tests.handmade import write_affine


def test_every_public_name_is_there_and_documented():
    for name in bscompile.__all__:
        assert getattr(bscompile, name).__doc__, name
    assert set(bscompile.__all__) < set(dir(bscompile))
    assert bscompile.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'biuld'"):
        bscompile.biuld  # noqa: B018


@pytest.mark.parametrize("module", ["benchmark", "verification", "runtime", "report", "api"])
def test_importing_a_module_hides_no_public_name(module):
    code = f"""
        import bscompile.{module}
        assert all(callable(getattr(bscompile, name)) for name in bscompile.__all__)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_missing_runtime_says_what_to_install(tmp_path):
    path = write_affine(tmp_path / "m.bsc")
    code = """
        import sys
        from bscompile.cli import main
        sys.modules["tvm_ffi"] = None
        sys.exit(main(["run", sys.argv[1]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    expected = "bscompile: tvm_ffi is not installed (pip install apache-tvm-ffi)\n"
    assert done.stderr == expected


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tvm_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"not installed \(pip install apache-tvm\)"):
        tvm_library.load_ffi.__wrapped__()


def test_a_broken_library_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtvm_runtime.so").write_bytes(b"no library")

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(tvm_library.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(TargetError, match="the TVM runtime cannot be loaded"):
        tvm_library.load_ffi.__wrapped__()


def test_compiling_imports_no_torch(tmp_path):
    code = """
        import sys
        import onnx.parser
        import bscompile

        text = '<ir_version: 9, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) '
        compiled = bscompile.build(onnx.parser.parse_model(text + "{ y = Relu(x) }"))
        assert "tvm" in sys.modules
        print("torch" in sys.modules)
        import torch
        print(bscompile.load(compiled.save(sys.argv[1]))(torch.tensor([-1.0, 2.0])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m.bsc")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "[0.", "2.]"]
