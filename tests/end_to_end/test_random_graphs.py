"""Random graphs through the whole road: equal to onnxruntime, seed by seed."""

import os

import numpy as np
import onnxruntime
import pytest

import bscompile
from tests.end_to_end.random_graphs import random_model
from tests.tolerance import assert_close

#: Seeds that always run; more by BSCOMPILE_RANDOM_GRAPHS, as after changes to passes or kernels.
FAST, ALL = 25, int(os.environ.get("BSCOMPILE_RANDOM_GRAPHS", "50"))


def check_seed(seed, folder):
    """Build the seed's model, run it at every batch, compare."""
    model, feeds, longest = random_model(seed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    peer = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    loaded = bscompile.load(bscompile.build(model, target="cpu").save(folder / "model.bsc"))
    names = [value.name for value in peer.get_outputs()]
    for one in feeds:
        got = loaded.run(one)
        for name, want in zip(names, peer.run(None, one), strict=True):
            what = f"seed {seed}, output {name}, x {one['x'].shape}"
            # The factor stands for up to five layers, each with rounding of its own.
            scale = 4 * max(float(np.abs(want).max(initial=0)), 1)
            assert_close(got[name], want, np.float32, longest, scale, what)


@pytest.mark.parametrize("seed", range(FAST))
def test_random_graph_equals_onnxruntime(seed, tmp_path):
    check_seed(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FAST, ALL))
def test_more_random_graphs_equal_onnxruntime(seed, tmp_path):
    check_seed(seed, tmp_path)
