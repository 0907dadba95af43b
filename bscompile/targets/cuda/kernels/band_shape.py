"""How a wgmma kernel is cut, and what that asks of a processor: threads, registers, memory."""

from __future__ import annotations

from dataclasses import dataclass

from bscompile.targets.base import HardwareSpec
from bscompile.targets.cuda.kernels.bands import BAND, STEP
from bscompile.targets.cuda.kernels.roofline import KEPT_BACK

GROUP = 128  # threads of a warpgroup
STAGED_ROWS = 16  # of x, that a warpgroup stores at a time
STAGED_PITCH = 64 + 4  # floats of a staged row: no two lanes of a warp then write to one bank
_REGISTERS = 65536  # of a processor
_LOADING = 40  # registers of a thread that loads; its warpgroup gives the others away
_BESIDE_SUMS = 32  # registers that wgmma's threads need beside their sums
_NEIGHBOURS = 16  # processors that share clusters, at least: those of a GPC


@dataclass(frozen=True)
class BandShape:
    """One kernel's shape.

    Attributes:
        bands: Of 64 outputs each, in a tile of y.
        rows: Of x in a tile; a multiple of ``16 * parts``, at most 256.
        parts: Warpgroups that share a band's rows.
        group: Neighbouring inputs of one gathered piece: 16, 32 or 64.
        stages: Buffers of the ring.
        cluster: Thread blocks of a cluster, on neighbouring rows.
        split: Thread blocks of a cluster that share the steps of one tile; one of both is 1.
    """

    bands: int
    rows: int
    parts: int
    group: int
    stages: int
    cluster: int
    split: int = 1

    @property
    def blocks(self) -> int:
        """Thread blocks of a cluster, whatever they share."""
        return self.cluster * self.split

    @property
    def workers(self) -> int:
        """Warpgroups that multiply."""
        return self.bands * self.parts

    @property
    def threads(self) -> int:
        """Of a block: a warpgroup that loads, and the workers."""
        return GROUP * (self.workers + 1)

    @property
    def columns(self) -> int:
        """Rows of x that one warpgroup multiplies: the N of its wgmma."""
        return self.rows // self.parts

    @property
    def x_bytes(self) -> int:
        """Of x in one stage."""
        return self.rows * STEP * 2

    @property
    def piece_bytes(self) -> int:
        """What one band has of one group of inputs."""
        return BAND * self.group * 2

    @property
    def staged(self) -> int:
        """Places for sixteen rows of a worker's sums: two in turn; all, where others add them."""
        return self.columns // STAGED_ROWS if self.split > 1 else 2

    @property
    def shared_bytes(self) -> int:
        """Shared memory: the ring with its barriers, and where the workers' sums are staged."""
        ring = self.stages * (self.x_bytes + self.bands * BAND * STEP * 2 + 16)
        return ring + self.workers * self.staged * STAGED_ROWS * STAGED_PITCH * 4

    def fits(self, hardware: HardwareSpec, resident: int = 1) -> bool:
        """Whether a processor can hold that many such blocks."""
        memory = hardware.group_bytes + KEPT_BACK
        return (
            self.columns <= 256
            and resident * (self.shared_bytes + KEPT_BACK) <= memory
            and self._launched(resident) >= self.columns // 2 + _BESIDE_SUMS
        )

    def resident(self, hardware: HardwareSpec) -> int:
        """Blocks that a processor holds at once: one stores while the other multiplies."""
        return 2 if self.fits(hardware, 2) else 1

    def processors(self, hardware: HardwareSpec) -> int:
        """Processors that are busy: a cluster finds its place in one GPC or nowhere."""
        if self.blocks <= 2:
            return hardware.cores // self.blocks * self.blocks
        clusters = max(1, hardware.cores // _NEIGHBOURS * (_NEIGHBOURS // self.blocks))
        return clusters * self.blocks

    def _launched(self, resident: int) -> int:
        """Registers of each thread when the kernel starts."""
        return min(255, _REGISTERS // (resident * self.threads)) // 8 * 8

    def registers(self, resident: int) -> tuple[int, int] | None:
        """Registers of a thread that loads and of one that multiplies, as setmaxnreg wants them.

        None where every thread starts with all that it can have.
        """
        launched = self._launched(resident)
        if launched >= 240:
            return None
        spare = launched * self.threads - _LOADING * GROUP
        return _LOADING, min(240, spare // (self.workers * GROUP) // 8 * 8)
