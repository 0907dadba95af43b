"""Every target, every case of the numeric suite, really executed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bscompile.targets.base import Problem
from tests.targets.adapters import adapters
from tests.targets.numeric_suite import CASES, results
from tests.tolerance import assert_close

ADAPTERS = adapters()
RUNS = [
    pytest.param(adapter, case, id=f"{adapter.target}-{case}")
    for adapter in ADAPTERS
    for case in CASES
    if case.dtype in adapter.dtypes and case.form in adapter.forms
]


def results_here(adapter):
    if reason := adapter.missing():
        pytest.skip(reason)
    return results(adapter)


@pytest.mark.parametrize(("adapter", "case"), RUNS)
def test_a_case_is_right(adapter, case):
    found = results_here(adapter).get(case)
    assert found, "no template takes it"
    for result in found:
        what = f"{adapter.target} {result.template} {case}"
        assert_close(result.got, result.wanted, *result.rounding, what=what)


@pytest.mark.parametrize(
    ("adapter", "case"), [run for run in RUNS if run.values[1].control]
)  # fmt: skip
def test_one_changed_weight_changes_the_result(adapter, case):
    for result in results_here(adapter)[case]:
        difference = np.abs(result.changed - result.got).max()
        assert difference > 1e-2, f"{result.template} does not read the weight"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=[a.target for a in ADAPTERS])
def test_every_template_and_dtype_is_met(adapter):
    found = results_here(adapter)
    met = {result.template for several in found.values() for result in several}
    assert met == _serving_here(adapter)
    assert {case.dtype for case in found} == set(adapter.dtypes)


def _serving_here(adapter):
    """Templates that take some ordinary layer on this machine; AMX, for one, needs its tiles."""
    layers = [
        Problem(form, 128, 768, 768, block, nnzb, rank, dtype)
        for dtype in adapter.dtypes
        for form, block, nnzb, rank in (
            ("dense", (1, 1), 768 * 768, 0),
            ("block_sparse", (16, 16), 230, 0),
            ("block_sparse", (4, 4), 3600, 0),
            ("kronecker", (8, 8), 900, 2),
        )
    ]
    layers += [replace(layer, m=1) for layer in layers]
    hardware = adapter.context.hardware
    return {
        template.name
        for template in adapter.context.target.templates
        if any(template.space(layer, hardware.extended(layer.dtype)) for layer in layers)
    }
