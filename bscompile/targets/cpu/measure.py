"""How fast this CPU is: multiply-adds, caches, memory and starting a parallel region.

Measured in about a second by each of the first processes that ask, the best figures kept in the
user's cache folder: one of them may have met a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bscompile.artifact.weights import empty_aligned
from bscompile.devices.cpu import available_threads

VERSION = 6  # of the measurement; a change makes old files stale
ROUNDS = 3  # processes that measure
_MOST = 512 << 20  # bytes that are read from memory
_asked: set[Path] = set()  # files that this process has added its round to


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        gflops: Multiply-adds of one core in float32, two operations each.
        cache_gbps: One core's read rate from each cache level, nearest first.
        core_memory_gbps: One core's read rate from memory.
        memory_gbps: All cores' together.
        launch_seconds: Starting and joining one parallel region; infinite where the process
            that measured had one worker only, to which it costs nothing.
        products: Multiply-adds of one core by feature, such as ``avx512_bf16``, two operations
            each; the features that this machine has of those that kernels know.
    """

    gflops: float
    cache_gbps: tuple[float, ...]
    core_memory_gbps: float
    memory_gbps: float
    launch_seconds: float
    products: Mapping[str, float] = field(default_factory=dict)

    def better_of(self, other: Rates) -> Rates:
        """The better of each figure: other work on the machine can only make them worse.

        But the longer of two launches: in some processes the workers happen to share their
        lines of cache well, and a region costs a quarter of what it does in most.
        """
        names = {*self.products, *other.products}
        launches = [r.launch_seconds for r in (self, other) if _is_whole(r)]
        return Rates(
            max(self.gflops, other.gflops),
            tuple(max(pair) for pair in zip(self.cache_gbps, other.cache_gbps, strict=True)),
            max(self.core_memory_gbps, other.core_memory_gbps),
            max(self.memory_gbps, other.memory_gbps),
            max(launches, default=math.inf),
            {n: max(self.products.get(n, 0.0), other.products.get(n, 0.0)) for n in sorted(names)},
        )


def measured_rates(
    name: str,
    options: dict[str, str],
    vector_bytes: int,
    caches: tuple[int, ...],
    extensions: Mapping[str, tuple[str, ...]],
) -> Rates:
    """This machine's rates: the best that were measured on it, now or before.

    Args:
        name: The CPU's name; together with VERSION it names the cache file.
        options: TVM's target for this machine.
        vector_bytes: Width of a vector register.
        caches: Sizes of the cache levels in bytes, nearest first.
        extensions: Precision -> features that it has beyond the baseline in ``options``.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{name} {options['mcpu']}").strip("-")
    path = _cache_folder() / f"cpu-{slug}-v{VERSION}.json"
    known, rounds = _read(path, len(caches))
    if known is not None and (path in _asked or (rounds >= ROUNDS and _is_whole(known))):
        return known
    rates = measure(options, vector_bytes, caches, extensions)
    if known is not None:
        rates = rates.better_of(known)
    _asked.add(path)
    _write(path, rates, rounds + 1)
    return rates


def _is_whole(rates: Rates) -> bool:
    return math.isfinite(rates.launch_seconds)


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
    from bscompile.targets.cpu.threads import set_threads

    set_threads(available_threads())
    target = tvm.target.Target(options)
    lanes = vector_bytes // 4
    functions = {
        "multiply_add": probes.multiply_add(lanes),
        "read": probes.read(lanes),
        "read_all": probes.read_all(lanes),
        "launch": probes.launch(),
    }
    module = tvm.compile(tvm.IRModule(functions), target=target).jit()

    def times(function: str, number: int, repeat: int, *args: Any) -> list[float]:
        timer = module.time_evaluator(function, tvm.cpu(), number=number, repeat=repeat)
        return [float(time) for time in timer(*args).results]

    def seconds(function: str, number: int, *args: Any) -> float:
        return min(times(function, number, 25, *args))

    out = tvm.runtime.tensor(np.zeros(1024, np.float32))
    gflops = probes.MULTIPLY_ADDS * lanes * 2 / seconds("multiply_add", 10, out) / 1e9
    rates = []
    for size in caches:
        data = tvm.runtime.tensor(np.ones(min(size, 8 << 20) // 2 // 1024 * 256, np.float32))
        size_bytes = data.shape[0] * 4
        number = max(1, (4 << 20) // size_bytes)
        rates.append(size_bytes / seconds("read", number, data, out) / 1e9)
    # As large weights lie there, in numpy's memory, which has huge pages; and so much that little
    # is still in a cache when the next round begins: with twice the last cache, it was most of it.
    numbers = empty_aligned((min(max(64 << 20, 8 * caches[-1]), _MOST) // 4,), np.float32)
    numbers[...] = 1.0
    data = tvm.runtime.from_dlpack(numbers)
    one, all_of_them = (
        numbers.nbytes / statistics.median(times(function, 1, 9, data, out)) / 1e9
        for function in ("read", "read_all")
    )
    products = measure_products(options, lanes, extensions)
    shared = int(tvm.get_global_func("runtime.NumThreads")()) > 1
    launch = seconds("launch", 200, out) if shared else math.inf
    return Rates(gflops, tuple(rates), one, max(one, all_of_them), launch, products)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bscompile"


def _read(path: Path, levels: int) -> tuple[Rates | None, int]:
    """The rates in a cache file and how many rounds they are the best of.

    (None, 0) where the file is absent or not what was written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rates = Rates(
            float(found["gflops"]),
            tuple(float(v) for v in found["cache_gbps"]),
            float(found["core_memory_gbps"]),
            float(found["memory_gbps"]),
            float(found["launch_seconds"]),
            {str(name): float(rate) for name, rate in found["products"].items()},
        )
        rounds = int(found["rounds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, 0
    memory = (rates.core_memory_gbps, rates.memory_gbps)
    values = (rates.gflops, *rates.cache_gbps, *memory, *rates.products.values())
    sane = all(np.isfinite(v) and v > 0 for v in values) and rates.launch_seconds > 0
    sane = sane and len(rates.cache_gbps) == levels
    return (rates, rounds) if sane else (None, 0)


def _write(path: Path, rates: Rates, rounds: int) -> None:
    """Keep the rates; a cache folder that cannot be written costs a second next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({**asdict(rates), "rounds": rounds}, file)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
