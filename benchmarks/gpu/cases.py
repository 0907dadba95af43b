"""What is measured: shapes, blocks, densities, rows of x; and the pattern of each case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What there may be no time for comes last: see all_cases.
SHAPES = {"llama": (11008, 4096), "bert": (3072, 768), "llama3": (14336, 4096)}
BLOCKS = (16, 32, 64, 128)
TRAINED = (4, 8)  # small trained blocks, merged into tensor-core tiles
DENSITIES = (0.05, 0.1, 0.2, 0.5)
ROWS = (1, 4, 16, 64, 256, 1024, 4096, 8192)
DTYPE = "bfloat16"
#: (whether of the first shape, density), the most important first.
_ORDER = [
    *((True, density) for density in (0.1, 1.0, 0.5, 0.2, 0.05)),
    *((False, density) for density in (0.1, 1.0, 0.5, 0.2, 0.05)),
]


@dataclass(frozen=True)
class Case:
    """One weight.

    Attributes:
        shape: Name in SHAPES, or a name of its own.
        n: Outputs.
        k: Inputs.
        block: Side of the trained block; 64 of a dense weight.
        density: Share of live blocks; 1 of a dense weight.
    """

    shape: str
    n: int
    k: int
    block: int
    density: float

    @property
    def name(self) -> str:
        """Also the name of its file of places."""
        return f"{self.shape}-b{self.block}-d{round(self.density * 100)}"

    @property
    def form(self) -> str:
        """In which it is built."""
        return "dense" if self.density == 1 else "block_sparse"

    def mask(self) -> np.ndarray:
        """Bool [n / block, k / block]: the same on every machine."""
        rng = np.random.default_rng(self.n + self.k + self.block + round(1000 * self.density))
        return rng.random((self.n // self.block, self.k // self.block)) < self.density


def all_cases(small: bool) -> list[Case]:
    """Every case; a few small ones for a dry run."""
    if small:
        return [
            Case("small", 128, 128, 16, 0.3),
            Case("small", 128, 128, 8, 0.2),
            Case("small", 128, 128, 64, 1),
        ]
    cases = [
        Case(shape, n, k, block, density)
        for shape, (n, k) in SHAPES.items()
        for block, density in (
            *((block, density) for block in BLOCKS for density in DENSITIES),
            *((block, 0.1) for block in TRAINED),
            (64, 1.0),
        )
    ]
    return sorted(cases, key=lambda case: _ORDER.index((case.shape == "llama", case.density)))
