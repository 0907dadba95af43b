"""How a run of elements is cut into vectors."""

from __future__ import annotations

_CHAINS = 8  # independent sums that hide the latency of the multiply-add
_JOINED = 4  # blocks, more of which take too many shuffles


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


def joined(height: int, rows: int, flat: bool, lanes: int, registers: int) -> int:
    """Low blocks whose outputs are joined into whole vectors in registers.

    Args:
        height: Outputs of a block.
        rows: Rows of x.
        flat: Whether vectors hold a block's outputs of several rows, else of one.
        lanes: Elements of one vector.
        registers: Vectors that registers hold.

    Returns:
        How many; 1 where one block fills them, 0 where that takes memory.
    """
    if height % lanes == 0:
        return 1
    count = lanes // height
    vectors = count * (len(pieces(rows * height, lanes)) if flat else rows)
    few = count <= _JOINED and vectors <= (registers if flat else _CHAINS)
    return count if lanes % height == 0 and few else 0
