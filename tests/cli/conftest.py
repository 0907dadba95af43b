"""A hand-made artifact, its ONNX model, and the command line called in this process."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bscompile.cli import main
from tests.handmade import affine_weights, write_affine


def affine_onnx(change=0.0):
    """The ONNX model of tests.handmade's artifact; ``change`` is added to one weight."""
    weights = {name: array.astype(np.float32) for name, array in affine_weights().items()}
    weights["w"][3, 2] += np.float32(change)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
        helper.make_node("Identity", ["x"], ["same_x"]),
        helper.make_node("Identity", ["w"], ["same_w"]),
    ]

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "affine",
        [info("x", ["n", 8])],
        [
            info("y", ["n", 4]),
            info("product", ["n", 4]),
            info("same_x", ["n", 8]),
            info("same_w", [8, 4]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    return write_affine(tmp_path_factory.mktemp("cli") / "affine.bsc")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "affine.onnx"
    onnx.save(affine_onnx(), path)
    return path


@pytest.fixture
def call(capsys):
    """Run the command line; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
