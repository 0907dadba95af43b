"""TVM's worker threads: how many, and not tied to cores."""

from __future__ import annotations

import os


def set_threads(count: int) -> None:
    """Make TVM's thread pool use ``count`` workers; call before TVM first runs parallel code.

    TVM takes half of the processors by default and ties each worker to one of them, which on a
    machine with other work is slower than leaving the choice to the operating system. Its idle
    workers spin long after a call, against whatever runs next; the runtime keeps that short, and
    so do we, to measure what users will see. All are read from the environment when the pool
    starts; what the user has set there stays.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(count))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "10000")
