import pytest
import torch

from bscompile.errors import UsageError
from bscompile.models import block_sparse_layers, factorize, summary
from bscompile.models.function import macs_per_row
from bscompile.models.summary import measured_forward_flops
from bscompile.models.zoo import (
    BertLayer,
    LlamaLayer,
    lenet5,
    linear,
    mlp,
    swin_digits,
    swin_tiny,
    vit_base,
    vit_digits,
    vit_tiny,
)
from bscompile.models.zoo.registry import ENTRIES, create


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(build, **options):
    with torch.device("meta"):
        model = build()
        return factorize(model, **options) if options else model


@pytest.mark.parametrize(
    ("build", "options", "wanted"),
    [
        # Published smoke-test figures, then those that the table's rows were traced to.
        (vit_tiny, {}, 5_543_716),
        (vit_tiny, {"block": 4, "rank": 4}, 1_884_116),
        (vit_tiny, {"block": 8, "rank": 4, "exclude": ["head"]}, 662_308),
        (swin_tiny, {}, 27_596_254),
        (lambda: vit_base(1000), {"block": 4, "rank": 1}, 11_578_616),
        (lambda: vit_base(1000, distilled=True), {}, 87_338_192),
        (lambda: linear(784, 10), {"block": (2, 8), "rank": 1}, 996 + 10),
        (lambda: lenet5(10, 28), {}, 61_706),
    ],
)
def test_parameters_are_exactly_those_that_were_published_or_derived(build, options, wanted):
    assert parameters(on_meta(build, **options)) == wanted


@pytest.mark.parametrize("rank", [1, 2])
def test_flops_of_the_module_are_those_of_the_formula(rank):
    with torch.device("meta"):
        dense, image = vit_tiny(), torch.empty(1, 3, 224, 224)
        before = measured_forward_flops(dense, image)
        sparse = factorize(vit_tiny(), 8, rank, exclude=["head"])
        after = measured_forward_flops(sparse, image)
    saved = 0
    for _, layer in block_sparse_layers(sparse):
        out, inner = layer.shape
        form = macs_per_row(layer.shape, layer.block, rank)[layer.form]
        saved += 2 * 197 * (out * inner - form)
    assert before - after == saved


def test_summary_agrees_with_the_formula_on_every_layer():
    with torch.device("meta"):
        counted = summary(factorize(swin_tiny(), 4, 2))
    assert counted.layers
    assert all(layer.parameters == layer.formula_parameters for layer in counted.layers)


@pytest.mark.parametrize("build", [mlp, lambda: lenet5(side=8), vit_digits, swin_digits])
def test_digits_models_learn_from_rows_of_64(build):
    torch.manual_seed(0)
    model = build()
    x = torch.randn(3, 64)
    assert model(x).shape == (3, 10)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_swin_windows_do_not_see_across_the_shifted_edge():
    layer = swin_digits().stages[1].attention
    assert layer.shift == 2
    # Of the four windows the first has no wrapped neighbour, the last is cut both ways.
    blocked = layer.mask.ne(0).double().mean((1, 2))
    assert blocked.tolist() == [0, 0.5, 0.5, 0.75]


def test_llama_layer_does_not_look_ahead():
    torch.manual_seed(0)
    layer, x = LlamaLayer(32, 4, 2, 64), torch.randn(1, 5, 32)
    changed = x.clone()
    changed[:, 3:] += 1
    assert torch.allclose(layer(x)[:, :3], layer(changed)[:, :3], atol=1e-6)
    assert not torch.allclose(layer(x)[:, 3:], layer(changed)[:, 3:], atol=1e-3)


def test_bert_layer_normalises_after_each_sum():
    y = BertLayer(32, 4, 64)(torch.randn(2, 5, 32))
    assert torch.allclose(y.mean(-1), torch.zeros(2, 5), atol=1e-5)


def test_registry():
    model, dense = create("mlp", 64, 10)
    assert dense == ("4",)
    assert model[4].out_features == 10
    assert {"linear", "mlp", "lenet5", "vit-tiny"} <= set(ENTRIES)
    with pytest.raises(UsageError, match=r"unknown model 'lenet'.*Did you mean 'lenet5'"):
        create("lenet", 64, 10)
    with pytest.raises(UsageError, match="needs rows of 64 values, got 48"):
        create("lenet5", 48, 10)
