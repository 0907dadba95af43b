"""Train, export, build, run: the artifact knows what torch knew, and every zero block is kept."""

from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.trained_models import outcome, trained
from bscompile.formats.recover import recover_kronecker
from bscompile.models import block_sparse_layers, load
from bscompile.models.zoo.registry import ENTRIES
from tests.tolerance import assert_close


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def model_of(name):
    return trained(name, load("digits"), (3, 1))


FORMS = ("factorized", "merged")
QUICK = ("mlp", "lenet5")
# What takes a quarter of a minute is here in one form; benchmarks/trained_models.py has both, and
# what takes half a minute and more: Swin, whose export the families have, and ViT-tiny, which is
# the same code as vit-digits.
LONG = {"swin-digits": (), "vit-digits": ("merged",), "vit-tiny": ()}
CASES = [
    pytest.param(name, form, marks=() if name in QUICK else pytest.mark.slow)
    for name in ENTRIES
    for form in LONG.get(name, FORMS)
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_artifact_has_torchs_answers_and_live_blocks(name, form, tmp_path):
    model, data = model_of(name), load("digits")
    found = outcome(model, data, form, tmp_path)
    assert_close(found.got, found.want, "float32", 1024)
    assert np.array_equal(found.got.argmax(1), found.want.argmax(1))
    assert not found.wrong
    assert len(found.equal) + len(found.shrunk) + len(found.other) == len(
        dict(block_sparse_layers(model))
    )
    # Where few blocks of a small layer live, they are cheaper than its factors.
    few = {n for n, layer in block_sparse_layers(model) if isinstance(factors_of(layer), str)}
    assert set(found.other) <= few


def factors_of(layer):
    """The factors that the weight alone shows, or why it keeps none."""
    return recover_kronecker(layer.merged_weight().detach().numpy())
