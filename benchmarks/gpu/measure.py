"""Check every kernel against float64, then time it, cuBLAS and torch's block-sparse kernel.

FLOPs      2 · rows · live blocks · block²
bytes      2 · (rows · k + rows · n + live blocks · block²)
roof       max(FLOPs / peak, bytes / memory rate): x is read once

Peak and memory rate are measured first, in the same run. Sixteen rows of x are checked; further
rows repeat them, and must give the same bits. Peers that are not here leave their columns empty.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cases import DTYPE, ROWS, Case
from benchmarks.gpu.device import Array, rounded, widened

TOLERANCE = 8e-3  # of the norm: y is rounded to bfloat16
_DISTINCT = 16  # rows of x


@dataclass(frozen=True)
class Ceilings:
    """What the device reached.

    Attributes:
        tflops: cuBLAS, bfloat16, 8192 cubed; without cuBLAS 790, that of others' H100.
        memory_tbs: A copy of 1 GiB, read and written.
        launch_us: A copy of four bytes inside a graph.
    """

    tflops: float
    memory_tbs: float
    launch_us: float


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: Name of the case.
        rows: Of x.
        runner: ``cublas``, ``torch bsr`` or ``ours: <kernel>``.
        us: Of one call.
        error: Norm of the difference to float64 over its norm.
        speedup: cuBLAS' time over this one; NaN without it.
        roof_share: Of the roof, for the work that is left.
    """

    case: str
    rows: int
    runner: str
    us: float
    error: float
    speedup: float
    roof_share: float


@dataclass(eq=False)
class Peers:
    """What there is to compare with, and what is missing.

    Attributes:
        cublas: A ``bscompile.runtime.cublas.Cublas``, or None.
        torch: The module torch_peers, or None.
        missing: A sentence for each that is not here.
        versions: Of those that are.
    """

    cublas: Any = None
    torch: Any = None
    missing: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    _dense: dict[tuple[int, int, int], tuple[float, float]] = field(default_factory=dict)

    def multiply(self, device: Any, x: Any, weight: Any, y: Any) -> None:
        """CuBLAS' y = x Wᵀ, on the device's stream."""
        self.cublas.linear(x, weight, y, device.stream.value)

    def dense(self, device: Any, bits: Array, x: Array) -> tuple[float, float]:
        """(seconds, error) of cuBLAS for a shape, measured once; NaN without it."""
        (n, k), m = bits.shape, len(x)
        if self.cublas is None:
            return math.nan, math.nan
        if (n, k, m) not in self._dense:
            held, y = device.put(x, DTYPE), device.empty((m, n), DTYPE)
            weights = device.copies(device.put(bits, DTYPE), most=4)
            self.multiply(device, held, weights[0], y)
            wanted = widened(x[:_DISTINCT]).astype(np.float64) @ widened(bits).T
            error = checked(device.get(y), wanted)
            calls = [lambda w=w: self.multiply(device, held, w, y) for w in weights]
            self._dense[n, k, m] = device.time(calls), error
        return self._dense[n, k, m]


def find_peers(device: Any) -> Peers:
    """Look for cuBLAS and torch; say what is missing."""
    from bscompile.runtime.cublas import WORKSPACE, Cublas, open_library

    peers = Peers()
    try:
        peers.cublas = Cublas(open_library(), device.empty((WORKSPACE,), "uint8"))
        peers.versions.append(f"cuBLAS {peers.cublas.version}")
    except (OSError, RuntimeError, AttributeError) as error:
        peers.missing.append(f"cuBLAS is left out: {error}")
    try:
        from benchmarks.gpu import torch_peers

        peers.versions.append(torch_peers.version())
        peers.torch = torch_peers if torch_peers.usable() else None
    except ImportError:
        pass
    if peers.torch is None:
        peers.missing.append("torch and its Triton kernels are left out: no torch that sees a GPU")
    for line in peers.missing:
        print(line, flush=True)
    return peers


def run(
    device: Any, folder: Path, peers: Peers, ceilings: Ceilings, budget: float
) -> tuple[list[Row], list[str]]:
    """(rows, names of the cases that the budget in seconds did not suffice for)."""
    started = time.perf_counter()
    listed = json.loads((folder / "kernels.json").read_text())
    rows: list[Row] = []
    loaded: dict[str, Any] = {}
    entries = listed["cases"]
    for number, entry in enumerate(entries):
        if time.perf_counter() - started > budget:
            return rows, [_case(other).name for other in entries[number:]]
        rows += _Measuring(device, folder, listed, entry, peers, ceilings, loaded).rows()
    return rows, []


class _Measuring:
    """One case with every number of rows: the peers first, then ours."""

    def __init__(
        self,
        device: Any,
        folder: Path,
        listed: Mapping[str, Any],
        entry: Mapping[str, Any],
        peers: Peers,
        ceilings: Ceilings,
        loaded: dict[str, Any],
    ) -> None:
        self.device, self.folder, self.peers, self.loaded = device, folder, peers, loaded
        self.case, self.uses, self.kernels = _case(entry), entry["uses"], listed["kernels"]
        self.ceilings, self.counts = ceilings, (1, 17) if listed["small"] else ROWS
        self.bits = make_weight(self.case)
        rng = np.random.default_rng(1)
        self.x = rounded(rng.standard_normal((_DISTINCT, self.case.k), np.float32))
        self.bias = rounded(rng.standard_normal(self.case.n, np.float32))
        exact = widened(self.x).astype(np.float64)
        self.product = exact @ widened(self.bits).astype(np.float64).T
        self.wanted = np.maximum(self.product + widened(self.bias), 0)
        self.values: dict[str, list[Any]] = {}

    def rows(self) -> list[Row]:
        """Every measurement."""
        found: list[Row] = []
        block_sparse = self._torch_kernel()
        for m in self.counts:
            x = np.resize(self.x, (m, self.case.k))
            base, error = self.peers.dense(self.device, dense_bits(self.case), x)
            if self.peers.cublas is not None:
                found.append(self._row(m, "cublas", base, error, base))
            if block_sparse is not None and m % 16 == 0:
                try:
                    seconds, y = block_sparse.run(widened(x))
                    error = checked(y, self.product)
                    found.append(self._row(m, "torch bsr", seconds, error, base))
                except Exception as error:  # a peer that refuses a case is said, not hidden
                    print(f"{self.case.name:20} {m:5} torch bsr refuses: {str(error)[:90]}")
            held, bias = self.device.put(x, DTYPE), self.device.put(self.bias, DTYPE)
            for use in self.uses:
                if _serves(self.kernels[use["kernel"]], m):
                    seconds, error = self._ours(use, held, bias)
                    found.append(self._row(m, f"ours: {use['kernel']}", seconds, error, base))
        return found

    def _torch_kernel(self) -> Any:
        if self.peers.torch is None or self.case.block < 16:
            return None
        return self.peers.torch.BlockSparse(widened(self.bits), self.case.block)

    def _ours(self, use: Mapping[str, str], x: Any, bias: Any) -> tuple[float, float]:
        """(seconds, error)."""
        device, name = self.device, use["kernel"]
        if name not in self.loaded:
            self.loaded[name] = device.load(self.folder / self.kernels[name]["library"])
        function = self.loaded[name]
        if use["places"] not in self.values:
            values, *others = pack(self.bits, self.folder / use["places"])
            operands = [device.put(values, DTYPE), *(device.put(array) for array in others)]
            self.values[use["places"]] = operands
        values, *others = self.values[use["places"]]
        m = int(x.shape[0])
        y = device.put(np.full((m, self.case.n), 0x7FC0, np.uint16), DTYPE)  # NaN
        function(x, values, *others, bias, y)
        error = checked(device.get(y), self.wanted)
        calls = [
            lambda v=v: function(x, v, *others, bias, y) for v in device.copies(values, most=16)
        ]
        return device.time(calls), error

    def _row(self, m: int, runner: str, seconds: float, error: float, base: float) -> Row:
        row = Row(
            *(self.case.name, m, runner, seconds * 1e6, error, base / seconds),
            roof_share=_roof(self.case, m, self.ceilings) / seconds,
        )
        bad = "" if error < TOLERANCE else "  WRONG"
        print(
            f"{row.case:20} {m:5} {row.us:9.2f} us {row.speedup:6.2f}x {error:.1e} {runner}{bad}",
            flush=True,
        )
        return row


def _case(entry: Mapping[str, Any]) -> Case:
    return Case(**{key: value for key, value in entry.items() if key != "uses"})


def _serves(kernel: Mapping[str, Any], m: int) -> bool:
    few = kernel["template"].endswith("few_rows")
    return m <= 16 if few else m > 8


_whole: dict[tuple[int, int], Array] = {}  # the last dense weight: a shape's cases follow in a row


def dense_bits(case: Case) -> Array:
    """A full W [n, k] of the case's shape, as bits of bfloat16."""
    shape = case.n, case.k
    if shape not in _whole:
        _whole.clear()
        values = np.random.default_rng(0).standard_normal(shape, np.float32)
        _whole[shape] = rounded(values / np.float32(math.sqrt(case.k)))
    return _whole[shape]


def make_weight(case: Case) -> Array:
    """W [n, k], zero where the case's mask is, as bits of bfloat16."""
    wide = case.mask().astype(np.uint16).repeat(case.block, 0).repeat(case.block, 1)
    return dense_bits(case) * wide


def pack(bits: Array, places: Path) -> list[Array]:
    """The packed weight and what goes with it, as the kernels take them, in their order."""
    with np.load(places) as held:
        names = held["names"].cumsum(axis=-1).cumsum(axis=-2)
        run = int(held["run"])
        others = [held[f"other{i}"] for i in range(len(held.files) - 2)]
    values = bits.reshape(-1, run)[np.maximum(names, 0)]
    values[names < 0] = 0
    return [values.reshape(*names.shape[:-1], -1), *others]


def measure_ceilings(device: Any, peers: Peers, small: bool) -> Ceilings:
    """Peak, memory rate and launch cost of this device, now."""
    tflops, side = 790.0, 64 if small else 8192
    if peers.cublas is not None:
        bits = rounded(np.random.default_rng(0).standard_normal((side, side), np.float32))
        tflops = 2 * side**3 / product_seconds(device, peers, bits, DTYPE) / 1e12
    size = 1 << 20 if small else 1 << 30
    source, target = device.empty((size,), "uint8"), device.empty((size,), "uint8")
    memory = 2 * size / device.time([lambda: device.move(source, target)]) / 1e12
    one, other = device.empty((1,), "float32"), device.empty((1,), "float32")
    launch = device.time([lambda: device.move(one, other)]) * 1e6
    return Ceilings(tflops, memory, launch)


def product_seconds(device: Any, peers: Peers, square: Array, dtype: str) -> float:
    """Of cuBLAS' product of a square matrix with itself."""
    a, y = device.put(square, dtype), device.empty(square.shape, dtype)
    return float(device.time([lambda: peers.multiply(device, a, a, y)]))


def checked(got: Array, wanted: Array) -> float:
    """Norm of the difference over the norm; NaN where anything is NaN or rows differ.

    Args:
        got: [m, n], bits of bfloat16 or float32; its rows repeat those of ``wanted``.
        wanted: float64 [rows, n]; where ``got`` has fewer, the first ones.
    """
    distinct = wanted[: len(got)]
    first = got[: len(distinct)]
    for begin in range(len(distinct), len(got), len(distinct)):
        rest = got[begin : begin + len(distinct)]
        if not np.array_equal(rest, first[: len(rest)]):
            return math.nan
    values = widened(first) if first.dtype == np.uint16 else first
    return float(np.linalg.norm(values - distinct) / np.linalg.norm(distinct))


def _roof(case: Case, m: int, ceilings: Ceilings) -> float:
    numbers = float(case.mask().sum()) * case.block**2
    traffic = 2.0 * (m * case.k + m * case.n + numbers)
    return max(2 * m * numbers / (ceilings.tflops * 1e12), traffic / (ceilings.memory_tbs * 1e12))


def to_json(device: Any, peers: Peers, ceilings: Ceilings, rows: list[Row]) -> dict[str, Any]:
    """Everything that was measured, as it goes into the file."""
    return {
        "device": device.name,
        "peers": peers.versions,
        "missing": peers.missing,
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for row in rows],
    }
