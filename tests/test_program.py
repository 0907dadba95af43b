"""The static program: what is written is read back, and nothing may reach outside its memory."""

import json

import pytest

from bscompile.artifact.program import Buffer, Program, Step, Storage
from bscompile.errors import ArtifactError

PROGRAM = Program(
    storages=(Storage(48, "input"), Storage(96, "param"), Storage(160, "scratch")),
    buffers=(
        Buffer(0, 0, (3, 4), "float32"),
        Buffer(1, 0, (6, 4), "float32"),
        Buffer(2, 64, (3, 6), "float32"),
        Buffer(2, 64, (18,), "float32"),
    ),
    steps=(Step("matmul", (0, 1, 2)),),
    outputs=(3,),
)


def test_a_program_survives_its_file():
    assert Program.from_json(PROGRAM.to_json()) == PROGRAM
    assert PROGRAM.indices("param") == (1,)
    assert PROGRAM.buffers[2].bytes == 72


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("buffers", 2, "offset"), 96, "reaches beyond its storage"),
        (("buffers", 2, "offset"), -64, "a size or index"),
        (("buffers", 2, "shape"), [3, 7, 10**9], "reaches beyond its storage"),
        (("buffers", 2, "shape"), [3, -6], "a size or index"),
        (("buffers", 2, "shape"), "33", "a size or index"),
        (("buffers", 0, "storage"), 9, "which is not there"),
        (("buffers", 0, "dtype"), "object", "unknown dtype"),
        (("steps", 0, "buffers"), [0, 1, 4], "not there"),
        (("outputs",), [True], "a size or index"),
        (("outputs",), [4], "not there"),
        (("storages", 0, "role"), "scratch", "in the order"),
        (("storages", 0, "role"), "disk", "unknown role"),
        (("storages", 0), {}, "no 'bytes'"),
        (("steps",), None, "not a static program"),
    ],
)
def test_a_hostile_program_is_refused(path, value, message):
    body = json.loads(PROGRAM.to_json())
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=message):
        Program.from_json(json.dumps(body))
