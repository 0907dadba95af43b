"""OpenCL devices of this machine, found through pyopencl. Knows no compiler and no artifact."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from bscompile.errors import TargetError

INSTALL = "pip install 'bscompile[opencl]', and an OpenCL driver such as pocl-opencl-icd"
#: Chooses among several devices: a part of the platform's or device's name.
VARIABLE = "BSCOMPILE_OPENCL_DEVICE"


@dataclass(frozen=True)
class Limits:
    """What one device can do.

    Attributes:
        name: The device's own name and its platform's.
        processors: Compute units.
        megahertz: Highest clock.
        threads: Largest work-group.
        sizes: Its largest extent along x, y and z.
        shared_bytes: Local memory of a work-group.
        memory_bytes: Largest single allocation.
        cache_bytes: Of global memory; 0 where the device tells none.
        vector_floats: Float32 lanes that it likes in one work-item.
        vector_halves: The same of float16; 0 where it has no such type.
        is_cpu: Whether work-groups run on a CPU's cores.
        extensions: As OpenCL names them.
    """

    name: str
    processors: int
    megahertz: int
    threads: int
    sizes: tuple[int, int, int]
    shared_bytes: int
    memory_bytes: int
    cache_bytes: int
    vector_floats: int
    vector_halves: int
    is_cpu: bool
    extensions: frozenset[str]


#: What OpenCL lets devices leave out: dtype -> the extension that says it is there.
EXTENSIONS = {"float16": "cl_khr_fp16", "float64": "cl_khr_fp64"}


def lacking(dtypes: Iterable[str], extensions: Collection[str]) -> str:
    """The first dtype that a device with these extensions lacks; empty when it has them all."""
    return next((d for d in dtypes if EXTENSIONS.get(d, "") not in {"", *extensions}), "")


def load() -> Any:
    """The module pyopencl.

    Raises:
        TargetError: it is not installed.
    """
    try:
        # Its cache of compiled kernels warns when it cannot be written.
        os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
        import pyopencl
    except ImportError as error:
        raise TargetError(
            "OpenCL code needs pyopencl, which is not installed", f"install it with {INSTALL}"
        ) from error
    return pyopencl


def program(context: Any, source: str) -> Any:
    """A compiled pyopencl.Program; what a driver's compiler chats about is not passed on."""
    cl = load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)
        return cl.Program(context, source).build()


@cache
def find() -> Any:
    """The device to use: a GPU before an accelerator before a CPU.

    Raises:
        TargetError: pyopencl or a driver is missing, or no device has the name asked for.
    """
    cl = load()
    devices = []
    try:
        for platform in cl.get_platforms():
            devices += platform.get_devices()
    except cl.Error as error:
        if not devices:
            raise TargetError(f"no OpenCL device was found: {error}", INSTALL) from error
    if not devices:
        raise TargetError("no OpenCL device was found", INSTALL)
    wanted = os.environ.get(VARIABLE, "").lower()
    named = [d for d in devices if wanted in f"{d.platform.name} {d.name}".lower()]
    if not named:
        known = ", ".join(f"{d.platform.name} {d.name}" for d in devices)
        raise TargetError(f"{VARIABLE}: no OpenCL device is named {wanted!r}; there are {known}")
    kinds = cl.device_type
    order = (kinds.GPU, kinds.ACCELERATOR, kinds.CPU)
    return min(
        named, key=lambda d: next((i for i, kind in enumerate(order) if d.type & kind), len(order))
    )


@cache
def limits() -> Limits:
    """What the device to use can do.

    Raises:
        TargetError: as ``find``.
    """
    cl, device = load(), find()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that answers a question oddly
        x, y, z = list(device.max_work_item_sizes)[:3]
        return Limits(
            name=f"{device.name.strip()} ({device.platform.name.strip()})",
            processors=int(device.max_compute_units),
            megahertz=int(device.max_clock_frequency),
            threads=int(device.max_work_group_size),
            sizes=(int(x), int(y), int(z)),
            shared_bytes=int(device.local_mem_size),
            memory_bytes=int(device.max_mem_alloc_size),
            cache_bytes=int(device.global_mem_cache_size),
            vector_floats=int(device.native_vector_width_float),
            vector_halves=int(device.native_vector_width_half),
            is_cpu=bool(device.type & cl.device_type.CPU),
            extensions=frozenset(device.extensions.split()),
        )
