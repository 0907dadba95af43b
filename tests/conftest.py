"""What holds for every test of a session."""

from __future__ import annotations

import gc
import os

import pytest

# Two processes of tests on two cores: threads of numpy and torch would only wait for one another.
# Set before either is imported; kernels of ours take their threads from elsewhere.
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(scope="session", autouse=True)
def _no_tuning_of_the_user(tmp_path_factory):
    """Builds ask the user's own tuning database; tests must not depend on what is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


def pytest_collection_finish():
    """Leave what stays anyway, modules above all, out of every later garbage collection."""
    gc.collect()
    gc.freeze()
