"""Sparse models of other tools reach ONNX as constants whose zero blocks can be seen."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bscompile.formats import BlockSparseMatrix
from bscompile.models import export_onnx
from bscompile.models.foreign import plain_weights, snap_blocks


def mlp(width=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 32))


def masked(weight, block, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    live = torch.rand(weight.shape[0] // block, weight.shape[1] // block, generator=generator)
    return weight * (live < density).repeat_interleave(block, 0).repeat_interleave(block, 1)


def densities(model, tmp_path, block):
    """Density of each matrix in the exported file, and whether the answers are kept."""
    x = torch.randn(2, model[0].in_features)
    path = export_onnx(model, tmp_path / "m.onnx", x, "merged")
    proto = onnx.load(path)
    arrays = [onnx.numpy_helper.to_array(i) for i in proto.graph.initializer]
    got = onnx.reference.ReferenceEvaluator(proto).run(None, {"input": x.numpy()})[0]
    assert np.allclose(got, model(x).detach().numpy(), atol=1e-5)
    return [BlockSparseMatrix.from_dense(a, block).density for a in arrays if a.ndim == 2]


def test_weight_norm_sparsifier(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier

        model = mlp()
        sparsifier = WeightNormSparsifier(
            sparsity_level=0.75, sparse_block_shape=(1, 4), zeros_per_block=4
        )
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
        sparsifier.step()
    # Not squashed by its owner: the parametrization is still there.
    plain_weights(model)
    assert type(model[0]) is nn.Linear
    assert densities(model, tmp_path, (1, 4)) == [0.25, 0.25]


def test_masks_of_torch_prune(tmp_path):
    model = mlp()
    prune.custom_from_mask(model[0], "weight", masked(torch.ones(64, 32), 8, 0.3))
    want = model[0].weight.detach().clone()
    plain_weights(model)
    assert not prune.is_pruned(model)
    assert torch.equal(model[0].weight, want)
    first, second = densities(model, tmp_path, (8, 8))
    assert first < 0.5
    assert second == 1


def test_group_lasso_weights_that_are_nearly_zero(tmp_path):
    model = mlp()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            live = masked(layer.weight, 8, 0.25)
            layer.weight.copy_(live + 1e-5 * torch.randn_like(live))
    assert densities(model, tmp_path, (8, 8)) == [1, 1]
    first, second = snap_blocks(model, 8)
    assert densities(model, tmp_path, (8, 8)) == [
        1 - first.zeroed / first.blocks,
        1 - second.zeroed / second.blocks,
    ]
    assert 0 < first.change < 1e-3
    assert snap_blocks(model, 8)[0].zeroed == 0


def test_blocks_of_32_as_movement_pruning_leaves_them(tmp_path):
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128))
    with torch.no_grad():
        model[0].weight.copy_(masked(model[0].weight, 32, 0.3))
        model[0].weight[64:96] = 0  # and whole rows of a feed-forward layer
        model[2].weight.copy_(masked(model[2].weight, 32, 0.3, seed=1))
    found = densities(model, tmp_path, (32, 32))
    assert found == densities(plain_weights(model), tmp_path, (32, 32))
    assert max(found) < 0.6


def test_bsr_parameters(tmp_path):
    model = mlp()
    dense = masked(model[0].weight.detach(), 8, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BSR support is in beta
        model[0].weight = nn.Parameter(dense.to_sparse_bsr((8, 8)))
        plain_weights(model)
    assert model[0].weight.layout == torch.strided
    assert torch.equal(model[0].weight, dense)
    assert densities(model, tmp_path, (8, 8))[0] == pytest.approx(
        dense.view(8, 8, 4, 8).ne(0).any(3).any(1).double().mean().item()
    )
