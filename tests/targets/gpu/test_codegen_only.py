"""Targets whose code nothing runs: the code is there, and every place says what it is worth."""

from __future__ import annotations

import pytest

import bscompile
from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.launches import Launches
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.artifact.program import Program
from bscompile.errors import ArtifactError, TargetError
from bscompile.targets import get_target
from bscompile.targets.rocm.link import find_linker
from tests.targets.static_running import sparse_mlp


def needs_linker():
    try:
        find_linker()
    except TargetError as error:
        return str(error)
    return ""


TARGETS = [
    pytest.param("metal", b"kernel void", id="metal"),
    pytest.param("rocm:gfx942", b"\x7fELF", id="rocm",
                 marks=pytest.mark.skipif(bool(needs_linker()), reason=needs_linker() or "there")),
]  # fmt: skip


@pytest.mark.parametrize(("target", "begins"), TARGETS)
def test_code_is_generated_for_a_whole_model(target, begins, tmp_path):
    compiled = bscompile.build(sparse_mlp(), target=target)
    program = Program.from_json(compiled.members[PROGRAM])
    launches = Launches.from_json(compiled.members[LAUNCHES])
    launches.check(program)
    entries = {one.entry for step in program.steps for one in launches.kernels[step.kernel]}
    sources = {
        name.rpartition("/")[2].partition(".")[0]: content
        for name, content in compiled.members.items()
        if name.startswith("code/kernels/")
    }
    assert set(sources) == entries
    assert all(begins in content for content in sources.values())
    assert all(entry.encode() in sources[entry] for entry in entries)
    path = compiled.save(tmp_path / "model.bsc")
    with pytest.raises(ArtifactError, match=f"made for the loader '{target.partition(':')[0]}'"):
        bscompile.load(path)


@pytest.mark.parametrize("name", ["metal", "rocm"])
def test_they_say_that_nothing_was_run(name):
    target = get_target(name)
    found = target.detect()
    assert not found.runs
    assert "code generation only" in target.description
    assert "code generation only" in found.detail
