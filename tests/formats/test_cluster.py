"""Orders that bring features of similar support together."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.formats.cluster import by_equality, by_similarity, runs_needed


def blocks(side, count=12, columns=80, density=0.2, seed=0):
    """Supports bool [count * side, columns], equal in runs of ``side``."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.random((count, columns)) < density, side, axis=0)


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("order_of", [by_similarity, by_equality])
def test_shuffled_runs_are_found_again(side, order_of):
    supports = blocks(side)
    shuffled = supports[np.random.default_rng(1).permutation(len(supports))]
    order = order_of(shuffled, len(shuffled))
    assert sorted(order) == list(range(len(shuffled)))
    assert runs_needed(shuffled, order, side) == runs_needed(
        supports, np.arange(len(supports)), side
    )


def test_runs_that_are_no_power_of_two_are_found_by_equality():
    supports = blocks(12)
    shuffled = supports[np.random.default_rng(1).permutation(len(supports))]
    order = by_equality(shuffled, len(shuffled))
    assert runs_needed(shuffled, order, 12) == supports[::12].sum()


def test_accidental_zeros_do_not_hide_the_runs():
    rng = np.random.default_rng(2)
    supports = blocks(8, count=16, columns=400)
    noisy = supports & (rng.random(supports.shape) > 0.02)
    shuffled = noisy[rng.permutation(len(noisy))]
    needed = runs_needed(shuffled, by_similarity(shuffled, len(shuffled)), 8)
    assert needed == supports[::8].sum()


def test_a_column_counts_as_often_as_it_is_there():
    """Feature 0 shares two columns with 1 and three equal ones with 2."""
    supports = np.zeros((4, 8), bool)
    supports[0] = True
    supports[1, [0, 2]] = True
    supports[2, [4, 5, 6]] = True
    supports[3, [0, 7]] = True
    assert by_similarity(supports, 4).reshape(2, 2).tolist() == [[0, 2], [1, 3]]


def test_cells_keep_their_features():
    supports = np.concatenate([blocks(4, count=4, seed=s) for s in range(3)])
    order = by_similarity(supports[::-1], 16)
    np.testing.assert_array_equal(order // 16, np.repeat([0, 1, 2], 16))


@pytest.mark.parametrize("features", [1, 2, 3, 7, 65, 130])
def test_odd_numbers_are_orders_too(features):
    supports = np.random.default_rng(0).random((features, 30)) < 0.3
    for order in (by_similarity(supports, features), by_equality(supports, features)):
        assert sorted(order) == list(range(features))


def test_nothing_to_look_at():
    for supports in (np.zeros((6, 5), bool), np.ones((6, 5), bool), np.zeros((4, 0), bool)):
        assert sorted(by_similarity(supports, len(supports))) == list(range(len(supports)))


def test_long_supports_are_sampled():
    supports = blocks(8, count=8, columns=40_000)
    shuffled = supports[np.random.default_rng(1).permutation(len(supports))]
    order = by_similarity(shuffled, len(shuffled))
    assert runs_needed(shuffled, order, 8) == supports[::8].sum()
