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


def _choose(path):
    """A step that picks a file for the second input, x, and runs."""
    content = list(path.read_bytes())
    return f"""async () => {{
        choose(new File([new Uint8Array({content})], "{path.name}"), 1);
        await new Promise((resolve) => setTimeout(resolve, 300));
        document.getElementById("run").click();
    }}"""


def test_a_file_of_the_users_own_is_answered(folder, tmp_path):
    x = np.array([[0.5, -1, 2], [3, 4, -5]], np.float32)
    np.save(tmp_path / "mine.npy", x)
    told = open_in_chromium(folder, _choose(tmp_path / "mine.npy"))
    assert told["what"] == "answered", told
    wanted = expected(some_inputs() | {"x": x})["y"]
    np.testing.assert_array_equal(told["outputs"]["y"], wanted.reshape(-1))
    assert "mine.npy" in told["text"]


def test_a_file_of_another_shape_is_refused(folder, tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((3, 3), np.float32))
    told = open_in_chromium(folder, _choose(tmp_path / "mine.npy"))
    assert told["what"] == "failed"
    wanted = "mine.npy: input x takes float32[2, 3], the file holds float32[3, 3]"
    assert told["message"] == wanted
