"""The templates on Hopper's wgmma and TMA, dense or block-sparse: see code/wgmma.py.

The band, not the rows, is the M of wgmma. Of W and x in shared memory, one wgmma reads 64 + n rows
for 64 n products: with n = 256 rows of x that is a third less than the tensor cores have time for,
with n = 64 outputs it is all of it. And n may grow, where a block's outputs may not.

What bounds large layers is the second-level cache. A step of a tile is read as ``rows`` rows of x
and, by a cluster of c blocks, as a c-th of each live band; so the products for each byte grow with
the rows and the cluster, and with the bands by as much as their live columns coincide. What is
multiplied are only the pieces that are live in a band: 64 outputs by one group of inputs.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product

from bscompile.dialect import Weight
from bscompile.formats import KroneckerSum
from bscompile.targets.base import Config, HardwareSpec, Kernel, KernelTemplate, Problem
from bscompile.targets.cuda.compile import number
from bscompile.targets.cuda.hardware import architectures
from bscompile.targets.cuda.kernels.band_shape import BandShape
from bscompile.targets.cuda.kernels.bands import BAND, STEP, band_layout, pack_bands
from bscompile.targets.cuda.kernels.packing import expected_steps, groups_for, live_share
from bscompile.targets.cuda.kernels.roofline import (
    STEP_SECONDS,
    STORE_SECONDS,
    WGMMA_SHARE,
    Work,
    ends_bytes,
    seconds,
)
from bscompile.targets.cuda.kernels.steps import HALVES

_ALIGNED = 8  # inputs in 16 bytes: TMA sees only matrices whose rows begin at such places
_NARROWEST = 16  # inputs of a group: one wgmma takes as many
_MEET_SECONDS = 5e-7  # of a cluster, with what is read across it
_STAGES = (8, 6, 5, 4, 3, 2)
#: (cluster, split): blocks on neighbouring rows, or on the steps of one tile.
_CLUSTERS = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (1, 8))
_MOST = 24  # configurations worth a try


class Wgmma(KernelTemplate):
    """Configuration: the fields of BandShape. ``form`` is dense or block_sparse."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.name = f"{form}_wgmma"

    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """Shapes that fit the machine, the cheapest by cost first; none but on Hopper."""
        if problem.form != self.form or problem.dtype not in HALVES or not _serves(hardware):
            return ()
        if problem.k % _ALIGNED or problem.k < _NARROWEST:
            return ()
        group = max(_NARROWEST, groups_for(problem, STEP))
        configs = [asdict(shape) for shape in _shapes(problem, group, hardware)]
        return tuple(sorted(configs, key=lambda c: self.cost(problem, c, hardware))[:_MOST])

    def rival(self, problem: Problem) -> str:
        """CuBLAS, for a dense layer of whole steps: see either_way.py."""
        return "cuBLAS" if self.form == "dense" and problem.k % STEP == 0 else ""

    @staticmethod
    def shared_bytes(config: Config, dtype: str) -> int:
        """Shared memory of one thread block; a half is a half, whatever the dtype."""
        return _shape(config).shared_bytes

    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call, with the pass over x that makes it narrow."""
        shape = _shape(config)
        tile_rows = -(-problem.n // (BAND * shape.bands))
        tiles = -(-problem.rows // (shape.rows * shape.cluster)) * shape.cluster
        steps = expected_steps(problem, band_layout(shape.bands, shape.group))
        kept = _kept_pieces(problem, shape) * shape.piece_bytes
        # wgmma reads 64 + n rows of 32 bytes in the time of n / 2 cycles, at 128 bytes a cycle.
        fed = min(1.0, 2 * shape.columns / (BAND + shape.columns))
        rate = hardware.peak_gflops[problem.dtype] * 1e9 * WGMMA_SHARE * fed
        blocks = tile_rows * tiles * shape.split
        operations = kept * shape.rows * tiles / blocks  # of one: two for each pair of bytes
        # What a tile's end takes goes on beside loads and beside another block's products.
        end = (STEP_SECONDS + shape.columns / 16 * STORE_SECONDS) / shape.resident(hardware)
        if shape.split > 1:
            end += 2 * _MEET_SECONDS
        work = Work(
            blocks=blocks,
            operations=operations * blocks,
            rate=operations / (operations / rate + end),
            near_bytes=tiles * (steps * shape.x_bytes + kept / shape.cluster),
            far_bytes=kept + ends_bytes(problem),
            depth=steps / tile_rows / shape.split / max(1, shape.stages - 1),
        )
        cost = seconds(replace(hardware, cores=shape.processors(hardware)), work)
        return cost if problem.x_dtype == problem.dtype else cost + hardware.launch_seconds

    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Pack the weight and generate the kernel; x comes in the dtype that is multiplied."""
        from bscompile.targets.cuda.kernels.code import wgmma

        shape = _shape(config)
        assert not isinstance(weight, KroneckerSum)
        operands = pack_bands(weight, shape.bands, shape.group, problem.dtype)
        unit = band_layout(shape.bands, shape.group).unit(problem.k)
        func = wgmma.kernel(problem, operands, shape, unit, hardware)
        return Kernel(func, operands, x_dtype=problem.dtype)


def _serves(hardware: HardwareSpec) -> bool:
    """Made for Hopper; newer ones beside it have its TMA, and run mma.sync in wgmma's place."""
    names = architectures(hardware)
    return names[0] == "sm_90" and min(map(number, names)) >= number("sm_90")


def _shape(config: Config) -> BandShape:
    return BandShape(**{key: int(value) for key, value in config.items()})


def _shapes(problem: Problem, group: int, hardware: HardwareSpec) -> list[BandShape]:
    """For each tile, the longest ring that one block, and that each of two, has room for."""
    found: list[BandShape] = []
    for bands, rows, parts, blocks in product((1, 2, 4), (16, 32, 64, 128, 256), (1, 2), _CLUSTERS):
        if bands * BAND >= 2 * max(BAND, problem.n) or rows >= 2 * max(16, problem.rows):
            continue
        if bands * parts > 4 or rows // parts < 16:
            continue
        cluster, split = blocks
        if rows * (cluster - 1) >= problem.rows:
            continue
        if split > 1 and not _idles(problem, bands, rows, split, group, hardware):
            continue
        shapes = [BandShape(bands, rows, parts, group, stages, *blocks) for stages in _STAGES]
        for resident in (1, 2):
            fitting = [shape for shape in shapes if shape.fits(hardware, resident)]
            found += [shape for shape in fitting[:1] if shape not in found]
    return found


def _idles(
    problem: Problem, bands: int, rows: int, split: int, group: int, hardware: HardwareSpec
) -> bool:
    """Whether whole tiles leave the machine idle, and have steps enough for several blocks."""
    tile_rows, tiles = -(-problem.n // (BAND * bands)), -(-problem.rows // rows)
    steps = expected_steps(problem, band_layout(bands, group)) / tile_rows
    return tile_rows * tiles < 2 * hardware.cores and steps >= 2 * split


def _kept_pieces(problem: Problem, shape: BandShape) -> float:
    """Pieces that packing will keep: at least one in each band."""
    bands = -(-problem.n // (BAND * shape.bands)) * shape.bands
    groups = -(-problem.k // shape.group)
    live = live_share(problem, band_layout(1, shape.group))
    return bands * max(1.0, live * groups)
