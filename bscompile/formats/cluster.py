"""An order of features that brings those with similar supports together. numpy only.

The support of a feature is where its weights are not zero. Features are joined in pairs, pairs
in fours and so on up to 64, each time the most similar ones first: for supports a and b

    similarity = |a and b| / |a or b|       (Jaccard; 1 for two that are empty)

Equal supports are paired before all others. So runs of 4, 8, 16.. features have few columns
that any of them needs, which is what an execution block of that height stores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]

_LEVELS = 6  # up to runs of 64
_COLUMNS = 1 << 14  # of a support that are looked at; more are sampled


def by_similarity(supports: Mask, cell: int) -> Index:
    """The order that pairs give: feature j of it is feature ``order[j]`` of the supports.

    Args:
        supports: bool [features, columns].
        cell: Features that stay together, in their place: an order is found in each cell.
    """
    looked_at, counts = _distinct(_sampled(supports))
    return _cell_by_cell(len(supports), cell, lambda part: _paired_order(looked_at[part], counts))


def by_equality(supports: Mask, cell: int, sizes: Sizes | None = None) -> Index:
    """The order that puts features of equal support side by side.

    Args:
        supports: bool [features, columns].
        cell: Features that stay together, in their place.
        sizes: float [features]: features of equal support by rising size; None leaves them in
            the order that they have among themselves. Rows of one Kronecker term A ⊗ B keep
            the order of B's in every block so, since |A| scales all of a block alike.
    """
    sizes = np.zeros(len(supports)) if sizes is None else sizes
    return _cell_by_cell(
        len(supports), cell, lambda part: _equal_order(supports[part], sizes[part])
    )


def runs_needed(supports: Mask, order: Index, run: int) -> int:
    """Columns that each run of ``run`` features needs, added up: blocks of that height."""
    packed = np.packbits(supports, axis=1)[order]
    united = np.bitwise_or.reduceat(packed, np.arange(0, len(packed), run), axis=0)
    return int(np.bitwise_count(united).sum(dtype=np.int64))


def _cell_by_cell(features: int, cell: int, order_of: Callable[[slice], Index]) -> Index:
    parts = [
        start + order_of(slice(start, min(start + cell, features)))
        for start in range(0, features, cell)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _sampled(supports: Mask) -> Mask:
    columns = supports.shape[1]
    if columns <= _COLUMNS:
        return supports
    chosen = np.linspace(0, columns - 1, _COLUMNS).astype(np.int64)
    return np.ascontiguousarray(supports[:, chosen])


def _distinct(supports: Mask) -> tuple[Mask, Counts]:
    """The columns without those that equal the one before, and how many each stands for."""
    starts = np.ones(supports.shape[1], bool)
    starts[1:] = (supports[:, 1:] != supports[:, :-1]).any(axis=0)
    places = np.flatnonzero(starts)
    counts = np.diff(places, append=supports.shape[1]).astype(np.float32)
    return np.ascontiguousarray(supports[:, places]), counts


def _equal_order(supports: Mask, sizes: Sizes) -> Index:
    """Classes of equal supports in the order of their first members."""
    members = [m for same in _classes(supports) for m in sorted(same, key=sizes.__getitem__)]
    return np.array(members, np.int64)


def _classes(supports: Mask) -> list[list[int]]:
    """Items of equal support, by their first members."""
    members: dict[bytes, list[int]] = {}
    for item, bits in enumerate(np.packbits(supports, axis=1)):
        members.setdefault(bits.tobytes(), []).append(item)
    return list(members.values())


def _paired_order(supports: Mask, counts: Counts) -> Index:
    whole = [np.array([feature]) for feature in range(len(supports))]
    rest: list[Index] = []  # what found no partner goes to the end, the largest first
    needed = supports
    for _ in range(_LEVELS):
        if len(whole) < 2:
            break
        pairs, single = _pairs(needed, counts)
        if single is not None:
            rest.insert(0, whole[single])
        whole = [np.concatenate([whole[a], whole[b]]) for a, b in pairs]
        needed = np.stack([needed[a] | needed[b] for a, b in pairs])
    return np.concatenate([*whole, *rest]).astype(np.int64)


def _pairs(needed: Mask, counts: Counts) -> tuple[list[tuple[int, int]], int | None]:
    """Every item with the most similar one that is free; one may be left over."""
    pairs, free = _equal_pairs(needed)
    items = np.array(free)
    if len(items) > 1:
        pairs += _similar_pairs(needed, items, counts)
    taken = {item for pair in pairs for item in pair}
    single = next((item for item in range(len(needed)) if item not in taken), None)
    return sorted(pairs), single


def _equal_pairs(needed: Mask) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of equal supports, and who found none."""
    pairs, free = [], []
    for same in _classes(needed):
        pairs += list(zip(same[0::2], same[1::2], strict=False))
        if len(same) % 2:
            free.append(same[-1])
    return pairs, sorted(free)


def _similar_pairs(needed: Mask, items: Index, counts: Counts) -> list[tuple[int, int]]:
    """Mutually nearest ones in rounds; whoever is left in the end is paired as they stand."""
    alive = needed[items].astype(np.float32)
    size = alive @ counts
    both = (alive * counts) @ alive.T
    either = size[:, None] + size[None] - both
    similarity = np.where(either > 0, both / np.maximum(either, 1), 1).astype(np.float32)
    np.fill_diagonal(similarity, -1)
    pairs, left = [], np.arange(len(items))
    while len(left) > 1:
        nearest = similarity[np.ix_(left, left)].argmax(axis=1)
        mutual = nearest[nearest] == np.arange(len(left))
        first = np.flatnonzero(mutual & (np.arange(len(left)) < nearest))
        if not len(first):  # ties in a ring
            first, nearest = np.array([0]), np.full(len(left), nearest[0])
        second = nearest[first]
        found = zip(items[left[first]], items[left[second]], strict=True)
        pairs += [(int(a), int(b)) for a, b in found]
        left = np.delete(left, np.concatenate([first, second]))
    return pairs
