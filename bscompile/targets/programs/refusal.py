"""What the road of static programs cannot carry, in one line."""

from __future__ import annotations

from bscompile.errors import ModelError


def refusal(target: str, what: str) -> ModelError:
    """The error for a model that needs more than kernels on memory of known size.

    Args:
        target: Name of the target.
        what: What the model needs, such as ``the library function tvm.contrib.sort.sort``.
    """
    return ModelError(
        f"target {target} runs kernels of fixed shapes only, and this model needs {what}",
        "build for the target cpu",
    )
