"""Launches: what is written is read back; numbers of a hostile file never reach a device."""

import json

import pytest

from bscompile.artifact.launches import Launch, Launches
from bscompile.artifact.program import Buffer, Program, Step, Storage
from bscompile.errors import ArtifactError

LAUNCHES = Launches({"softmax": (
    Launch("largest", (2, 0), (4, 1, 1), (64, 1, 1), 256),
    Launch("divide", (0, 2, 1), (4, 2, 1), (16, 4, 1)),
)})  # fmt: skip


def program(kernel, buffers):
    memory = (Storage(16, "input"), Storage(16, "scratch"), Storage(16, "scratch"))
    views = tuple(Buffer(i, 0, (4,), "float32") for i in range(3))
    return Program(memory, views, (Step(kernel, buffers),), (1,))


def test_launches_survive_their_file():
    assert Launches.from_json(LAUNCHES.to_json()) == LAUNCHES
    assert LAUNCHES.kernels["softmax"][1].threads == 64
    LAUNCHES.check(program("softmax", (0, 1, 2)))


@pytest.mark.parametrize(
    ("kernel", "buffers", "message"),
    [("relu", (0, 1, 2), "'relu' is missing"), ("softmax", (0, 1), "wants more")],
)
def test_launches_that_do_not_fit_a_program_are_refused(kernel, buffers, message):
    with pytest.raises(ArtifactError, match=message):
        LAUNCHES.check(program(kernel, buffers))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("entry",), "x(); system"),
        (("entry",), 3),
        (("arguments",), [-1]),
        (("arguments",), [True]),
        (("grid",), [1, 1]),
        (("grid", 0), 0),
        (("block", 2), 1 << 40),
        (("shared_bytes",), "64"),
    ],
)
def test_hostile_launches_are_refused(path, value):
    body = json.loads(LAUNCHES.to_json())
    place = body["softmax"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match="not launches"):
        Launches.from_json(json.dumps(body))


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '{"a": [{}]}', "null"])
def test_other_files_are_refused(text):
    with pytest.raises(ArtifactError, match="not launches"):
        Launches.from_json(text)
