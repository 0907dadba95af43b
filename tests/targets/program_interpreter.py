"""Runs a static program on this machine: its kernels compiled by LLVM, its memory numpy arrays."""

from __future__ import annotations

import numpy as np


def interpret(program, kernels, inputs, params):
    """The outputs of a program.

    Args:
        program: A bscompile.artifact.program.Program.
        kernels: Name -> tvm.tirx.PrimFunc without thread bindings.
        inputs, params: Arrays in the program's order.
    """
    import tvm
    import tvm_ffi

    library = tvm.compile(tvm.IRModule(dict(kernels)), target="llvm").jit()
    memory = [aligned(storage.bytes) for storage in program.storages]
    filled = [*program.indices("input"), *program.indices("param")]
    for index, array in zip(filled, [*inputs, *params], strict=True):
        memory[index][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    for index in program.indices("scratch"):
        memory[index][...] = 0xFF  # NaN, where nothing writes it
    views = [
        memory[b.storage][b.offset : b.offset + b.bytes].view(b.dtype).reshape(b.shape)
        for b in program.buffers
    ]
    for step in program.steps:
        library[step.kernel](*(tvm_ffi.from_dlpack(views[index]) for index in step.buffers))
    return [views[index].copy() for index in program.outputs]


def aligned(size):
    """Bytes at an address that is a multiple of 64."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]
