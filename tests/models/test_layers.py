import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from bscompile.errors import UsageError
from bscompile.models import BlockSparseLinear
from bscompile.models.function import FORMS, cheapest_form, macs_per_row
from tests.tolerance import assert_close

CASES = [
    # in, out, block, rank
    (12, 20, (4, 3), 1),
    (12, 20, (4, 3), 3),
    (16, 16, (4, 4), 4),
    (24, 8, (8, 2), 2),
    (6, 35, (5, 6), 7),
    (9, 7, (7, 9), 1),
]


def built_output(layer, x):
    return linear(x, layer.merged_weight(), layer.bias)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("inner", "out", "block", "rank"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_and_all_gradients_equal_the_built_weight(form, inner, out, block, rank, dtype):
    torch.manual_seed(0)
    layer = BlockSparseLinear(inner, out, block, rank, dtype=dtype)
    layer.use_form(form)
    layer.mask.view(-1)[::3] = False
    x = torch.randn(5, inner, dtype=dtype, requires_grad=True)
    operands = [x, *layer.parameters()]
    grad_output = torch.randn(5, out, dtype=dtype)
    want = torch.autograd.grad(built_output(layer, x), operands, grad_output)
    got = torch.autograd.grad(layer(x), operands, grad_output)
    name = str(dtype).removeprefix("torch.")
    k = rank * inner * out
    assert_close(layer(x).detach(), built_output(layer, x).detach(), name, k)
    for what, a, b in zip(["x", *dict(layer.named_parameters())], got, want, strict=True):
        assert_close(a, b, name, k, what=f"gradient of {what}")


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_first_and_second_order(form):
    torch.manual_seed(1)
    layer = BlockSparseLinear(6, 8, (4, 3), 2, dtype=torch.float64)
    layer.use_form(form)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    operands = (x, *layer.parameters())

    def run(x, S, A, B, bias):
        values = dict(zip(["S", "A", "B", "bias"], (S, A, B, bias), strict=True))
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(run, operands)
    assert torch.autograd.gradgradcheck(run, operands)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_rows_and_leading_axes(rows, form):
    layer = BlockSparseLinear(8, 12, 4, 2)
    layer.use_form(form)
    x = torch.randn(2, rows, 8)
    y = layer(x)
    assert y.shape == (2, rows, 12)
    assert_close(y.detach(), built_output(layer, x).detach(), "float32", 16)


def test_saves_only_the_input_and_the_factors():
    layer = BlockSparseLinear(64, 64, 8, 4, bias=False)
    layer.use_form("b_first")
    x = torch.randn(10, 64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    activations = [t for t in saved if t.numel() >= x.numel()]
    assert {t.data_ptr() for t in activations} == {x.data_ptr()}


def test_masked_blocks_are_exactly_zero_and_get_no_gradient():
    layer = BlockSparseLinear(16, 16, 4, 2)
    layer.mask[1, 2] = False
    layer(torch.randn(3, 16)).square().sum().backward()
    assert not layer.weight[4:8, 8:12].any()
    assert layer.S.grad[1, 2] == 0
    assert not layer.A.grad[:, 1, 2].any()
    assert layer.sparsity == 1 / 16


def test_random_start_keeps_the_variance():
    torch.manual_seed(0)
    layer = BlockSparseLinear(512, 512, 8, 2)
    assert layer.weight.var().item() * 512 == pytest.approx(2.0, rel=0.15)


def test_block_norms_equal_those_of_the_built_weight():
    layer = BlockSparseLinear(12, 8, (4, 3), 3, dtype=torch.float64)
    blocks = layer.weight.view(2, 4, 4, 3)
    assert_close(layer.block_norms(), blocks.square().sum((1, 3)).sqrt().detach(), "float64", 12)


def test_cheapest_form_follows_the_shape():
    assert cheapest_form((1024, 256), (8, 8), 1) == "b_first"
    assert cheapest_form((256, 1024), (8, 8), 1) == "a_first"
    assert cheapest_form((256, 256), (8, 8), 8) == "built"
    assert macs_per_row((128, 64), (8, 8), 2) == {
        "b_first": 2 * (64 * 8 + 128 * 8),
        "a_first": 2 * (128 * 8 + 64 * 8 * 2),
        "built": 8192,
        "fused": 2 * (64 * 8 + 128 * 8),
    }


def test_bad_sizes_are_named():
    with pytest.raises(UsageError, match=r"block 8x8 must divide the weight \[10, 64\]"):
        BlockSparseLinear(64, 10, 8)
    with pytest.raises(UsageError, match=r"rank must lie in 1\.\.8 .* got 9"):
        BlockSparseLinear(16, 16, (4, 8), 9)
    with pytest.raises(UsageError, match=r"wanted input \[\.\.\., 64\], got \[3, 32\]"):
        BlockSparseLinear(64, 64, 8)(torch.randn(3, 32))


def test_bfloat16_and_autocast():
    torch.manual_seed(0)
    layer = BlockSparseLinear(32, 32, 8, 2)
    x = torch.randn(4, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.A.grad.dtype == torch.float32
    want = built_output(layer, x).detach()
    assert_close(y.detach().float(), want, "float32", 64, scale=want.abs().max().item() * 2**14)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_state_dict_round_trip_keeps_the_mask():
    layer, other = BlockSparseLinear(16, 16, 4, 2), BlockSparseLinear(16, 16, 4, 2)
    layer.mask[0] = False
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, other.weight)
    assert other.sparsity == 0.25


def test_gradient_checkpointing_gives_the_same_gradients():
    layer = nn.Sequential(BlockSparseLinear(16, 16, 4, 2), nn.ReLU())
    x = torch.randn(4, 16)
    want = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.sum(), list(layer.parameters())), want, strict=True):
        assert torch.equal(a, b)
