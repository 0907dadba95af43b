"""The WebGPU adapter of this machine, found through wgpu. Knows no compiler and no artifact."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final

from bscompile.errors import TargetError

PACKAGE: Final = "pip install 'bscompile[webgpu]'"
DRIVER: Final = "a Vulkan driver; mesa-vulkan-drivers has one for the CPU"

#: What a device has that is asked for nothing, and every WebGPU implementation must offer.
DEFAULT_LIMITS: Final = {
    "max-storage-buffer-binding-size": 128 << 20,
    "max-buffer-size": 256 << 20,
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
}
#: Feature of an artifact -> what WebGPU calls it.
FEATURES: Final = {"float16": "shader-f16"}
#: Along each axis of a grid.
MOST_WORKGROUPS: Final = 65535


def load() -> Any:
    """The package wgpu.

    Raises:
        TargetError: it is not installed, or its library cannot be loaded.
    """
    try:
        import wgpu
    except ImportError as error:
        raise TargetError(
            "WebGPU code needs the package wgpu here, which is not installed",
            hint=f"{PACKAGE}, or run it in a browser: bscompile export --format web",
        ) from error
    return wgpu


@cache
def _without_opengl() -> None:
    """Keep wgpu from opening OpenGL, once and before it opens anything.

    OpenGL has no compute that would do here, and opening it puts the symbols of its driver's LLVM
    in front of those of every library that is loaded later, which crashes Triton.
    """
    from wgpu.backends.wgpu_native import extras

    with suppress(RuntimeError):  # somebody has used wgpu in this process before
        extras.set_instance_extras(backends=["Primary"])


@contextmanager
def _without_display() -> Iterator[None]:
    """Spare users what drivers print about a Wayland display where there is none to look for."""
    name = "XDG_RUNTIME_DIR"
    if name in os.environ or not sys.platform.startswith("linux"):
        yield
        return
    os.environ[name] = tempfile.gettempdir()
    try:
        yield
    finally:
        del os.environ[name]


def find() -> Any:
    """The adapter to use; WGPUPY_WGPU_ADAPTER_NAME chooses among several.

    Raises:
        TargetError: wgpu is not installed, or there is no adapter.
    """
    wgpu = load()
    _without_opengl()
    try:
        with _without_display():
            return wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except (RuntimeError, ValueError) as error:
        raise TargetError("no WebGPU adapter was found", hint=f"install {DRIVER}") from error


def name_of(adapter: Any) -> str:
    """The adapter's name, for people."""
    return str(adapter.info["device"] or adapter.info["description"] or "an unnamed adapter")
