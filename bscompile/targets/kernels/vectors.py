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


def inputs_together(height: int, inputs: int, lanes: int) -> int:
    """Inputs of a low block that one register multiplies at once, each with all outputs.

    Two, which fill it from half, gain nothing: a multiply-add of half a register costs half.

    Args:
        height: Outputs of the block.
        inputs: Inputs of the block, or groups of them that one instruction takes.
        lanes: Elements of one register.
    """
    if height & (height - 1) or 4 * height > lanes:
        return 1
    count = lanes // height
    while inputs % count:
        count //= 2
    return count
