"""Kernel templates for vector processors: what to try, what it costs, how the weight is packed.

The generated code is in ``code``, which needs TVM; the templates themselves do not import it.
"""
