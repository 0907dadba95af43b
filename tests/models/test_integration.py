"""The layer inside other machinery: torch.compile, torchrun with DDP, sharded state dicts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bscompile.models import BlockSparseConv2d, BlockSparseLinear
from tests.tolerance import assert_close

# torch's own tracer makes an instance of the class, which torch's own check warns of.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
WORKER = Path(__file__).with_name("distributed_worker.py")


@traced
@pytest.mark.parametrize("form", ["b_first", "a_first", "built"])
def test_compiles_into_one_graph_forward_and_backward(form):
    torch.manual_seed(0)
    layer = BlockSparseLinear(16, 24, (4, 8), 2)
    layer.use_form(form)
    model = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 16)
    want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    assert_close(compiled(x).detach(), model(x).detach(), "float32", 32)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, "float32", 256)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiles_to_machine_code():
    torch.manual_seed(0)
    model = nn.Sequential(BlockSparseLinear(16, 24, (4, 8), 2), nn.ReLU())
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    x = torch.randn(5, 16)
    want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, "float32", 256)


@traced
def test_convolution_compiles_into_one_graph():
    torch.manual_seed(0)
    layer = BlockSparseConv2d(4, 8, 3, block=4, rank=2, padding=1, groups=1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 6, 6)
    assert_close(compiled(x).detach(), layer(x).detach(), "float32", 72)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["ddp", "fsdp"])
def test_two_processes_agree_with_one(job):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(WORKER), job],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agrees") == 2
