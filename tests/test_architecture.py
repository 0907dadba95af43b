"""The house: imports run downwards only, and the front door is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bscompile

ROOT = Path(bscompile.__file__).parent

#: From the ground up; a module may import its own floor and those before it.
FLOORS = [
    ("errors",),
    ("files",),
    ("artifact", "devices"),
    ("formats", "sizes"),
    ("dialect",),
    ("passes", "importer"),
    ("targets",),
    ("tuning",),
    ("report",),
    ("compiler", "runtime"),
    ("reference", "samples", "arrays"),
    ("benchmark", "verification", "export"),
    ("tuner",),
    ("api",),
    ("__init__", "cli", "demo", "__main__"),
]
#: Beside the road, and what runs without the compiler: what these may import of ours.
BESIDE = {
    "models": {"models", "formats", "files", "errors"},
    "artifact": {"artifact", "files", "errors"},
    "devices": {"devices", "errors"},
    "runtime": {"runtime", "artifact", "devices", "files", "errors"},
}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield path, relative.parts[0].removesuffix(".py")


def _imports(path):
    """First components below bscompile that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "bscompile"
                else [f"bscompile.{alias.name}" for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("bscompile."):
                yield name.split(".")[1]


def _allowed(room):
    if room in BESIDE:
        return BESIDE[room]
    below = set()
    for floor in FLOORS:
        below |= set(floor)
        if room in floor:
            return below | ({"models"} if room in {"cli", "demo"} else set())
    return None


def test_every_room_has_a_floor():
    assert {room for _, room in _modules() if _allowed(room) is None} == set()


def test_imports_run_downwards_only():
    wrong = [
        f"{path.relative_to(ROOT)} imports bscompile.{name}"
        for path, room in _modules()
        for name in _imports(path)
        if name not in _allowed(room)
    ]
    assert not wrong, "\n".join(wrong)


def _imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_only_models_and_the_demo_import_torch():
    offenders = [
        str(path.relative_to(ROOT))
        for path, room in _modules()
        if room not in {"models", "demo"} and "torch" in _imported_packages(path)
    ]
    assert offenders == []


def test_the_links_at_the_root_point_into_the_package():
    checkout = ROOT.parent
    for name in ("passes", "targets", "models"):
        link = checkout / name
        assert link.is_symlink(), f"{name} should be a link to bscompile/{name}"
        assert link.resolve() == (ROOT / name).resolve()


@pytest.mark.parametrize("module", ["bscompile", "bscompile.errors", "bscompile.targets"])
def test_light_modules_import_nothing_heavy(module):
    code = (
        f"import {module}, sys; "
        "print([m for m in ('tvm', 'torch', 'onnx_ir', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
