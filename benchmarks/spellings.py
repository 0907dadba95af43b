"""Every way to write a factorized layer in torch: what ONNX Runtime and the compiler make of it.

Layers of 8x8 blocks, rank 2, 20 % live, below what torch's exporter folds (64 -> 48) and above it
(768 -> 1536), with a static number of rows and a symbolic one. Printed: the largest error of ONNX
Runtime and of the artifact over the largest output, whether the largest output of every row is the
same one, the block found and its live blocks beside those trained. Wanted: errors up to 1e-4, the
same outputs, as many live blocks.

    python -m benchmarks.spellings [--only NAME ...]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

import bscompile
from tests.passes.factorized import SPELLINGS, Factorized, export

# In and out; torch folds constants of up to 8192 elements into ones of up to 262144.
SIZES = {"small": (64, 48), "large": (768, 1536)}
ROWS = 6


@dataclass(frozen=True)
class Case:
    """What came of one spelling.

    Attributes:
        want: Torch's outputs [rows, out].
        theirs: ONNX Runtime's.
        ours: The artifact's.
        block: The trained block that the compiler found.
        live: Live blocks that it counts.
        trained: Those that there are.
    """

    want: np.ndarray
    theirs: np.ndarray
    ours: np.ndarray
    block: tuple[int, int]
    live: int
    trained: int

    def error(self, got: np.ndarray) -> float:
        """Largest difference over the largest output."""
        return float(np.abs(got - self.want).max() / np.abs(self.want).max())

    @property
    def same_choice(self) -> bool:
        """Whether every row has its largest output in the same place in all three."""
        choices = [y.argmax(1) for y in (self.want, self.theirs, self.ours)]
        return bool((choices[0] == choices[1]).all() and (choices[0] == choices[2]).all())


def case(spelling: str, size: str, dynamic: bool, folder: Path) -> Case:
    """Export, run and build one spelling.

    Raises:
        ValueError: The compiler made more or fewer layers of it than one.
    """
    n, m = SIZES[size]
    module = Factorized(spelling, n, m, (8, 8), 2, density=0.2).eval()
    path = folder / "m.onnx"
    onnx.save(export(module, (ROWS, n), dynamic=(0,) if dynamic else ()), path)
    x = np.random.default_rng(0).standard_normal((ROWS, n)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
    compiled = bscompile.build(path)
    compiled.save(folder / "m.bsc")
    with bscompile.load(folder / "m.bsc") as artifact:
        ours = artifact(x)
    (layer,) = compiled.report.to_dict()["layers"]
    bh, bw = layer["trained_block"]
    live = round(layer["density"] * (m // bh) * (n // bw))
    return Case(want, theirs, ours, (bh, bw), live, int(module.S.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(SPELLINGS), choices=list(SPELLINGS))
    given = parser.parse_args()
    print(
        f"{'spelling':14s}{'size':7s}{'rows':9s} onnxruntime  bscompile  choice block live trained"
    )
    missed = 0
    for spelling in given.only:
        for size in SIZES:
            for dynamic in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    got = case(spelling, size, dynamic, Path(folder))
                theirs, ours = got.error(got.theirs), got.error(got.ours)
                met = max(theirs, ours) <= 1e-4 and got.same_choice and got.live == got.trained
                missed += not met
                block = f"{got.block[0]}x{got.block[1]}"
                choice = "same" if got.same_choice else "OTHER"
                rows = "symbolic" if dynamic else "static"
                print(
                    f"{spelling:14s}{size:7s}{rows:9s} {theirs:11.1e} {ours:10.1e}"
                    f"  {choice:6s} {block:5s} {got.live:4d} {got.trained:7d}"
                    f"   {'met' if met else 'MISSED'}",
                    flush=True,
                )
    print(f"missed: {missed}")


if __name__ == "__main__":
    main()
