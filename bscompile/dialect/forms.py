"""A weight in the form and execution block that a choice names."""

from __future__ import annotations

from bscompile.dialect.ops import Weight, dense_weight
from bscompile.formats import BlockSparseMatrix, KroneckerSum


def in_form(weight: Weight, form: str, block: tuple[int, int]) -> Weight:
    """The same weight in another form and block; the object itself where it is in that form.

    Args:
        weight: W [out, in] in any form.
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        block: The execution block; dense ignores it.

    Raises:
        ValueError: the weight cannot be brought into that form.
    """
    if form == "dense":
        return dense_weight(weight)
    if isinstance(weight, KroneckerSum):
        if form == "block_sparse":
            return weight.to_block_sparse().reblock(block)
        if weight.block == block:
            return weight
    elif form == "block_sparse":
        if isinstance(weight, BlockSparseMatrix):
            return weight.reblock(block)
        return BlockSparseMatrix.from_dense(weight, block)
    raise ValueError(f"the weight has no {form} form in {block[0]}x{block[1]} blocks")
