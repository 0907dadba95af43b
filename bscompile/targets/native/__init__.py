"""Static executables: a whole model as one program for another processor, without Python.

A processor is described by a :class:`Machine`; ``build`` turns a program and its kernels into a
relocatable object with a C interface and into a program that serves standard input and output.
The C sources are in ``c``.
"""

from __future__ import annotations

from bscompile.targets.native.machines import MACHINES, Machine

__all__ = ["MACHINES", "Machine"]
