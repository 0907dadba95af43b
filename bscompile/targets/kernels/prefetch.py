"""How far ahead of their loads kernels ask for weights that come from memory.

What serves best differs by shape, block and rows, and for several rows it may be not to ask at
all (benchmarks/results/search_axes.txt): the tuner tries each distance.
"""

from __future__ import annotations

from typing import Any

from bscompile.targets.base import Config

FAR = 8 << 20  # bytes of a weight that no cache will hold from one call to the next
USUAL = 16  # KB
DISTANCES = (USUAL, 4, 0)  # KB; 0 for not asking


def comes_from_memory(weight_bytes: float, m: Any, rows: int) -> bool:
    """Whether a kernel may ask ahead for its weights.

    It may where they come from memory, not from a cache that still holds them from the last call,
    and are read once a call: by tiles of ``rows`` rows, the only ones or single.

    Args:
        weight_bytes: Of the packed weight.
        m: Rows of x; anything but an int is symbolic.
        rows: Rows of a tile.
    """
    return weight_bytes >= FAR and (rows == 1 or (isinstance(m, int) and m == rows))


def distances(weight_bytes: float, m: int | None, rows: int) -> tuple[int, ...]:
    """Values of ``ahead``, in KB, that make a difference; the usual one first."""
    return DISTANCES if comes_from_memory(weight_bytes, m, rows) else (USUAL,)


def ahead_of(config: Config) -> int:
    """Bytes to ask ahead."""
    return int(config.get("ahead", USUAL)) << 10
