"""Every way to write a factorized layer in torch, exported, in ONNX Runtime and compiled."""

import pytest

from benchmarks.spellings import SIZES, case
from tests.passes.factorized import SPELLINGS
from tests.tolerance import assert_close

# Corners of the table that the benchmark prints in full, and all of it for the two that the
# exporters of this project and most people write.
CASES = [
    (spelling, size, dynamic)
    for spelling in SPELLINGS
    for size, dynamic in (("small", False), ("small", True), ("large", True), ("large", False))
    if dynamic == (size == "large") or spelling in ("loop", "stacked")
]


@pytest.mark.parametrize(("spelling", "size", "dynamic"), CASES)
def test_runs_in_onnxruntime_and_compiled_with_the_trained_live_blocks(
    spelling, size, dynamic, tmp_path
):
    got = case(spelling, size, dynamic, tmp_path)
    for outputs in (got.theirs, got.ours):
        assert_close(outputs, got.want, "float32", 2 * SIZES[size][0])
        assert got.error(outputs) <= 1e-4
    assert got.same_choice
    assert got.block == (8, 8)
    assert got.live == got.trained
