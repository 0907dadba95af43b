"""Every target, every case of the numeric suite, really executed."""

from __future__ import annotations

import numpy as np
import pytest

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
    k = case.shape[1] * (case.rank if case.form == "kronecker" else 1)
    for result in found:
        what = f"{adapter.target} {result.template} {case}"
        assert_close(result.got, result.wanted, np.float32, k, what=what)


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
    assert met == {template.name for template in adapter.context.target.templates}
    assert {case.dtype for case in found} == set(adapter.dtypes)
