"""Wherever a Reshape takes features, taking some of them before or after gives the same."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bscompile.passes.feature_layout import Layout, after_reshape

SIDES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@st.composite
def reshapes(draw):
    """(old shape, new shape, layout in the old one, number of features)."""
    old = draw(SIDES)
    total, new = math.prod(old), []
    while total > 1 or draw(st.booleans()):
        side = draw(st.sampled_from([d for d in (1, 2, 3, 4, 6, 8, 12) if total % d == 0]))
        new.append(side)
        total //= side
        if len(new) == 6:
            break
    new.append(total)
    axis = draw(st.integers(-len(old), -1))
    size = draw(st.sampled_from([d for d in (1, 2, 3, 4) if old[axis] % d == 0]))
    return old, new, Layout(axis, old[axis] // size), size


@settings(max_examples=400)
@given(case=reshapes(), data=st.data())
def test_taking_features_and_reshaping_commute(case, data):
    old, new, layout, size = case
    after = after_reshape(old, new, layout, size)
    if not isinstance(after, Layout):
        return
    keep = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    x = np.arange(math.prod(old)).reshape(old)
    target = list(new)
    target[after.axis] = after.length(len(keep))
    before = np.take(x, layout.entries(keep), axis=layout.axis).reshape(target)
    np.testing.assert_array_equal(
        before, np.take(x.reshape(new), after.entries(keep, size), axis=after.axis)
    )


@settings(max_examples=400)
@given(case=reshapes())
def test_a_reshape_back_leads_back(case):
    old, new, layout, size = case
    after = after_reshape(old, new, layout, size)
    if isinstance(after, Layout) and size > 1 and after.outer == 1:
        assert after_reshape(new, old, after, size) == layout


@settings(max_examples=400)
@given(case=reshapes())
def test_joined_features_pass_where_single_ones_do_not(case):
    old, new, layout, size = case
    joined = after_reshape(old, new, layout, size)
    if isinstance(joined, int) and size % joined == 0:
        wider = Layout(layout.axis, layout.run * joined)
        assert isinstance(after_reshape(old, new, wider, size // joined), Layout)
