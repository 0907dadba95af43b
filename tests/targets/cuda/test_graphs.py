"""Calls as CUDA graphs, on the emulated driver: captured, replayed, refused, dropped.

It keeps launches while a stream is captured, as the real driver does, and refuses what that
refuses: other streams, waiting. Whether replays are faster only a GPU can show.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import bscompile
from bscompile.compiler import CompileOptions, compile_model
from bscompile.runtime import cuda_graph
from tests.passes.helpers import run_ort
from tests.targets.cuda.test_models import PERCEPTRON, model

SHAPES = {"w1": (48, 64), "b1": (64,), "w2": (64, 32)}


@pytest.fixture(scope="module")
def built(on_emulator, tmp_path_factory):
    proto = model(PERCEPTRON, np.random.default_rng(0), SHAPES)
    compiled = compile_model(proto, CompileOptions(target="cuda:sm_90"))
    return proto, compiled.save(tmp_path_factory.mktemp("graphs") / "m.bsc")


@pytest.fixture
def loaded(built):
    with bscompile.load(built[1]) as opened:
        yield opened


def check(built, loaded, rng, rows):
    """One call with new numbers, against onnxruntime."""
    x = rng.standard_normal((rows, 48)).astype(np.float32)
    (want,) = run_ort(built[0], {"x": x})
    np.testing.assert_allclose(loaded.run({"x": x})["y"], want, rtol=1e-4, atol=1e-6)


def recorder(loaded):
    return loaded._executor._recorder


def test_the_second_call_is_captured_and_replays_take_new_inputs(built, loaded, rng):
    check(built, loaded, rng, 5)
    assert recorder(loaded).graphs == 0
    for _ in range(3):
        check(built, loaded, rng, 5)
        assert recorder(loaded).graphs == 1


def test_shapes_have_graphs_of_their_own(built, loaded, rng):
    for rows in (5, 5, 3, 5, 3, 5, 3):
        check(built, loaded, rng, rows)
    assert recorder(loaded).graphs == 2


def test_results_are_those_of_the_replay(built, loaded, rng, monkeypatch):
    """Nothing runs while capturing: without the launch the results are not there."""
    check(built, loaded, rng, 4)
    monkeypatch.setattr(
        cuda_graph.Recorder, "_replay", lambda self, recording, inputs: recording.results
    )
    x = rng.standard_normal((4, 48)).astype(np.float32)
    (want,) = run_ort(built[0], {"x": x})
    got = loaded.run({"x": x})["y"]
    assert not np.allclose(got, want, atol=1e-3)


def test_a_call_that_cannot_be_captured_runs_without(built, loaded, rng, monkeypatch):
    executor = loaded._executor
    wait = ctypes.CDLL("libcudart.so.13").cudaStreamSynchronize
    call = executor._call

    def waiting(tensors):  # as an operator does that asks the device for a number
        wait(None)
        return call(tensors)

    monkeypatch.setattr(executor, "_call", waiting)
    for _ in range(3):
        check(built, loaded, rng, 6)
    assert recorder(loaded).graphs == 0


def test_they_can_be_turned_off(built, loaded, rng, monkeypatch):
    monkeypatch.setenv(cuda_graph.SWITCH, "0")
    for _ in range(3):
        check(built, loaded, rng, 7)
    assert recorder(loaded).graphs == 0


def test_the_oldest_graph_goes_first(built, loaded, rng, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_MOST", 2)
    for rows in (1, 2, 3, 1, 2, 3):
        check(built, loaded, rng, rows)
    assert recorder(loaded).graphs == 2
