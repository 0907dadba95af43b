"""A program as C tables: what stands in place of code/program.json where nothing reads JSON."""

from __future__ import annotations

import numpy as np

from bscompile.artifact.program import Buffer, Program, image_checksum, image_size

_KINDS = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat", "b": "kDLBool"}


def tables(program: Program, weights: list[memoryview], threads: int, vector_bytes: int = 0) -> str:
    """The text of tables.c.

    Args:
        program: The model.
        weights: The pieces of its weights image.
        threads: Worker threads that the kernels were made for.
        vector_bytes: The shortest vectors that they run on, where a processor may have shorter.
    """
    kernels = sorted({step.kernel for step in program.steps})
    lines = ['#include "program.h"']
    lines += [
        f"int __tvm_ffi_{name}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);"
        for name in kernels
    ]
    lines += _array(
        "const struct storage storages",
        [f"{{{s.bytes}u, {s.role.upper()}}}" for s in program.storages],
    )
    for i, buffer in enumerate(program.buffers):
        lines += _array(f"const int64_t shape{i}", [str(length) for length in buffer.shape])
    lines += _array(
        "const struct buffer buffers", [_buffer(i, b) for i, b in enumerate(program.buffers)]
    )
    for i, step in enumerate(program.steps):
        lines += _array(f"const uint32_t step{i}", [str(index) for index in step.buffers])
    lines += _array(
        "const struct step steps",
        [
            f'{{__tvm_ffi_{step.kernel}, "{step.kernel}", {len(step.buffers)}, step{i}}}'
            for i, step in enumerate(program.steps)
        ],
    )
    lines += _array("const uint32_t outputs", [str(index) for index in program.outputs])
    most = max((len(step.buffers) for step in program.steps), default=0)
    lines.append(
        f"const struct program bscompile_program = {{storages, {len(program.storages)}, "
        f"buffers, {len(program.buffers)}, steps, {len(program.steps)}, "
        f"outputs, {len(program.outputs)}, {most}, "
        f"{image_size(weights)}u, {image_checksum(weights):#x}u, {threads}, {vector_bytes}}};"
    )
    return "\n".join(lines) + "\n"


def _array(head: str, entries: list[str]) -> list[str]:
    # C has no empty arrays; a count stands beside each, so one more entry is never read.
    return [f"static {head}[] = {{", *(f"  {entry}," for entry in entries or ["0"]), "};"]


def _buffer(index: int, buffer: Buffer) -> str:
    dtype = np.dtype(buffer.dtype)
    kind = f"{{{_KINDS[dtype.kind]}, {8 * dtype.itemsize}, 1}}"
    return (
        f"{{{buffer.storage}, {buffer.offset}u, {len(buffer.shape)}, shape{index}, "
        f"{kind}, {buffer.bytes}u}}"
    )
