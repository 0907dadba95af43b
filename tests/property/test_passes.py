"""Random small graphs keep their meaning through the whole pipeline."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bscompile.importer import load_model
from bscompile.passes import pipeline
from tests.passes.helpers import blocky, check_equal, dense, keep_form, model_from

ROWS = 3


class Builder:
    """A graph in text that grows by one value at a time; every value is [rows, columns]."""

    def __init__(self, symbolic):
        self.rows = "N" if symbolic else ROWS
        self.lines, self.weights = [], {}
        self.values = [("x", 8)]

    def name(self, prefix):
        return f"{prefix}{len(self.lines)}_{len(self.weights)}"

    def weight(self, shape, blocks, seed):
        name = self.name("w")
        self.weights[name] = blocky(shape, (2, 4), seed=seed) if blocks else dense(*shape)
        return name

    def constant(self, array):
        name = self.name("c")
        self.weights[name] = array
        return name

    def add(self, expression, columns):
        name = self.name("v")
        self.lines.append(f"{name} = {expression}")
        self.values.append((name, columns))


@st.composite
def graphs(draw):
    builder = Builder(draw(st.booleans()))
    for _ in range(draw(st.integers(1, 8))):
        x, columns = draw(st.sampled_from(builder.values))
        kind = draw(st.sampled_from(
            ["matmul", "gemm", "left", "bias", "relu", "gelu", "silu", "sum", "turn", "scale"]
        ))  # fmt: skip
        out = draw(st.sampled_from([4, 7, 8, 12]))
        blocks, seed = draw(st.booleans()), draw(st.integers(0, 3))
        if kind == "matmul":
            w = builder.weight((columns, out), blocks, seed)
            builder.add(f"MatMul({x}, {w})", out)
        elif kind == "gemm":
            w = builder.weight((out, columns), blocks, seed)
            b = builder.constant(dense(out))
            alpha = draw(st.sampled_from(["1.0", "0.5"]))
            builder.add(f"Gemm<transB: int = 1, alpha: float = {alpha}>({x}, {w}, {b})", out)
        elif kind == "left":
            turned = builder.name("t")
            builder.lines.append(f"{turned} = Transpose<perm: ints = [1, 0]>({x})")
            w = builder.weight((out, columns), blocks, seed)
            product = builder.name("p")
            builder.lines.append(f"{product} = MatMul({w}, {turned})")
            builder.add(f"Transpose<perm: ints = [1, 0]>({product})", out)
        elif kind == "bias":
            builder.add(f"Add({builder.constant(dense(columns))}, {x})", columns)
        elif kind == "scale":
            builder.add(f"Mul({x}, {builder.constant(np.float32(0.5))})", columns)
        elif kind == "relu":
            builder.add(f"Relu({x})", columns)
        elif kind == "gelu":
            builder.add(f"Gelu({x})", columns)
        elif kind == "silu":
            s = builder.name("s")
            builder.lines.append(f"{s} = Sigmoid({x})")
            builder.add(f"Mul({s}, {x})", columns)
        elif kind == "turn":
            turned = builder.name("t")
            builder.lines.append(f"{turned} = Transpose<perm: ints = [1, 0]>({x})")
            builder.add(f"Transpose<perm: ints = [1, 0]>({turned})", columns)
        else:
            mates = [name for name, c in builder.values if c == columns]
            builder.add(f"Add({x}, {draw(st.sampled_from(mates))})", columns)
    last, columns = builder.values[-1]
    outputs = [(last, columns)]
    if len(builder.values) > 2 and draw(st.booleans()):
        outputs.append(draw(st.sampled_from(builder.values[1:-1])))
    declared = ", ".join(f"float[{builder.rows}, {c}] {name}" for name, c in outputs)
    body = "\n".join(builder.lines)
    text = f"g (float[{builder.rows}, 8] x) => ({declared}) {{\n{body}\n}}"
    return model_from(text, builder.weights)


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(graphs())
def test_random_graphs_keep_their_meaning_after_every_pass(proto):
    feeds = {"x": dense(ROWS, 8)}
    pipeline.run(
        load_model(proto),
        pipeline.pipeline(keep_form),
        dump=lambda number, name, model: check_equal(proto, model, feeds, k=256),
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_builder_makes_graphs_that_run(seed):
    """The strategy's pieces are sound by themselves, so a failure above is the pipeline's."""
    builder = Builder(symbolic=bool(seed % 2))
    w = builder.weight((8, 12), True, seed)
    builder.add(f"MatMul(x, {w})", 12)
    proto = model_from(
        f"g (float[{builder.rows}, 8] x) => (float[{builder.rows}, 12] {builder.values[-1][0]}) "
        f"{{ {builder.lines[0]} }}",
        builder.weights,
    )
    check_equal(proto, load_model(proto), {"x": dense(ROWS, 8)})
