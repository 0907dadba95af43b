"""Whether kernels ask ahead for weights that come from memory.

Mostly not. A core has as many requests of its own under way as its nearest cache keeps book of,
while the second cache, which follows weights that are read from front to back by itself, has more:
30 GB/s against 22 on a Zen 4. It loses track, though, where x misses the nearest cache at every
block. Then columns are cut into chunks (chunks.py), or the smallest blocks are asked for where
those would be too short (docs/cpu.md, results/search_axes.txt). The tuner tries both.
"""

from __future__ import annotations

from typing import Any

from bscompile.targets.base import Config

FAR = 8 << 20  # bytes of a weight that no cache will hold from one call to the next
AHEAD = 16  # KB from the reader to what is asked for, where anything is
_LINE = 64  # bytes


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


def usual(block_bytes: float) -> int:
    """KB ahead that suit blocks of that size; 0 for not asking."""
    return AHEAD if block_bytes < _LINE else 0


def distances(weight_bytes: float, m: int | None, rows: int, block_bytes: float) -> tuple[int, ...]:
    """Values of ``ahead``, in KB, that make a difference; the usual one first."""
    if not comes_from_memory(weight_bytes, m, rows):
        return (0,)
    best = usual(block_bytes)
    return best, AHEAD - best


def ahead_of(config: Config) -> int:
    """Bytes to ask ahead."""
    return int(config["ahead"]) << 10
