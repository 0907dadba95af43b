"""Mutations of a valid artifact: a clean error, or exactly the same content."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.artifact import read_artifact, write_artifact
from bscompile.errors import ArtifactError
from tests.handmade import REPORT, affine_manifest, affine_weights

SEEDS = range(400)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "m.bsc"
    code = {"code/model.so": np.random.default_rng(0).bytes(500)}
    write_artifact(path, affine_manifest(), code, affine_weights(), REPORT)
    return path, path.read_bytes(), read_artifact(path)


def flip_bits(rng, content):
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return content


def set_bytes(rng, content):
    for _ in range(rng.integers(1, 8)):
        content[rng.integers(len(content))] = rng.choice([0, 1, 127, 128, 255])
    return content


def set_length(rng, content):
    """Overwrite a field of the zip's own structure with an extreme number."""
    headers = [content.find(mark) for mark in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04")]
    start = int(rng.choice([at for at in headers if at >= 0])) + int(rng.integers(4, 46))
    width = int(rng.choice([2, 4, 8]))
    number = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1])) % 256**width
    content[start : start + width] = number.to_bytes(width, "little")
    return content


def cut_out(rng, content):
    start, stop = sorted(rng.integers(len(content), size=2))
    del content[start:stop]
    return content


def insert(rng, content):
    at = rng.integers(len(content))
    content[at:at] = rng.bytes(int(rng.integers(1, 200)))
    return content


def copy_over(rng, content):
    source, goal = rng.integers(len(content), size=2)
    length = int(rng.integers(1, 100))
    content[goal : goal + length] = content[source : source + length]
    return content


MUTATIONS = (flip_bits, set_bytes, set_length, cut_out, insert, copy_over)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_mutated_artifact_is_refused_or_equal(original, mutate):
    path, content, want = original
    goal = path.with_name("mutated.bsc")
    lines = []
    for seed in SEEDS:
        goal.write_bytes(mutate(np.random.default_rng(seed), bytearray(content)))
        try:
            got = read_artifact(goal)
        except ArtifactError as error:
            lines.append(str(error))
            continue
        # The byte lay where nothing is read from, such as a time stamp of the zip.
        assert got.manifest == want.manifest, seed
        assert got.members == want.members, seed
        for name, array in want.weights.items():
            np.testing.assert_array_equal(got.weights[name], array, err_msg=str(seed))
    assert len(lines) > len(SEEDS) / 4
    assert not [line for line in lines if "\n" in line]
