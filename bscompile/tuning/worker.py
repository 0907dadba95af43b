"""The worker process: takes candidates from a pipe, builds and times them, answers.

It is started by child.py with ``python -c``, so that it imports neither the user's script nor
anything but this package; whatever a candidate does to it, the search goes on without it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bscompile.targets import get_target, variant_of
from bscompile.targets.base import TargetContext
from bscompile.tuning.measurer import Layer, Measurement, crashed
from bscompile.tuning.runner import Runner

OPEN, MEASURE = "open", "measure"
READY = "ready"


def main(descriptor: int) -> None:
    """Serve requests until the other end of the pipe closes."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    connection = Connection(descriptor)
    # Imported before the first candidate: its time limit is not for importing TVM.
    import tvm  # noqa: F401

    from bscompile.tuning.compiled import CompiledKernels
    from bscompile.tuning.timing import Bench

    compiled = CompiledKernels()
    connection.send(READY)
    bench: Bench | None = None
    while True:
        try:
            kind, body = connection.recv()
        except EOFError:
            return
        if kind == OPEN:
            spec, values = body.pop("hardware")
            hardware = spec(**values)
            target = variant_of(get_target(body.pop("target")), body.pop("variant"))
            bench = Bench(target=target, hardware=hardware, compiled=compiled, **body)
            connection.send(READY)
        else:
            assert bench is not None
            connection.send(_measure(bench, body))


def opening(layer: Layer, runner: Runner, turns: Path | None) -> dict[str, Any]:
    """What the worker must know of a layer, in values that pickle."""
    return {
        "op": layer.op,
        "rows": layer.rows,
        "dtype": layer.dtype,
        "typical_rows": layer.context.typical_rows,
        "target": layer.context.target.name,
        "variant": layer.context.variant,
        "hardware": _plain(layer.context),
        "runner": runner,
        "turns": turns,
    }


def _plain(context: TargetContext) -> tuple[type, dict[str, Any]]:
    """The spec as its class and its fields."""
    spec = context.hardware
    body = {f.name: getattr(spec, f.name) for f in fields(spec)}
    # Read-only views do not pickle.
    views = {n: dict(value) for n, value in body.items() if isinstance(value, MappingProxyType)}
    return type(spec), body | views


def _measure(bench: Any, body: Mapping[str, Any]) -> list[Measurement]:
    try:
        return list(bench.measure(**body))
    except Exception as error:  # a template's or TVM's; the candidate is at fault
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[-1] if lines else ''}"
        return [crashed(text[:300])] * len(body["variants"])


def _leave_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, even amid a kernel that hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
