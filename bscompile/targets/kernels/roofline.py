"""The cost models' shared arithmetic: how long vector work and cache traffic take.

Time is counted in *units*: one multiply-add on a full vector register at the machine's peak.
A kernel takes the longer of its units and its traffic, shared by its tasks, plus the launch.
The constants were fitted on a Zen 4 and checked by benchmarks/cost_model_rank.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, nextafter

from bscompile.dialect.activations import parts_of
from bscompile.targets.base import HardwareSpec, Problem
from bscompile.targets.kernels.vectors import inputs_together, pieces

NARROW = 0.55  # units of a multiply-add on half a register or less
LOOP = 6.0  # units to fetch an index and start over
COLLIDE = 10.0  # units of reading an element whose line has been evicted
TILE = 25.0  # units to set up and leave a register tile
OVERLAP = 0.3  # share of the shorter of work and traffic that is not hidden
STREAMED = 0.05  # the same of what is read from front to back beside much work
LOAD = 1.3  # units of reading a vector
LINE = 64  # bytes of a cache line
REACH = 8 << 20  # bytes of a tensor of which any line is as near as the next
SCATTERED = 20.0  # times as long as in a stream that a line beyond takes in addition
SPREAD = 1.4  # units of a multiply-add on several inputs that are spread over a register first

# Units per vector of outputs.
_STEPS = {
    "bias": 1.0,
    "residual": 2.0,
    "relu": 1.0,
    "gelu": 13.0,
    "gelu_tanh": 22.0,
    "silu": 18.0,
    "hard_swish": 4.0,
    "clip": 2.0,
    "leaky_relu": 3.0,
    "hard_sigmoid": 3.0,
}


def lanes_of(hardware: HardwareSpec) -> int:
    """Float32 elements of one vector register."""
    return hardware.vector_bytes // 4


def registers_of(hardware: HardwareSpec) -> int:
    """Vector registers for accumulators: half of them, so that LLVM never has to spill."""
    there = hardware.vector_registers or (32 if hardware.vector_bytes == 64 else 16)
    return there // 2


def rows_collide(hardware: HardwareSpec, k: int, rows: int) -> bool:
    """Whether the same column of ``rows`` rows of x cannot stay in the nearest cache.

    Rows that are a multiple of many cache lines apart share few of the cache's sets.
    """
    line, ways = 64, 8
    sets = max(1, hardware.cache_bytes[0] // (line * ways))
    if 4 * k % line:
        return False
    return rows > ways * (sets // gcd(sets, 4 * k // line))


def even(items: int, tasks: int) -> float:
    """Tasks' worth of speed-up when ``items`` are shared whole.

    A little more than one where one task of several gets them all: they start all the same.
    """
    share = items / -(-items // tasks)
    return share if tasks == 1 else max(share, nextafter(1.0, 2.0))


def row_tiles(problem: Problem, rows: int) -> int:
    """Tiles of ``rows`` rows; the overlap of the last one is work done twice."""
    return max(1, -(-problem.rows // rows))


def vector_units(width: int, lanes: int) -> float:
    """Units of one multiply-add on ``width`` outputs side by side."""
    return sum(1.0 if size == lanes else NARROW for _, size in pieces(width, lanes))


def input_units(rows: int, width: int, lanes: int) -> float:
    """Units of one input against ``rows`` rows x ``width`` outputs held in registers."""
    vectors = vector_units(width, lanes)
    broadcast = 0.5 if lanes == 16 else 1.0  # a load; multiply-adds of 64 bytes take two slots
    return max(rows * vectors, LOAD * vectors + broadcast * rows)


def block_units(rows: int, height: int, steps: int, lanes: int, loop: float = LOOP) -> float:
    """Units of one block against ``rows`` rows.

    Args:
        rows: Rows of a tile.
        height: Outputs of the block.
        steps: Its inputs, or groups of them that one instruction takes.
        lanes: 32-bit elements of one vector.
        loop: Units to fetch its index and start over, of four rows or more.
    """
    together = inputs_together(height, steps, lanes)
    if together > 1:  # so little code that the loop hides behind it
        return steps // together * rows * SPREAD + 1.0
    return steps * input_units(rows, height, lanes) + min(1.0, rows / 4) * loop


def store_units(problem: Problem, rows: int, width: int, lanes: int) -> float:
    """Units of the epilogue and the store of a tile."""
    return rows * len(pieces(width, lanes)) * (2.0 + epilogue_units(problem))


def epilogue_units(problem: Problem) -> float:
    """Units of the epilogue of one vector."""
    return sum(_STEPS[parts_of(step)[0]] for step in problem.epilogue)


def seconds(
    hardware: HardwareSpec,
    tasks: float,
    units: float,
    traffic: Sequence[tuple[float, ...]],
    precision: str = "float32",
    group: int = 1,
    streamed: Sequence[tuple[float, ...]] = (),
) -> float:
    """Expected time of a kernel.

    Args:
        hardware: The machine.
        tasks: Parallel tasks, at most the machine's cores; less where their shares differ.
        units: Vector work of all tasks together.
        traffic: (bytes read by all tasks together, bytes of one task's working set) for each
            tensor; the set decides which cache it comes from. A third number is the bytes of all
            tasks' sets where each has its own.
        precision: What the vector work multiplies in; its peak says how long a unit takes.
        group: Inputs that one instruction multiplies for each lane.
        streamed: As ``traffic``, but read from front to back beside much work, which hides it.
    """
    compute = units * unit_seconds(hardware, precision, group) / tasks
    exposed, hidden = (
        sum(read / tasks / read_rate(hardware, held, tasks, *of) for read, held, *of in part)
        for part in (traffic, streamed)
    )
    launch = hardware.launch_seconds if tasks > 1 else 0.0
    memory = exposed + hidden
    overlap = (OVERLAP * exposed + STREAMED * hidden) / memory if memory else OVERLAP
    return max(compute, memory) + overlap * min(compute, memory) + launch


def unit_seconds(hardware: HardwareSpec, precision: str = "float32", group: int = 1) -> float:
    """How long a unit takes; see ``seconds``."""
    peak = hardware.peak_gflops["float32"]
    if precision != "float32":  # tiles have a higher one yet, but not through vectors
        peak = min(hardware.peak_gflops[precision], group * peak)
    return 2 * group * lanes_of(hardware) / (peak * 1e9)


def scattered(hardware: HardwareSpec, read: float, total: float, run: float) -> tuple[float, float]:
    """The traffic that single lines of a tensor cost beyond their bytes, as ``seconds`` takes it.

    Up to ``REACH`` they come as fast as a stream. Beyond, neither does the prefetcher foresee them
    nor does the processor keep the addresses of so many pages: a Zen 4 core reads lines all over
    8, 16, 32 and 64 MB in pages of 4 KB at 70, 25, 8 and 4 GB/s, and streams at 27 or more.

    Args:
        hardware: The machine.
        read: Bytes read by all tasks together.
        total: Bytes of the tensor.
        run: Bytes that are read in one place, such as a row of a block.
    """
    beyond = max(0.0, 1.0 - REACH / total) if total else 0.0
    lines = max(1.0, run / LINE)
    return read * beyond * SCATTERED / lines, 0.5 * hardware.cache_bytes[-1]


def read_rate(
    hardware: HardwareSpec, held: float, tasks: float, together: float | None = None
) -> float:
    """Bytes per second that one core reads from where ``held`` bytes stay.

    Args:
        hardware: The machine.
        held: Bytes of one task's working set.
        tasks: Tasks at once.
        together: Bytes of all tasks' working sets, where these are not the same ``held`` bytes:
            the last cache is shared. Of a set near its size a part is found there, which falls
            with the size; on a Zen 4 with 32 MB, all of 16 MB, half of 32 MB, none of 48 MB.
    """
    memory = hardware.memory_rate(tasks) * 1e9 / tasks
    *own, (last, rate) = zip(hardware.cache_bytes, hardware.cache_gbps, strict=True)
    for size, near in own:
        if held <= 0.75 * size:
            return near * 1e9
    if together is None:
        return rate * 1e9 if held <= 0.75 * last else memory
    found = min(1.0, max(0.0, 1.5 - together / last))
    return 1.0 / (found / (rate * 1e9) + (1.0 - found) / memory)


def task_counts(hardware: HardwareSpec) -> tuple[int, ...]:
    """How many tasks are worth trying: all cores, and fewer, since small layers scale less."""
    counts, tasks = [], hardware.cores
    while tasks > 1:
        counts.append(tasks)
        tasks //= 4
    return (*counts, 1)
