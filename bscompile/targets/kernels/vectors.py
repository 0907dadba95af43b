"""How a run of elements is cut into vectors."""

from __future__ import annotations


def pieces(width: int, lanes: int) -> list[tuple[int, int]]:
    """Cut ``width`` elements into vectors of at most ``lanes``: (offset, power of two)."""
    cut, offset = [], 0
    while offset < width:
        size = lanes
        while size > width - offset:
            size //= 2
        cut.append((offset, size))
        offset += size
    return cut
