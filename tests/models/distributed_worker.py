"""Run under torchrun by test_integration: one training step on two processes."""

import os
import sys

import torch
from torch import distributed, nn

from bscompile.models import BlockSparseLinear


def model():
    torch.manual_seed(0)
    layers = BlockSparseLinear(16, 32, 4, 2), nn.ReLU(), BlockSparseLinear(32, 16, 8, 2)
    layers[0].mask[0] = False
    return nn.Sequential(*layers)


def step(net, x):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(x).square().mean().backward()
    optimizer.step()


def whole_batch():
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


def my_rows():
    return whole_batch().chunk(2)[distributed.get_rank()]


def same(got, want):
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def ddp():
    alone, net = model(), nn.parallel.DistributedDataParallel(model())
    step(alone, whole_batch())
    step(net, my_rows())
    same(net.module.state_dict(), alone.state_dict())


def fsdp():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    alone, net = model(), model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in net:
        if isinstance(layer, BlockSparseLinear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    step(alone, whole_batch())
    step(net, my_rows())
    options = StateDictOptions(full_state_dict=True)
    held = get_model_state_dict(net, options=options)
    state = {name: value.clone() for name, value in held.items()}  # buffers are not copied
    same(state, alone.state_dict())
    fresh = {name: torch.zeros_like(value) for name, value in state.items()}
    set_model_state_dict(net, fresh, options=options)
    set_model_state_dict(net, state, options=options)
    same(get_model_state_dict(net, options=options), alone.state_dict())


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    {"ddp": ddp, "fsdp": fsdp}[sys.argv[1]]()
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.write("agrees\n")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group, and abort a process that leaves by itself
