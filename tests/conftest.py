"""What holds for every test of a session."""

from __future__ import annotations

import gc


def pytest_collection_finish():
    """Leave what stays anyway, modules above all, out of every later garbage collection."""
    gc.collect()
    gc.freeze()
