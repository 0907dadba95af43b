"""The CPU's generated loops and schedules against onnxruntime: odd sizes, symbolic sizes."""

import ml_dtypes
import numpy as np
import pytest
import tvm

from bscompile.targets.cpu.build import compile_kernel
from bscompile.targets.cpu.code import attention
from bscompile.targets.cpu.code.attention_narrow import BFloat16Nest
from tests.targets import attention_cases, narrow_running
from tests.targets.lowering_helpers import (
    Compiled,
    assert_equal_to_onnxruntime,
    context,
    model,
)

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def functions(compiled):
    """Names of the functions that the virtual machine calls."""
    return compiled.executable.stats()


ATTENTION = """g (float[{b},{s},{w}] q, float[{b},{t},{w}] k, float[{b},{t},{w}] v,
        float[{b},1,1,{t}] mask) => (float[{b},{s},{w}] y) {{
    split = Constant<value_ints: ints = [0, 0, 3, {d}]>()
    join = Constant<value_ints: ints = [0, 0, {w}]>()
    factor = Constant<value_float: float = 0.3>()
    q4 = Reshape(q, split)  qh = Transpose<perm: ints = [0, 2, 1, 3]>(q4)
    k4 = Reshape(k, split)  kh = Transpose<perm: ints = [0, 2, 3, 1]>(k4)
    v4 = Reshape(v, split)  vh = Transpose<perm: ints = [0, 2, 1, 3]>(v4)
    raw = MatMul(qh, kh)  scaled = Mul(raw, factor)  scores = Add(scaled, mask)
    p = Softmax(scores)  o = MatMul(p, vh)
    ot = Transpose<perm: ints = [0, 2, 1, 3]>(o)  y = Reshape(ot, join)
}}"""


def attention_feeds(b, s, t, w):
    mask = np.where(RNG.random((b, 1, 1, t)) < 0.3, -1e4, 0.0).astype(np.float32)
    return {"q": normal(b, s, w), "k": normal(b, t, w), "v": normal(b, t, w), "mask": mask}


@pytest.mark.parametrize(("s", "t", "d"), [(17, 17, 16), (1, 33, 8), (9, 1, 13), (24, 32, 64)])
def test_attention_of_static_sizes(s, t, d):
    proto = model(ATTENTION.format(b=2, s=s, t=t, d=d, w=3 * d))
    compiled = assert_equal_to_onnxruntime(proto, attention_feeds(2, s, t, 3 * d))
    assert "attention" in functions(compiled)


def test_attention_of_symbolic_sizes():
    proto = model(ATTENTION.format(b="b", s="s", t="t", d=20, w=60))
    feeds = [attention_feeds(b, s, t, 60) for b, s, t in [(1, 1, 1), (2, 31, 65), (3, 8, 16)]]
    compiled = assert_equal_to_onnxruntime(proto, *feeds)
    assert "attention" in functions(compiled)


def test_attention_with_a_mask_of_more_axes_than_its_scores():
    proto = model("""g (float[2,5,8] q, float[2,8,5] k, float[2,5,8] v, float[3,1,5,5] mask)
        => (float[3,2,5,8] y) {
        raw = MatMul(q, k)  s = Add(raw, mask)  p = Softmax(s)  y = MatMul(p, v) }""")
    feeds = {"q": normal(2, 5, 8), "k": normal(2, 8, 5), "v": normal(2, 5, 8)}
    assert_equal_to_onnxruntime(proto, feeds | {"mask": normal(3, 1, 5, 5)})


def test_attention_with_one_number_added_to_all_scores():
    proto = model("""g (float[2,5,8] q, float[2,8,5] k, float[2,5,8] v) => (float[2,5,8] y) {
        c = Constant<value_float: float = 0.5>()
        raw = MatMul(q, k)  s = Add(raw, c)  p = Softmax(s)  y = MatMul(p, v) }""")
    feeds = {"q": normal(2, 5, 8), "k": normal(2, 8, 5), "v": normal(2, 5, 8)}
    assert_equal_to_onnxruntime(proto, feeds)


def test_attention_whose_weights_are_also_an_output_keeps_them():
    proto = model("""g (float[2,5,8] q, float[2,8,5] k, float[2,5,8] v)
        => (float[2,5,8] y, float[2,5,5] p) {
        s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }""")
    feeds = {"q": normal(2, 5, 8), "k": normal(2, 8, 5), "v": normal(2, 5, 8)}
    compiled = assert_equal_to_onnxruntime(proto, feeds)
    assert "attention" not in functions(compiled)


def test_a_fully_masked_row_is_uniform():
    proto = model("""g (float[1,2,8] q, float[1,8,5] k, float[1,5,8] v, float[1,2,5] mask)
        => (float[1,2,8] y) {
        s = MatMul(q, k)  m = Add(s, mask)  p = Softmax(m)  y = MatMul(p, v) }""")
    mask = np.zeros((1, 2, 5), np.float32)
    mask[0, 1] = np.finfo(np.float32).min
    feeds = {"q": normal(1, 2, 8), "k": normal(1, 8, 5), "v": normal(1, 5, 8), "mask": mask}
    assert_equal_to_onnxruntime(proto, feeds)


def test_weights_that_are_nan_count_as_nothing_where_the_graph_says_so():
    proto = model("""g (float[b,2,s,8] q, float[b,2,t,8] k, float[b,2,t,8] v, float[b,1,s,t] mask)
        => (float[b,2,s,8] y) {
        turned = Transpose<perm: ints = [0, 1, 3, 2]>(k)
        raw = MatMul(q, turned)  m = Add(raw, mask)  p = Softmax(m)  none = IsNaN(p)
        zero = Constant<value_float: float = 0.0>()
        w = Where(none, zero, p)  y = MatMul(w, v) }""")
    feeds = []
    for b, s, t in [(2, 9, 33), (1, 2, 5), (1, 1, 1)]:
        mask = np.zeros((b, 1, s, t), np.float32)
        mask[0, 0, 0] = -np.inf  # no key is left for this query
        shapes = {"q": s, "k": t, "v": t}
        feeds.append({n: normal(b, 2, size, 8) for n, size in shapes.items()} | {"mask": mask})
    compiled = assert_equal_to_onnxruntime(proto, *feeds)
    assert "attention" in functions(compiled)
    assert "softmax" not in functions(compiled)


def test_keys_that_are_turned_behind_merged_heads():
    proto = model("""g (float[b,2,s,8] q, float[b,2,t,8] k, float[b,2,t,8] v)
        => (float[b,2,s,8] y) {
        all = Shape(k)  one = Constant<value_ints: ints = [1]>()
        two = Constant<value_ints: ints = [2]>()  four = Constant<value_ints: ints = [4]>()
        three = Constant<value_ints: ints = [3]>()  nothing = Constant<value_ints: ints = [0]>()
        rest = Constant<value_ints: ints = [-1]>()
        lead = Slice(all, nothing, two)  t = Slice(all, two, three)  d = Slice(all, three, four)
        flat = Concat<axis: int = 0>(rest, t, d)  merged = Reshape(k, flat)
        turned = Transpose<perm: ints = [0, 2, 1]>(merged)
        back = Concat<axis: int = 0>(lead, d, t)  columns = Reshape(turned, back)
        s = MatMul(q, columns)  p = Softmax(s)  y = MatMul(p, v) }""")
    feeds = [
        {n: normal(b, 2, size, 8) for n, size in {"q": s, "k": t, "v": t}.items()}
        for b, s, t in [(2, 9, 33), (1, 1, 1)]
    ]
    compiled = assert_equal_to_onnxruntime(proto, *feeds)
    assert "attention" in functions(compiled)


@pytest.mark.parametrize("case", attention_cases.CASES)
def test_attention_in_bfloat16(case):
    """Inputs are rounded in the reference too; what is left are the rounded weights of V."""
    tensors, mask, out, arrays = attention_cases.operands(case, np.random.default_rng(0))
    generate = attention.for_machine(narrow_machine(), BFloat16Nest)
    function = generate(*tensors, mask, out, scale=0.3, drop_nan="without" in case)
    run = compile_kernel(function, narrow_machine()).jit()["kernel"]
    want = attention_cases.wanted(tensors, mask, arrays, 0.3, ml_dtypes.bfloat16)
    want = want.transpose(["bhse".index(axis) for axis in out.axes])
    held = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays]
    got = tvm.runtime.tensor(np.full(want.shape, np.nan, np.float32))
    run(*held, got)
    largest = np.abs(arrays[2]).max()  # the rounding of each weight is at most eps / 2 of it
    assert np.abs(got.numpy() - want).max() <= 2.0**-8 * largest


def narrow_machine():
    machine = narrow_running.machine("avx512", ("avx512_bf16",))
    if machine is None:
        pytest.skip("this CPU lacks avx512_bf16")
    return machine


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 33, 197])
def test_softmax_of_odd_widths(width):
    proto = model(f"g (float[3,4,{width}] x) => (float[3,4,{width}] y) {{ y = Softmax(x) }}")
    assert_equal_to_onnxruntime(proto, {"x": 10 * normal(3, 4, width)})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_along_other_axes(axis):
    proto = model(
        f"g (float[3,n,5] x) => (float[3,n,5] y) {{ y = Softmax<axis: int = {axis}>(x) }}"
    )
    assert_equal_to_onnxruntime(proto, {"x": normal(3, 7, 5)}, {"x": normal(3, 1, 5)})


def test_layer_normalisation_of_symbolic_rows():
    proto = model("""g (float[b,s,37] x, float[37] gamma, float[37] beta) => (float[b,s,37] y) {
        y = LayerNormalization<epsilon: float = 1e-5>(x, gamma, beta) }""")
    shared = {"gamma": normal(37), "beta": normal(37)}
    feeds = [{"x": 3 * normal(b, s, 37) + 5, **shared} for b, s in [(1, 1), (4, 65)]]
    compiled = assert_equal_to_onnxruntime(proto, *feeds)
    assert "normalise" in functions(compiled)


@pytest.mark.parametrize("width", [1, 16, 100])
def test_layer_normalisation_of_odd_widths(width):
    proto = model(f"""g (float[5,{width}] x, float[{width}] gamma) => (float[5,{width}] y) {{
        y = LayerNormalization(x, gamma) }}""")
    assert_equal_to_onnxruntime(proto, {"x": normal(5, width), "gamma": normal(width)})


@pytest.mark.parametrize("op", ["Gelu", "Sigmoid", "Tanh", "Erf", "Exp", "Relu", "Softplus"])
def test_activations_from_end_to_end_of_the_range(op):
    proto = model(f"g (float[n,33] x) => (float[n,33] y) {{ y = {op}(x) }}")
    x = np.linspace(-20, 20, 33 * 7, dtype=np.float32).reshape(7, 33)
    assert_equal_to_onnxruntime(proto, {"x": x}, {"x": x[-1:]})


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (16, 32), (5, 100)])
def test_broadcast_and_transpose(shape):
    a, b = shape
    proto = model(f"""g (float[{a},{b},7] x, float[{b},1] y, float[7] z) => (float[7,{a},{b}] o) {{
        p = Add(x, y)  q = Mul(p, z)  o = Transpose<perm: ints = [2, 0, 1]>(q) }}""")
    assert_equal_to_onnxruntime(proto, {"x": normal(a, b, 7), "y": normal(b, 1), "z": normal(7)})


@pytest.mark.parametrize(
    "call",
    [
        "MatMul(x, y)",
        "Einsum<equation: string = 'bij,bjk->bik'>(x, y)".replace("'", '"'),
    ],
)
def test_matmul_of_two_inputs(call):
    proto = model(f"g (float[b,m,19] x, float[b,19,21] y) => (float[b,m,21] z) {{ z = {call} }}")
    feeds = [{"x": normal(b, m, 19), "y": normal(b, 19, 21)} for b, m in [(1, 1), (3, 17)]]
    assert_equal_to_onnxruntime(proto, *feeds)


@pytest.mark.parametrize("columns", [1, 15, 16, 33, 70])
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (7, 16), (6, 33)])
def test_matmul_of_odd_sizes(rows, inner, columns):
    proto = model(
        f"g (float[2,1,{rows},{inner}] x, float[3,{inner},{columns}] y) "
        f"=> (float[2,3,{rows},{columns}] z) {{ z = MatMul(x, y) }}"
    )
    feeds = {"x": normal(2, 1, rows, inner), "y": normal(3, inner, columns)}
    compiled = assert_equal_to_onnxruntime(proto, feeds)
    assert "matmul" in functions(compiled)


def test_matmul_of_symbolic_sizes_and_a_turned_left_side():
    proto = model("""g (float[b,k,i] x, float[b,k,j] y) => (float[b,i,j] z) {
        t = Transpose<perm: ints = [0, 2, 1]>(x)  z = MatMul(t, y) }""")
    sizes = [(1, 1, 1, 1), (2, 5, 7, 33), (3, 16, 12, 50)]
    feeds = [{"x": normal(b, k, i), "y": normal(b, k, j)} for b, k, i, j in sizes]
    assert_equal_to_onnxruntime(proto, *feeds)


@pytest.mark.parametrize(
    "call",
    [
        "MaxPool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]>",
        "AveragePool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>",
        "GlobalAveragePool",
    ],
)
def test_pooling(call):
    proto = model(f"g (float[n,5,13,11] x) => (float[n,5,h,w] y) {{ y = {call}(x) }}")
    assert_equal_to_onnxruntime(proto, {"x": normal(2, 5, 13, 11)}, {"x": normal(1, 5, 13, 11)})


def test_grouped_convolution():
    proto = model("""g (float[n,6,9,9] x, float[4,3,3,3] w, float[4] b) => (float[n,4,h,w] y) {
        y = Conv<group: int = 2, pads: ints = [1, 1, 1, 1], kernel_shape: ints = [3, 3]>(x, w, b)
    }""")
    feeds = {"x": normal(2, 6, 9, 9), "w": normal(4, 3, 3, 3), "b": normal(4)}
    assert_equal_to_onnxruntime(proto, feeds)


def test_reductions():
    proto = model("""g (float[n,6,33] x) => (float[n,1,33] a, float[n] b, float[n,6] c) {
        one = Constant<value_ints: ints = [1]>()  two = Constant<value_ints: ints = [-1]>()
        both = Constant<value_ints: ints = [1, 2]>()
        a = ReduceMean(x, one)  b = ReduceSum<keepdims: int = 0>(x, both)
        c = ReduceMax<keepdims: int = 0>(x, two) }""")
    compiled = Compiled(proto)
    for n in (1, 5):
        assert_equal_to_onnxruntime(proto, {"x": normal(n, 6, 33)}, compiled=compiled)


def test_every_part_of_a_split_is_copied_in_vectors():
    from tvm.script import tirx as T

    from bscompile.targets.cpu.schedules import elementwise

    @T.prim_func(s_tir=True)
    def split(
        x: T.Buffer((4, 37), "float32"),
        a: T.Buffer((4, 16), "float32"),
        b: T.Buffer((4, 21), "float32"),
    ):
        for i, j in T.grid(4, 16):
            with T.sblock("a"):
                u, v = T.axis.remap("SS", [i, j])
                a[u, v] = x[u, v]
        for i, j in T.grid(4, 21):
            with T.sblock("b"):
                u, v = T.axis.remap("SS", [i, j])
                b[u, v] = x[u, v + 16]

    text = elementwise.apply(split, context().hardware).script()
    assert text.count("T.vectorized") == 2


@pytest.mark.parametrize("sizes", [[1, 16, 20], [5, 31, 1]])
def test_split_of_odd_sizes(sizes):
    a, b, c = sizes
    proto = model(f"""g (float[n,37] x) => (float[n,{a}] a, float[n,{b}] b, float[n,{c}] c) {{
        sizes = Constant<value_ints: ints = {sizes}>()
        a, b, c = Split<axis: int = 1>(x, sizes) }}""")
    assert_equal_to_onnxruntime(proto, {"x": normal(7, 37)}, {"x": normal(1, 37)})
