"""What a target is: a frozen, self-checking manifest, and the nouns that it speaks in.

Everything above (passes, tuning, artifact) handles targets through these types only.
"""

from __future__ import annotations

import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bscompile.dialect import ConvGeometry, LinearOp, Weight
from bscompile.dialect.precision import Precision
from bscompile.errors import TargetError
from bscompile.formats import KroneckerSum

Array = npt.NDArray[Any]
Config = Mapping[str, int | str]


@dataclass(frozen=True)
class HardwareSpec:
    """What the cost models need to know about one machine.

    Attributes:
        name: For people and for tuning keys, such as ``AMD EPYC 9R14``.
        isa: The instruction set variant code is made for, such as ``avx512``.
        features: CPU or device features that the code needs, checked before it runs.
        cores: Worker threads (CPU) or processors (GPU).
        peak_gflops: By dtype name, of one core, multiply and add counted as two.
        memory_gbps: Read rate of main memory, all cores together.
        cache_bytes: Per level from the nearest; the last one is shared.
        cache_gbps: One core's read rate from each of those levels.
        vector_bytes: Width of one vector register.
        launch_seconds: Cost of starting one parallel region or kernel.
        group_threads: Threads of one group, for GPU-like devices.
        group_bytes: Memory that the threads of one group share.
        machine: Processor family of the code, such as ``x86_64``.
        vector_registers: How many there are; 0 where that follows from their width.
        extensions: Precision -> features beyond ``features`` that this machine has for it.
        caveats: Precision -> what whoever asks for it should know of this machine.
        core_memory_gbps: Of ``memory_gbps``, what one core can draw; without limit where that is
            not known or makes no difference.
    """

    name: str
    isa: str
    features: tuple[str, ...]
    cores: int
    peak_gflops: Mapping[str, float]
    memory_gbps: float
    cache_bytes: tuple[int, ...]
    cache_gbps: tuple[float, ...]
    vector_bytes: int
    launch_seconds: float
    group_threads: int = 0
    group_bytes: int = 0
    machine: str = field(default_factory=platform.machine)
    vector_registers: int = 0
    extensions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caveats: Mapping[str, str] = field(default_factory=dict)
    core_memory_gbps: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_gflops", MappingProxyType(dict(self.peak_gflops)))
        object.__setattr__(self, "extensions", MappingProxyType(dict(self.extensions)))
        object.__setattr__(self, "caveats", MappingProxyType(dict(self.caveats)))
        if self.cores < 1:
            raise ValueError(f"a machine has at least one core, got {self.cores}")
        if len(self.cache_bytes) != len(self.cache_gbps):
            raise ValueError("cache_bytes and cache_gbps name the same levels")

    def memory_rate(self, tasks: float) -> float:
        """GB/s that so many cores draw from memory together."""
        return min(tasks * self.core_memory_gbps, self.memory_gbps)

    def extended(self, *precisions: str) -> HardwareSpec:
        """The same machine with code allowed to use what it has for these precisions."""
        more = [f for p in precisions for f in self.extensions.get(p, ()) if f not in self.features]
        return replace(self, features=(*self.features, *dict.fromkeys(more)))


@dataclass(frozen=True)
class Problem:
    """One linear layer as a kernel template sees it: y[m, n] = epilogue(x[m, k] Wᵀ).

    Attributes:
        form: ``dense``, ``block_sparse`` or ``kronecker``.
        m: Rows of x; None when symbolic.
        n: Outputs.
        k: Inputs.
        block: (bh, bw); (1, 1) for dense.
        nnzb: Live blocks; n k for dense.
        rank: Kronecker terms; 0 for other forms.
        dtype: What W is stored and multiplied in: ``float32``, ``tf32``, ``bfloat16``,
            ``float16`` or ``int8``.
        epilogue: Steps after the product, see bscompile.dialect.
        typical_m: Rows to expect when m is symbolic; the cost model uses it.
        x_dtype: Of x as it comes; all but quantised layers take float32.
        y_dtype: Of y as it leaves.
        activation: How an int8 layer quantises x, see bscompile.dialect.quantization; else empty.
    """

    form: str
    m: int | None
    n: int
    k: int
    block: tuple[int, int]
    nnzb: int
    rank: int
    dtype: str
    epilogue: tuple[str, ...] = ()
    typical_m: int = 128
    x_dtype: str = "float32"
    y_dtype: str = "float32"
    activation: str = ""

    @property
    def rows(self) -> int:
        """``m``, or the rows to expect when it is symbolic."""
        return self.typical_m if self.m is None else self.m


@dataclass(frozen=True)
class Image:
    """What a convolution's kernel reads itself: x [batch, height · width · channels].

    Attributes:
        conv: Its geometry; the zeros of its padding are nowhere in memory.
        height: Rows of one image.
        width: Columns of one image.
        channels: Values at one position.
        channels_first: Whether each channel is a plane, as ONNX has it; else the channels of a
            position lie side by side.
    """

    conv: ConvGeometry
    height: int
    width: int
    channels: int
    channels_first: bool = False


@dataclass(frozen=True, eq=False)
class Kernel:
    """A built kernel.

    Attributes:
        code: The function itself, or the recipe that makes it: only recipes can be joined to
            one function that chooses by its rows.
        operands: The weight as the kernel wants it, in argument order: (suffix, array).
        x_dtype: In which the kernel takes x, a name of dialect.precision.PRECISIONS; lowering
            rounds x to it where that is not how x comes.
            Empty for the problem's own.
    """

    code: Any
    operands: tuple[tuple[str, Array], ...]
    x_dtype: str = ""

    @cached_property
    def prim_func(self) -> Any:
        """tvm.tirx.PrimFunc taking (x [m, k], *operands, *epilogue tensors, y [m, n]).

        m is one symbolic int64 or a constant. A bias tensor is [n], a residual [m, n].
        """
        return self.code.prim_func() if isinstance(self.code, Recipe) else self.code


class Recipe(ABC):
    """The statements of a kernel, not yet a function."""

    @abstractmethod
    def prim_func(self) -> Any:
        """A tvm.tirx.PrimFunc of them, see Kernel."""


class KernelTemplate(ABC):
    """A family of kernels for some problems: what to try, what it should cost, how to build it."""

    name: str
    #: Whether ``build_conv`` serves convolutions, whose windows then need not be written out.
    reads_images: bool = False

    @abstractmethod
    def space(self, problem: Problem, hardware: HardwareSpec) -> tuple[Config, ...]:
        """The configurations worth trying, best guess first; empty for «not mine»."""

    @abstractmethod
    def cost(self, problem: Problem, config: Config, hardware: HardwareSpec) -> float:
        """Expected seconds of one call: a roofline."""

    @abstractmethod
    def build(
        self, problem: Problem, weight: Weight, config: Config, hardware: HardwareSpec
    ) -> Kernel:
        """Generate the kernel and pack the weight for it."""

    def packing(self, problem: Problem, config: Config) -> tuple[Hashable, ...]:
        """What the packed weight depends on, beside its form and block.

        Configurations with equal answers read the same packed weight, even if they are of
        different templates.
        """
        return (self.name, *sorted(config.items()))

    def rival(self, problem: Problem) -> str:
        """What else runs the layer where the model runs, if it is there and faster; or empty."""
        return ""

    def build_conv(
        self,
        problem: Problem,
        weight: Weight,
        config: Config,
        hardware: HardwareSpec,
        image: Image,
    ) -> Kernel | None:
        """The kernel of a convolution that reads the image itself.

        Args:
            problem: The matmul over the windows; ``space`` and ``cost`` are about that.
            weight: W [n, channels·kh·kw].
            config: A configuration of ``space``.
            hardware: The machine.
            image: What takes the place of the windows.

        Returns:
            None where this template needs the windows written out, as [m, channels·kh·kw].
        """
        return None


@dataclass(frozen=True)
class Availability:
    """Whether a target can be compiled for and run here.

    Attributes:
        compiles: Code can be generated and linked on this machine.
        runs: The device is present.
        detail: What was found, such as the device's name.
        install: What to install, empty when nothing is missing.
    """

    compiles: bool
    runs: bool
    detail: str
    install: str = ""


@dataclass(frozen=True)
class Target:
    """The manifest of one target; the folder ``targets/<name>`` exports it as TARGET.

    Attributes:
        name: What users type before the colon.
        description: One line for ``bscompile targets``.
        variants: What users may type after the colon; the empty name means «this machine».
        detect: What this machine has.
        hardware: (variant, threads or None) -> the spec to compile for.
        templates: Kernel templates in order of preference.
        build: (lowered module, context) -> artifact members, file name -> bytes.
        elsewhere: Variant -> the manifest that serves it, for variants that differ in more than
            the machine compiled for.
        joins_variants: Whether ``one+another`` compiles for both.
        prepare: Runs before ``build`` where a target's passes add parameters:
            (lowered, context) -> lowered.
        loader: Name of the runtime loader that runs those members.
        compile_kernel: (tvm.tirx.PrimFunc, spec) -> a tvm.runtime.Executable that holds it as
            ``kernel``, or a LoneKernel; the tuner measures single kernels with it. None where
            they cannot be.
        measured_on: Names the device here that kernels are measured on, or what stands in for
            it, where the spec compiled for does not; what was measured on one counts there only.
        check_kernel: Called with the spec before any is; raises where they cannot be measured.
        device: TVM's name of the device that kernels run on; empty where they are LoneKernels.
        counts: What a measure counts where it is no time, such as ``cycles``; else empty.
        branches: Whether one kernel may hold the code of several and choose by its rows.
        places: Template -> part of the machine that runs it, where that has several parts; the
            empty name stands for everything that no kernel template makes.
    """

    name: str
    description: str
    variants: tuple[str, ...]
    detect: Callable[[], Availability]
    hardware: Callable[[str, int | None], HardwareSpec]
    templates: tuple[KernelTemplate, ...]
    build: Callable[[Any, TargetContext], dict[str, bytes]]
    loader: str = "vm"
    compile_kernel: Callable[[Any, HardwareSpec], Any] | None = None
    measured_on: Callable[[], str] | None = None
    check_kernel: Callable[[HardwareSpec], None] | None = None
    device: str = "cpu"
    counts: str = ""
    branches: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, Target] = field(default_factory=dict)
    prepare: Callable[[Any, TargetContext], Any] | None = None
    joins_variants: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.templates:
            raise ValueError("a target needs a name and at least one kernel template")
        forms = {"dense", "block_sparse", "kronecker"}
        names = [t.name for t in self.templates]
        if len(set(names)) != len(names):
            raise ValueError(f"target {self.name}: template names must differ, got {names}")
        if "dense" not in " ".join(names):
            raise ValueError(f"target {self.name}: needs a dense template among {forms}")

    def template(self, name: str) -> KernelTemplate:
        """The template of that name.

        Raises:
            TargetError: the target has none of that name.
        """
        for template in self.templates:
            if template.name == name:
                return template
        known = ", ".join(t.name for t in self.templates)
        raise TargetError(f"target {self.name} has no kernel template {name!r}; it has {known}")


@dataclass(frozen=True)
class TargetContext:
    """A target resolved once: the manifest, the variant and the machine compiled for.

    Attributes:
        target: The manifest.
        variant: What followed the colon; empty for «this machine».
        hardware: The machine compiled for.
        typical_rows: Rows of x to plan for where the model leaves them symbolic.
        buckets: Further rows to plan for there, each served by a choice of its own.
    """

    target: Target
    variant: str
    hardware: HardwareSpec
    typical_rows: int = 128
    buckets: tuple[int, ...] = ()


def problem_of(op: LinearOp, m: int | None, dtype: Precision, typical_m: int = 128) -> Problem:
    """The problem that a layer poses to a kernel template.

    Args:
        op: The layer.
        m: Rows of x; None when symbolic.
        dtype: What the weight is to be multiplied in; the op's own may still be float32.
        typical_m: Rows to expect when m is symbolic.
    """
    n, k = op.shape
    weight = op.weight
    if isinstance(weight, np.ndarray):
        form, block, live, rank = "dense", (1, 1), n * k, 0
    elif isinstance(weight, KroneckerSum):
        form, block, live = "kronecker", weight.block, int(weight.support.sum())
        rank = weight.rank
    else:
        form, block, live, rank = "block_sparse", weight.block, weight.nnzb, 0
    problem = Problem(form, m, n, k, block, live, rank, dtype.name, op.epilogue, typical_m)
    if dtype != np.int8:
        return problem
    ends = op.quantization
    if ends is None:
        return replace(problem, activation="row")
    return replace(problem, x_dtype=ends.x_dtype, y_dtype=ends.y_dtype, activation=ends.activation)
