"""The fused kernels under Triton's interpreter, on the CPU, against float64."""

import sys

import pytest
import torch
from torch import nn

import bscompile.models
from bscompile.errors import UsageError
from bscompile.models import BlockSparseLinear
from tests.tolerance import assert_close

KERNELS = "bscompile.models.fused_kernels"


def forget_kernels():
    if sys.modules.pop(KERNELS, None):
        del bscompile.models.fused_kernels


@pytest.fixture
def interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    forget_kernels()  # what jit makes is decided when it decorates
    yield
    forget_kernels()


CASES = [
    # rows, in, out, block, rank: tiles whole and cut, groups of 1, 2, 4 and 8 blocks
    (5, 64, 48, (8, 8), 2),
    (40, 40, 24, (4, 4), 1),
    (17, 272, 16, (8, 8), 3),
    (3, 64, 2064, (16, 16), 1),
    (9, 96, 32, (4, 32), 2),
    (2, 24, 10, (2, 4), 2),
    (0, 16, 16, (8, 8), 1),
]


@pytest.mark.parametrize(("rows", "inner", "out", "block", "rank"), CASES)
def test_output_and_all_gradients_equal_float64(interpreter, rows, inner, out, block, rank):
    torch.manual_seed(0)
    layer = BlockSparseLinear(inner, out, block, rank)
    layer.mask.view(-1)[::3] = False
    nn.init.normal_(layer.S)
    x = torch.randn(rows, inner, requires_grad=True)
    slopes = torch.randn(rows, out)
    operands = [x, *layer.parameters()]
    exact = BlockSparseLinear(inner, out, block, rank, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    exact.use_form("built")
    wide = x.detach().double().requires_grad_()
    want = exact(wide)
    wanted = torch.autograd.grad(want, [wide, *exact.parameters()], slopes.double())
    layer.use_form("fused")
    got = layer(x)
    gradients = torch.autograd.grad(got, operands, slopes)
    k = rank * max(inner, out) * max(rows, 1)
    assert_close(got.detach(), want.detach(), "float32", k)
    for name, a, b in zip(["x", "S", "A", "B", "bias"], gradients, wanted, strict=True):
        assert_close(a, b, "float32", k, what=f"gradient of {name}")


def test_input_without_gradient_and_float16(interpreter):
    torch.manual_seed(0)
    layer = BlockSparseLinear(32, 32, 8, 2)
    x = torch.randn(6, 32)
    want = layer(x)
    want.square().sum().backward()
    pattern = layer.B.grad.clone()
    layer.zero_grad()
    layer.use_form("fused")
    layer(x).square().sum().backward()
    assert_close(layer.B.grad, pattern, "float32", 32 * 32 * 6)
    half = layer.half()(x.half())  # the interpreter cannot multiply in bfloat16
    assert half.dtype == torch.float16
    size = want.detach().abs().max().item()
    assert_close(half.detach().float(), want.detach(), "float16", 64, scale=size)


def test_refusals_name_what_is_missing(monkeypatch):
    layer = BlockSparseLinear(24, 24, (8, 3), 2)
    layer.use_form("fused")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UsageError, match="form 'fused' needs triton, which is not installed"):
        layer(torch.randn(2, 24))


def test_refuses_other_places_sides_and_dtypes(interpreter, monkeypatch):
    layer = BlockSparseLinear(24, 24, (8, 3), 2)
    layer.use_form("fused")
    with pytest.raises(UsageError, match="powers of two up to 64, got 8x3"):
        layer(torch.randn(2, 24))
    with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, got torch\.float64"):
        layer.double()(torch.randn(2, 24).double())
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="runs on a GPU, got a tensor on cpu"):
        layer(torch.randn(2, 24))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_compile_for_a_gpu_that_is_not_there(dtype):
    pytest.importorskip("triton")
    from benchmarks.fused_kernels import KERNELS, resources

    for kernel in KERNELS:
        used = resources(kernel, dtype, (2, 128, 128), (8, 8), capability=90)
        # What a multiprocessor of that kind has: 255 registers a thread, 227 KiB of a block.
        assert used.registers <= 255
        assert used.shared_bytes <= 227 * 1024
