"""The exported page in headless Chromium: what a person would see."""

import numpy as np
import pytest

from bscompile.export import ExportOptions, export
from tests.targets.webgpu.handmade import expected, some_inputs, write_handmade
from tests.targets.webgpu.stacks import need_chromium, open_in_chromium


@pytest.fixture
def folder(tmp_path):
    need_chromium()
    artifact = write_handmade(tmp_path / "model.bsc")
    return export(artifact, tmp_path / "web", "web", ExportOptions(inputs=some_inputs())).parent


def test_the_page_shows_the_answer_to_the_sample_and_the_time(folder):
    told = open_in_chromium(folder)
    assert told["what"] == "answered", told
    for name, wanted in expected(some_inputs()).items():
        np.testing.assert_array_equal(told["outputs"][name], wanted.reshape(-1))
    assert told["median"] > 0
    for text in ("handmade", "37.500", "ms for one call, median of", "x: float32[2, 3]"):
        assert text in told["text"]


def test_the_page_says_which_file_was_changed(folder):
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    told = open_in_chromium(folder)
    assert told["what"] == "failed"
    assert "weights.safetensors: its content was changed" in told["message"]
    assert told["message"] in told["text"]
