"""The road for devices without a virtual machine: a whole model as one static program.

A target's ``prepare`` is :func:`plan` with that target's own legalizations and schedules; its
``build`` asks :func:`make_program` for the program and the kernels, and generates its own kind of
code for the kernels.
"""

from __future__ import annotations

from bscompile.targets.programs.plan import Rules, plan
from bscompile.targets.programs.walk import make_program

__all__ = ["Rules", "make_program", "plan"]
