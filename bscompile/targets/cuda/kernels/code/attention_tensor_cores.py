"""Attention's tiles on tensor cores: 16 queries a warp, mma.m16n8k16 with float32 sums.

The scores' registers are those that the second product takes on its left, so powers never go
through shared memory; K is read by ldmatrix as it lies, V by its transposing form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from bscompile.targets.cuda.kernels.code.attention_cuda_cores import share

_WARPS, _ROWS = 4, 16


class TensorCores:
    """See attention.Cores; the constructor takes d, e, the scale and a 16-bit dtype."""

    pad, queries, shared_bytes = 8, _WARPS * _ROWS, 0

    def __init__(
        self, inner: int, outer: int, scale: float, multiplied: str, *, masked: bool, drop_nan: bool
    ) -> None:
        self.held, self._scale, self._drop_nan = multiplied, scale, drop_nan
        self.inner, self.outer = (-(-side // 16) * 16 for side in (inner, outer))
        self.keys = 64 if max(self.inner, self.outer) <= 128 else 32
        self._name = f"bscompile_attention_{multiplied}_{self.inner}_{self.outer}_{masked:d}"
        self._text = _step(self._name, multiplied, self.inner, self.outer, self.keys, masked)

    def begin(self) -> None:
        """Allocate and clear sums."""
        self._sums = T.sblock_alloc_buffer((self.outer // 2,), "float32", scope="local")
        self._top, self._total = (
            T.sblock_alloc_buffer((2,), "float32", scope="local") for _ in range(2)
        )
        with T.unroll(self.outer // 2) as i:
            T.buffer_store(self._sums, T.float32(0), [i])
        with T.unroll(2) as half:
            T.buffer_store(self._top, T.float32(-math.inf), [half])
            T.buffer_store(self._total, T.float32(0), [half])

    def step(self, tiles: tuple[Any, Any, Any], mask: Any, left: Any, thread: Any) -> None:
        """Multiply one tile of keys; ``left`` of them are there."""
        qs, ks, vs = tiles
        line = T.floordiv(thread, 32) * _ROWS
        T.evaluate(
            T.cuda.func_call(
                self._name,
                *(T.address_of(buffer[0]) for buffer in (self._sums, self._top, self._total)),
                # Not address_of: TVM would not see that the tiles are read, and overlay them.
                qs.access_ptr("r", offset=line * (self.inner + self.pad)),
                ks.access_ptr("r"),
                vs.access_ptr("r"),
                *([] if mask is None else [mask.access_ptr("r", offset=line * (self.keys + 1))]),
                left,
                T.float32(self._scale),
                source_code=self._text,
            )
        )

    def finish(self, thread: Any, store: Callable[[Any, Any, Any], None]) -> None:
        """Give store(query of the tile, e, value) every result of this thread."""
        line = T.floordiv(thread, 32) * _ROWS + T.floordiv(T.floormod(thread, 32), 4)
        for half in range(2):
            for distance in (1, 2):
                other = T.tvm_warp_shuffle_xor(
                    T.tvm_warp_activemask(), self._total[half], distance, 32, 32
                )
                T.buffer_store(self._total, self._total[half] + other, [half])
            for piece in range(self.outer // 8):
                for i in range(2):
                    whole = self._sums[4 * piece + 2 * half + i]
                    value = share(whole, self._total[half], self._drop_nan)
                    store(line + 8 * half, 8 * piece + 2 * T.floormod(thread, 4) + i, value)


def _instructions(name: str, short: str) -> str:
    """Functions of one instruction each; ``short`` is PTX's name of the dtype."""
    return f"""
__forceinline__ __device__ void {name}_load(unsigned* to, const void* from) {{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"((unsigned)__cvta_generic_to_shared(from)));
}}
__forceinline__ __device__ void {name}_turn(unsigned* to, const void* from) {{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"((unsigned)__cvta_generic_to_shared(from)));
}}
__forceinline__ __device__ void {name}_mma(float* c, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{short}.{short}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%10, %11, %12, %13}};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
        "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}}
__forceinline__ __device__ unsigned {name}_pack(float low, float high) {{
  unsigned pair;
  asm volatile("cvt.rn.{short}x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}}"""


def _powers(keys: int, added: str) -> str:
    """The scores s become powers; the row's largest score and sum go on from tile to tile."""
    return f"""  float now[2] = {{top[0], top[1]}}, base[2], shrink[2];
  #pragma unroll
  for (int n = 0; n < {keys // 8}; n++)
    #pragma unroll
    for (int i = 0; i < 4; i++) {{
      const int at = 8 * n + column + i % 2;
      s[n][i] = at < left ? s[n][i] * scale{added} : lowest;
      now[i / 2] = fmaxf(now[i / 2], s[n][i]);
    }}
  #pragma unroll
  for (int half = 0; half < 2; half++) {{
    now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffff, now[half], 1));
    now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffff, now[half], 2));
    base[half] = now[half] == lowest ? 0.0f : now[half];
    shrink[half] = __expf(top[half] - base[half]);
    top[half] = now[half];
    total[half] *= shrink[half];
  }}
  #pragma unroll
  for (int n = 0; n < {keys // 8}; n++)
    #pragma unroll
    for (int i = 0; i < 4; i++) {{
      s[n][i] = __expf(s[n][i] - base[i / 2]);
      total[i / 2] += s[n][i];
    }}"""


def _step(name: str, dtype: str, inner: int, outer: int, keys: int, masked: bool) -> str:
    """The CUDA function of one warp and one tile of keys."""
    short, kind = ("bf16", "nv_bfloat16") if dtype == "bfloat16" else ("f16", "half")
    pads, mask_row = TensorCores.pad, keys + 1
    mask = "const float* mask, " if masked else ""
    added = f" + mask[(row + 8 * (i / 2)) * {mask_row} + at]" if masked else ""
    return f"""{_instructions(name, short)}
__forceinline__ __device__ void {name}(float* sums, float* top, float* total, const void* q_tile,
    const void* k_tile, const void* v_tile, {mask}int left, float scale) {{
  const {kind} *q = (const {kind}*)q_tile, *k = (const {kind}*)k_tile, *v = (const {kind}*)v_tile;
  const int lane = threadIdx.x % 32, row = lane / 4, column = 2 * (lane % 4);
  const float lowest = __int_as_float(0xff800000);
  float s[{keys // 8}][4];
  #pragma unroll
  for (int n = 0; n < {keys // 8}; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
  #pragma unroll
  for (int d = 0; d < {inner}; d += 16) {{
    unsigned a[4], b[4];
    {name}_load(a, q + lane % 16 * {inner + pads} + d + lane / 16 * 8);
    #pragma unroll
    for (int n = 0; n < {keys}; n += 16) {{
      {name}_load(b, k + (n + lane % 8 + lane / 16 * 8) * {inner + pads} + d + lane / 8 % 2 * 8);
      {name}_mma(s[n / 8], a, b);
      {name}_mma(s[n / 8 + 1], a, b + 2);
    }}
  }}
{_powers(keys, added)}
  #pragma unroll
  for (int n = 0; n < {outer // 2}; n++) sums[n] *= shrink[n / 2 % 2];
  #pragma unroll
  for (int t = 0; t < {keys}; t += 16) {{
    unsigned a[4], b[4];
    #pragma unroll
    for (int i = 0; i < 4; i++)
      a[i] = {name}_pack(s[t / 8 + i / 2][i % 2 * 2], s[t / 8 + i / 2][i % 2 * 2 + 1]);
    #pragma unroll
    for (int e = 0; e < {outer}; e += 16) {{
      {name}_turn(b, v + (t + lane % 16) * {outer + pads} + e + lane / 16 * 8);
      {name}_mma(sums + e / 2, a, b);
      {name}_mma(sums + e / 2 + 4, a, b + 2);
    }}
  }}
}}
"""
