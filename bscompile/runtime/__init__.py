"""Run an artifact: ``load(path)`` gives a ``Model``.

Needs numpy and, for code that TVM's virtual machine runs, the TVM runtime; no compiler, no torch,
no onnx. An artifact holds machine code: its hashes protect against damage, not against a hostile
author, so load what you trust.
"""

from bscompile.runtime.model import Model, load

__all__ = ["Model", "load"]
