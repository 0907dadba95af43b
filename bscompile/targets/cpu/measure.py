"""How fast this CPU is: multiply-adds, caches, memory and starting a parallel region.

Measured once, in about a second, and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 2  # of the measurement; a change makes old files stale


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        gflops: Multiply-adds of one core in float32, two operations each.
        cache_gbps: One core's read rate from each cache level, nearest first.
        memory_gbps: Read rate from memory, all cores together.
        launch_seconds: Starting and joining one parallel region.
        products: Multiply-adds of one core by feature, such as ``avx512_bf16``, two operations
            each; the features that this machine has of those that kernels know.
    """

    gflops: float
    cache_gbps: tuple[float, ...]
    memory_gbps: float
    launch_seconds: float
    products: Mapping[str, float] = field(default_factory=dict)


def measured_rates(
    name: str,
    options: dict[str, str],
    vector_bytes: int,
    caches: tuple[int, ...],
    extensions: Mapping[str, tuple[str, ...]],
) -> Rates:
    """This machine's rates, from the cache folder or measured now.

    Args:
        name: The CPU's name; together with VERSION it names the cache file.
        options: TVM's target for this machine.
        vector_bytes: Width of a vector register.
        caches: Sizes of the cache levels in bytes, nearest first.
        extensions: Precision -> features that it has beyond the baseline in ``options``.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{name} {options['mcpu']}").strip("-")
    path = _cache_folder() / f"cpu-{slug}-v{VERSION}.json"
    if (rates := _read(path, len(caches))) is None:
        rates = measure(options, vector_bytes, caches, extensions)
        _write(path, rates)
    return rates


def measure(
    options: dict[str, str],
    vector_bytes: int,
    caches: tuple[int, ...],
    extensions: Mapping[str, tuple[str, ...]],
) -> Rates:
    """Time a few small kernels; the best of several runs counts."""
    import tvm

    from bscompile.targets.cpu import probes
    from bscompile.targets.cpu.measure_products import measure_products

    target = tvm.target.Target(options)
    lanes = vector_bytes // 4
    functions = {
        "multiply_add": probes.multiply_add(lanes),
        "read": probes.read(lanes),
        "read_all": probes.read_all(lanes),
        "launch": probes.launch(),
    }
    module = tvm.compile(tvm.IRModule(functions), target=target).jit()

    def seconds(function: str, number: int, *args: Any) -> float:
        timer = module.time_evaluator(function, tvm.cpu(), number=number, repeat=25)
        return float(min(timer(*args).results))

    out = tvm.runtime.tensor(np.zeros(1024, np.float32))
    gflops = probes.MULTIPLY_ADDS * lanes * 2 / seconds("multiply_add", 10, out) / 1e9
    rates = []
    for size in caches:
        data = tvm.runtime.tensor(np.ones(min(size, 8 << 20) // 2 // 1024 * 256, np.float32))
        size_bytes = data.shape[0] * 4
        number = max(1, (4 << 20) // size_bytes)
        rates.append(size_bytes / seconds("read", number, data, out) / 1e9)
    data = tvm.runtime.tensor(np.ones(max(64 << 20, 2 * caches[-1]) // 4, np.float32))
    memory = data.shape[0] * 4 / seconds("read_all", 1, data, out) / 1e9
    products = measure_products(options, lanes, extensions)
    return Rates(gflops, tuple(rates), memory, seconds("launch", 20, out), products)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bscompile"


def _read(path: Path, levels: int) -> Rates | None:
    """The rates in a cache file; None where it is absent or not what was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rates = Rates(
            float(found["gflops"]),
            tuple(float(v) for v in found["cache_gbps"]),
            float(found["memory_gbps"]),
            float(found["launch_seconds"]),
            {str(name): float(rate) for name, rate in found["products"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    values = (rates.gflops, *rates.cache_gbps, rates.memory_gbps, rates.launch_seconds)
    values = (*values, *rates.products.values())
    sane = all(np.isfinite(v) and v > 0 for v in values) and len(rates.cache_gbps) == levels
    return rates if sane else None


def _write(path: Path, rates: Rates) -> None:
    """Keep the rates; a cache folder that cannot be written costs a second next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(rates), file)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
