"""Dense layers whose way is chosen where a model runs: what its code and the runtime agree on.

The member is JSON, kernel -> ``epilogue``, the name of the launch that finishes the layer after
another library's product (empty where nothing is left to do), and ``tensors``, how many that takes.
"""

from __future__ import annotations

from typing import Final

#: The artifact member that lists them.
MEMBER: Final = "code/dense.json"
#: Of the names of the functions that the code calls for them; the kernel's name follows.
PREFIX: Final = "bscompile.dense."
