"""Instructions that multiply several narrow inputs and add them to one wide sum per lane.

=========  ======  ==========================================  ====================
product    inputs  instruction                                 needs
=========  ======  ==========================================  ====================
bfloat16   2       vdpbf16ps, float32 sums                     avx512_bf16
bfloat16   2       bfdot, float32 sums                         bf16 (AArch64)
int8       4       vpdpbusd, u8 x s8, int32 sums               avx512_vnni
bfloat16   4       bfmmla on pairs of rows and outputs         bf16 (AArch64)
int8       8       usmmla likewise, u8 x s8, int32 sums        i8mm (AArch64)
int8       4       usdot, u8 x s8, int32 sums                  i8mm (AArch64)
int8       4       sdot, s8 x s8: x is moved down by 128       asimddp (AArch64)
int8       2       pmaddwd on both widened to 16 bits          any x86
int8       1       multiply-add on both widened to 32 bits     anything
=========  ======  ==========================================  ====================

Every integer sum is exact. vdpbf16ps rounds to nearest even and takes denormals for zero.
bfloat16 has no type in TVM's code generator that keeps it, so its numbers travel as 16-bit
integers and the instruction comes in through a few lines of LLVM IR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr

_TOP_BITS = -0x7F7F7F80  # 0x80 in each byte: as signed numbers, bytes are then 128 less
_WIDTHS = (4, 8, 16)  # 32-bit lanes of an xmm, ymm and zmm register


@dataclass(frozen=True)
class Product:
    """One way to multiply.

    Attributes:
        group: Inputs that one step multiplies for each output.
        element: dtype in which x is read.
        stored: dtype in which the weights of one step and output are stored: ``group`` numbers
            in 32-bit words, or int8 side by side.
        total: dtype of the sums.
        kind: ``bf16``, ``bfdot``, ``bfmmla``, ``vnni``, ``usdot``, ``usmmla``, ``sdot``,
            ``pairs`` or ``plain``.
        shift: What the instruction takes away from each x; its zero point goes down with it.
    """

    group: int
    element: str
    stored: str
    total: str
    kind: str
    shift: int = 0

    @property
    def pairs(self) -> bool:
        """Whether one instruction treats two rows and two outputs: see narrow_pairs.py."""
        return self.kind in ("bfmmla", "usmmla")

    @property
    def clips(self) -> bool:
        """Whether the machines also have those of ``rounded_words`` and ``clipped_bytes``."""
        return self.kind == "vnni"

    @property
    def stored_numbers(self) -> int:
        """Elements of ``stored`` for one step and output."""
        if self.stored == "int8":
            return self.group
        return self.group * (2 if self.total == "float32" else 1) // 4

    @property
    def narrowest(self) -> int:
        """The fewest outputs that one step treats at once."""
        return 1 if self.kind == "plain" else min(_WIDTHS)

    @property
    def llvm(self) -> str:
        """LLVM IR that the kernel has to import; empty for none."""
        return {"bf16": _BF16, "bfdot": _BFDOT, "bfmmla": _BFMMLA}.get(self.kind, "")

    def splat(self, x: Buffer, row: Expr, column: Expr, lanes: int) -> Expr:
        """x[row, column : column + group] in every lane; ``column`` may be odd."""
        return self.spread(x, row, column, 1, lanes)

    def spread(self, x: Buffer, row: Expr, column: Expr, count: int, lanes: int) -> Expr:
        """``count`` groups of x[row, column:], each in its part of the lanes; any column."""
        value = emit.load(x, row, column, lanes=self.group * count)
        words = _vector("int32", count)
        if self.kind == "plain":
            return emit.spread(T.cast(value, words), count, lanes)
        word = T.reinterpret(words, value)
        if self.shift:
            word = T.bitwise_xor(word, emit.splat(T.int32(_TOP_BITS), count))
        return emit.spread(word, count, lanes)

    def pair(self, x: Buffer, first: Expr, second: Expr, column: Expr) -> Expr:
        """Two rows' x[row, column : column + group] in one register; ``column`` may be odd."""
        both = [
            T.reinterpret("int32x2", emit.load(x, row, column, lanes=self.group))
            for row in (first, second)
        ]
        return tirx.Shuffle(both, [tirx.IntImm("int32", lane) for lane in range(4)])

    def load(self, values: Buffer, block: Expr, step: Expr, at: int, lanes: int) -> Expr:
        """The weights of one step for ``lanes`` outputs, as ``multiply_add`` wants them."""
        if self.stored == "int32":
            return emit.load(values, block, step, at, lanes=lanes)
        narrow = emit.load(values, block, step, at * self.group, lanes=lanes * self.group)
        wide = "int16" if self.kind == "pairs" else "int32"
        return T.cast(narrow, _vector(wide, lanes * self.group))

    def multiply_add(self, total: Expr, x: Expr, weight: Expr, lanes: int) -> Expr:
        """Total + Σ x weight over the group, lane by lane."""
        if self.kind in ("bf16", "bfdot"):
            return T.call_extern(f"float32x{lanes}", f"bsc_dot_bf16_{lanes}", total, weight, x)
        if self.kind == "vnni":
            return T.call_llvm_pure_intrin(
                f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
                total,
                T.reinterpret(f"uint8x{4 * lanes}", x),
                T.reinterpret(f"int8x{4 * lanes}", weight),
                dtype=f"int32x{lanes}",
            )
        if self.kind == "bfmmla":
            return T.call_extern("float32x4", "bsc_mmla_bf16", total, x, weight)
        if self.kind in ("usdot", "usmmla", "sdot"):
            return T.call_llvm_pure_intrin(
                f"llvm.aarch64.neon.{self.kind}.v4i32.v16i8",
                total,
                T.reinterpret("int8x16" if self.kind == "sdot" else "uint8x16", x),
                T.reinterpret("int8x16", weight),
                dtype="int32x4",
            )
        if self.kind == "pairs":
            pairs = T.reinterpret(f"int16x{2 * lanes}", x)
            product = T.call_llvm_pure_intrin(
                _MULTIPLY_PAIRS[lanes], pairs, weight, dtype=f"int32x{lanes}"
            )
            return total + product
        return total + x * weight


BFLOAT16 = Product(2, "uint16", "int32", "float32", "bf16")
BFDOT = Product(2, "uint16", "int32", "float32", "bfdot")
BFMMLA = Product(4, "uint16", "int32", "float32", "bfmmla")
VNNI = Product(4, "uint8", "int32", "int32", "vnni")
USDOT = Product(4, "uint8", "int32", "int32", "usdot")
USMMLA = Product(8, "uint8", "int32", "int32", "usmmla")
SDOT = Product(4, "uint8", "int32", "int32", "sdot", shift=128)
PAIRS = Product(2, "int16", "int8", "int32", "pairs")
PLAIN = Product(1, "uint8", "int8", "int32", "plain")
PRODUCTS = (BFLOAT16, BFDOT, BFMMLA, VNNI, USDOT, USMMLA, SDOT, PAIRS, PLAIN)

_MULTIPLY_PAIRS = {
    4: "llvm.x86.sse2.pmadd.wd",
    8: "llvm.x86.avx2.pmadd.wd",
    16: "llvm.x86.avx512.pmaddw.d.512",
}


def to_bfloat16(value: Expr, lanes: int) -> Expr:
    """float32 rounded to nearest even, as the bits of bfloat16; 1 or 16 lanes, x86 also between."""
    dtype = "uint16" if lanes == 1 else f"uint16x{lanes}"
    return T.call_extern(dtype, f"bsc_to_bf16_{lanes}", value)


def bfloat16_words(pair: Sequence[Expr], lanes: int) -> Expr:
    """One float32 vector or two as words of bfloat16, the first in the low halves."""
    unsigned = _vector("uint32", lanes)
    word, *high = (T.cast(to_bfloat16(value, lanes), unsigned) for value in pair)
    for value in high:
        word = T.bitwise_or(word, T.shift_left(value, emit.splat(T.uint32(16), lanes)))
    return T.reinterpret(_vector("int32", lanes), word)


def rounded_words(value: Expr) -> Expr:
    """16 float32 rounded to nearest even, as int32, below which is all that is out of range.

    Unlike an addition it is never merged with the product that it rounds.
    """
    rest = [emit.splat(T.int32(0), 16), T.int16(-1), T.int32(4)]  # no lane masked, usual rounding
    name = "llvm.x86.avx512.mask.cvtps2dq.512"
    return T.call_llvm_pure_intrin(name, value, *rest, dtype="int32x16")


def clipped_bytes(words: Sequence[Expr]) -> Expr:
    """Four vectors of 16 int32, one after the other, as 64 numbers clipped to uint8.

    The instructions halve 128 bits of both operands side by side, so that words come out four
    apart.
    """
    low, high = (
        T.bind(T.call_llvm_pure_intrin("llvm.x86.avx512.packssdw.512", *pair, dtype="int16x32"))
        for pair in (words[:2], words[2:])
    )
    mixed = T.call_llvm_pure_intrin("llvm.x86.avx512.packuswb.512", low, high, dtype="uint8x64")
    order = [tirx.IntImm("int32", word % 4 * 4 + word // 4) for word in range(16)]
    in_words = T.bind(T.reinterpret("int32x16", mixed))
    return T.reinterpret("uint8x64", tirx.Shuffle([in_words], order))


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _dot_bf16(lanes: int) -> str:
    bits, i32, f32, bf16 = (
        32 * lanes,
        f"<{lanes} x i32>",
        f"<{lanes} x float>",
        f"<{2 * lanes} x bfloat>",
    )
    name = f"llvm.x86.avx512bf16.dpbf16ps.{bits}"
    return f"""
declare {f32} @{name}({f32}, {bf16}, {bf16})
define weak {f32} @bsc_dot_bf16_{lanes}({f32} %c, {i32} %a, {i32} %b) alwaysinline {{
  %x = bitcast {i32} %a to {bf16}
  %y = bitcast {i32} %b to {bf16}
  %r = call {f32} @{name}({f32} %c, {bf16} %x, {bf16} %y)
  ret {f32} %r
}}"""


def _to_bf16(lanes: int) -> str:
    f32, bf16, i16 = (
        (kind if lanes == 1 else f"<{lanes} x {kind}>") for kind in ("float", "bfloat", "i16")
    )
    return f"""
define weak {i16} @bsc_to_bf16_{lanes}({f32} %x) alwaysinline {{
  %n = fptrunc {f32} %x to {bf16}
  %r = bitcast {bf16} %n to {i16}
  ret {i16} %r
}}"""


_BFDOT_4 = """
declare <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define weak <4 x float> @bsc_dot_bf16_4(<4 x float> %c, <4 x i32> %a, <4 x i32> %b) alwaysinline {
  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <4 x i32> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float> %c, <8 x bfloat> %x,
                                                             <8 x bfloat> %y)
  ret <4 x float> %r
}"""
_BFMMLA_4 = """
declare <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define weak <4 x float> @bsc_mmla_bf16(<4 x float> %c, <4 x i32> %a, <4 x i32> %b) alwaysinline {
  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <4 x i32> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %r
}"""
_BFMMLA = "\n".join([_BFMMLA_4, _to_bf16(1), _to_bf16(16)]) + "\n"
_BFDOT = "\n".join([_BFDOT_4, _to_bf16(1), _to_bf16(16)]) + "\n"
_BF16 = "\n".join([*map(_dot_bf16, _WIDTHS), *map(_to_bf16, (1, 2, *_WIDTHS))]) + "\n"
