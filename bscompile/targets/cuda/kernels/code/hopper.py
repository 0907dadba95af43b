"""Hopper's instructions as CUDA functions that generated kernels call: mbarriers, TMA, wgmma.

Each is a few lines of inline assembly. Compiled for sm_90a they are the instructions themselves;
compiled as portable PTX, which any later GPU of the data-centre kind takes, wgmma becomes mma.sync
on the same operands and the same sums, and what only wgmma needs becomes nothing.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

#: Defined by nvcc and NVRTC for sm_90a alone.
_HOPPER = "__CUDA_ARCH_FEAT_SM90_ALL"

_SOURCES = {
    # Barriers in shared memory; all but wait take a barrier of this block.
    "barrier_init": """(void* at, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
      :: "r"((unsigned)__cvta_generic_to_shared(at)), "r"(count));
}""",
    "barriers_ready": """() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}""",
    "expect": """(void* at, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
      :: "r"((unsigned)__cvta_generic_to_shared(at)), "r"(bytes) : "memory");
}""",
    "arrive": """(void* at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
      :: "r"((unsigned)__cvta_generic_to_shared(at)) : "memory");
}""",
    "arrive_at": """(void* at, unsigned rank) {
  unsigned there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there) : "r"((unsigned)__cvta_generic_to_shared(at)), "r"(rank));
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];"
      :: "r"(there) : "memory");
}""",
    "wait": """(void* at, unsigned parity) {
  unsigned address = (unsigned)__cvta_generic_to_shared(at), done = 0;
  while (!done)
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                 "selp.u32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(address), "r"(parity) : "memory");
}""",
    # Copies that end at a barrier's count of bytes.
    "load_tile": """(void* to, unsigned long long map, int column, int row, void* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(map), "r"(column), "r"(row),
         "r"((unsigned)__cvta_generic_to_shared(barrier)) : "memory");
}""",
    "load_tile_everywhere": """(void* to, unsigned long long map, int column, int row,
    void* barrier, unsigned ranks) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(map), "r"(column), "r"(row),
         "r"((unsigned)__cvta_generic_to_shared(barrier)), "h"((unsigned short)ranks) : "memory");
}""",
    "load_bytes": """(void* to, const void* from, unsigned bytes, void* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1], %2, [%3];"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes),
         "r"((unsigned)__cvta_generic_to_shared(barrier)) : "memory");
}""",
    "load_bytes_everywhere": """(void* to, const void* from, unsigned bytes, void* barrier,
    unsigned ranks) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1], %2, [%3], %4;"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes),
         "r"((unsigned)__cvta_generic_to_shared(barrier)), "h"((unsigned short)ranks) : "memory");
}""",
    # Four numbers from the same place of another block of the cluster, or of this one.
    "load_from": """(float* to, const void* at, unsigned rank) {
  unsigned there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there) : "r"((unsigned)__cvta_generic_to_shared(at)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "r"(there) : "memory");
}""",
    "prefetch_map": """(unsigned long long map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}""",
    "aligned": """(const void* at) {
  if (__cvta_generic_to_shared(at) % 1024) __trap();  // the launch fails, rather than the sums
}""",
    # Meetings of a block, a cluster, 128 threads.
    "block_sync": """() {
  __syncthreads();
}""",
    "cluster_sync": """() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}""",
    "group_sync": """(int id) {
  asm volatile("bar.sync %0, 128;" :: "r"(id) : "memory");
}""",
}


def call(name: str, *arguments: Any) -> None:
    """Emit a call of one of the functions above."""
    _emit(name, _SOURCES[name], *arguments)


def count_bits(bits: Any) -> Any:
    """How many bits of an int32 are set."""
    return _call("count_bits", "(int bits) {\n  return __popc(bits);\n}", bits, result="int32")


def lowest_bit(bits: Any) -> Any:
    """The place of an int32's lowest bit that is set."""
    return _call("lowest_bit", "(int bits) {\n  return __ffs(bits) - 1;\n}", bits, result="int32")


def same_in_warp(value: Any) -> Any:
    """An int32 that a warp's threads agree on, so that the compiler knows that they do.

    Where it does not, it takes branches for ones that part warps, and serializes wgmma in them.
    """
    body = "(int value) {\n  return __shfl_sync(0xffffffffu, value, 0);\n}"
    return _call("same_in_warp", body, value, result="int32")


def set_registers(count: int, *, more: bool) -> None:
    """Emit setmaxnreg: this warpgroup's registers a thread, from now on."""
    way = "inc" if more else "dec"
    body = f'  asm volatile("setmaxnreg.{way}.sync.aligned.u32 {count};");'
    _emit(f"registers_{way}_{count}", f"() {{\n{_only_here(body)}}}")


def wgmma_fence() -> None:
    """Emit what orders the sums' registers before the next wgmma."""
    body = '  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
    _emit("wgmma_fence", f"() {{\n{_only_here(body)}}}")


def wgmma_commit() -> None:
    """Emit the end of a group of wgmma."""
    body = '  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");'
    _emit("wgmma_commit", f"() {{\n{_only_here(body)}}}")


def wgmma_wait(left: int) -> None:
    """Emit the wait until at most ``left`` groups are not done."""
    body = f'  asm volatile("wgmma.wait_group.sync.aligned {left};" ::: "memory");'
    _emit(f"wgmma_wait_{left}", f"() {{\n{_only_here(body)}}}")


def wgmma(sums: Any, a: Any, b: Any, keep: Any, *, columns: int, dtype: str) -> None:
    """Emit D[64, columns] = keep D + A[64, 16] B[columns, 16]ᵀ by one warpgroup.

    Args:
        sums: Address of the thread's ``columns / 2`` float32 sums.
        a: Matrix descriptor of A, in shared memory, K-major and swizzled.
        b: Of B.
        keep: 0 where the sums begin here, else 1.
        columns: A multiple of 16, at most 256.
        dtype: ``float16`` or ``bfloat16``.
    """
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    _emit(f"wgmma_{columns}_{kind}", _wgmma_source(columns, kind), sums, a, b, keep)


def matrix(at: Any, width: int) -> Any:
    """The descriptor, uint64, of a matrix in shared memory for wgmma: K-major, swizzled by TMA.

    In units of 16 bytes, it holds the first address (bits 0-13) and the stride of eight rows (bits
    32-45); in bits 62-63 the kind of swizzle, by 128, 64 or 32 bytes, which are a row's length.

    Args:
        at: Its first element, aligned to eight rows.
        width: 16-bit elements of a row: 64, 32 or 16.
    """
    body = f"""(const void* at) {{
  unsigned long long address = __cvta_generic_to_shared(at);
  return {swizzle_kind(width)}ull << 62 | {width}ull << 32 | 1ull << 16 | (address >> 4 & 0x3fff);
}}"""
    return _call(f"matrix_{width}", body, at, result="uint64")


def swizzle_kind(width: int) -> int:
    """How descriptors name the swizzle of rows of 64, 32 or 16 elements of 16 bits."""
    return {64: 1, 32: 2, 16: 3}[width]


def _emit(name: str, text: str, *arguments: Any) -> None:
    T.evaluate(_call(name, text, *arguments))


def _call(name: str, text: str, *arguments: Any, result: str = "void") -> Any:
    name = f"bscompile_{name}"
    kind = {"void": "void", "int32": "int", "uint64": "unsigned long long"}[result]
    source = f"__forceinline__ __device__ {kind} {name}{text}\n"
    return T.cuda.func_call(name, *arguments, source_code=source, return_type=result)


def _only_here(body: str, otherwise: str = "") -> str:
    other = f"#else\n{otherwise}\n" if otherwise else ""
    return f"#ifdef {_HOPPER}\n{body}\n{other}#endif\n"


def _wgmma_source(columns: int, kind: str) -> str:
    sums = columns // 2
    registers = ", ".join(f"%{i}" for i in range(sums))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(sums))
    instruction = f"""  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{sums + 2}, 0; "
      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
      "{{{registers}}}, %{sums}, %{sums + 1}, p, 1, 1, 0, 0;}}"
      : {outputs} : "l"(a), "l"(b), "r"(keep));"""
    return (
        "(float* d, unsigned long long a, unsigned long long b, int keep) {\n"
        + _only_here(instruction, _portable(columns, kind))
        + "}"
    )


def _portable(columns: int, kind: str) -> str:
    """The same product by ldmatrix and mma.sync: warp w of the group has rows 16 w to 16 w + 15.

    Descriptors are those of ``matrix``.
    """
    return f"""  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
  auto place = [](unsigned long long matrix, int row, int chunk) {{
    const int swizzle = (int)(matrix >> 62);
    const unsigned bytes = 256u >> swizzle, chunks = (16u >> swizzle) - 1;
    unsigned at = ((unsigned)matrix & 0x3fff) * 16 + ((unsigned)(matrix >> 32) & 0x3fff) * 16 *
        (row / 8) + row % 8 * bytes + chunk * 16;
    return at ^ ((at >> 7 & chunks) << 4);
  }};
  unsigned w[4], x[4];
  if (!keep) for (int i = 0; i < {columns // 2}; i++) d[i] = 0.0f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
      : "r"(place(a, first + lane % 16, lane / 16)));
  #pragma unroll
  for (int i = 0; i < {columns // 16}; i++) {{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
        : "r"(place(b, 16 * i + lane / 16 * 8 + lane % 8, lane / 8 % 2)));
    #pragma unroll
    for (int half = 0; half < 2; half++) {{
      float* s = d + 8 * i + 4 * half;
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
          "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%10, %11, %12, %13}};"
          : "=f"(s[0]), "=f"(s[1]), "=f"(s[2]), "=f"(s[3])
          : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[2 * half]), "r"(x[2 * half + 1]),
            "f"(s[0]), "f"(s[1]), "f"(s[2]), "f"(s[3]));
    }}
  }}"""
