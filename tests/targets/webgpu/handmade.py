"""A small artifact for WebGPU, its shaders written as TVM writes them, made without TVM.

count [1], x [2, 3] -> y = relu(x w) [2, 4], indices [70000]

The second output needs more workgroups than one axis takes; its first element is ``count``.
"""

from __future__ import annotations

import numpy as np

from bscompile.artifact import Manifest, ParamSpec, TensorSpec, write_artifact
from bscompile.artifact.launches import MEMBER as LAUNCHES
from bscompile.artifact.launches import Launch, Launches
from bscompile.artifact.program import MEMBER as PROGRAM
from bscompile.artifact.program import Buffer, Program, Step, Storage
from tests.handmade import REPORT

LONG = 70000
WEIGHT = (np.arange(12).reshape(3, 4) - 5).astype(np.float16)

_HEAD = """
struct PODArgs {{ packGridDimX: u32 }}
@group(0) @binding({binding}) var<uniform> podArgs : PODArgs;
@compute @workgroup_size({threads}, 1, 1)
fn {name}(
  @builtin(workgroup_id) blockIdx : vec3<u32>,
  @builtin(num_workgroups) gridDim : vec3<u32>,
  @builtin(local_invocation_id) threadIdx : vec3<u32>
) {{
  if (blockIdx.z * gridDim.x + blockIdx.x > podArgs.packGridDimX) {{ return; }}
  let v__1 : i32 = i32(blockIdx.z * gridDim.x + blockIdx.x);
"""

KERNELS = (
    "// Function: product_kernel\n"
    "@group(0) @binding(0) var<storage, read> w : array<f32>;\n"
    "@group(0) @binding(1) var<storage, read> x : array<f32>;\n"
    "@group(0) @binding(2) var<storage, read_write> y : array<f32>;\n"
    + _HEAD.format(name="product_kernel", binding=3, threads=4)
    + "  let n = i32(threadIdx.x);\n"
    "  var sum = 0f;\n"
    "  for (var k = 0; k < 3; k++) { sum = sum + x[v__1 * 3 + k] * w[k * 4 + n]; }\n"
    "  y[v__1 * 4 + n] = sum;\n}\n"
    "// Function: relu_kernel\n"
    "@group(0) @binding(0) var<storage, read> x : array<f32>;\n"
    "@group(0) @binding(1) var<storage, read_write> y : array<f32>;\n"
    + _HEAD.format(name="relu_kernel", binding=2, threads=8)
    + "  y[i32(threadIdx.x)] = max(x[i32(threadIdx.x)], 0f);\n}\n"
    "// Function: indices_kernel\n"
    "@group(0) @binding(0) var<storage, read> count : array<i32>;\n"
    "@group(0) @binding(1) var<storage, read_write> z : array<i32>;\n"
    + _HEAD.format(name="indices_kernel", binding=2, threads=1)
    + "  z[v__1] = select(v__1, count[0], v__1 == 0);\n}\n"
)

_PROGRAM = Program(
    storages=(
        *(Storage(4, "input"), Storage(24, "input"), Storage(48, "param")),
        *(Storage(32, "scratch"), Storage(32, "scratch"), Storage(4 * LONG, "scratch")),
    ),
    buffers=(
        *(Buffer(0, 0, (1,), "int32"), Buffer(1, 0, (2, 3), "float32")),
        *(Buffer(2, 0, (3, 4), "float32"), Buffer(3, 0, (2, 4), "float32")),
        *(Buffer(3, 0, (8,), "float32"), Buffer(4, 0, (8,), "float32")),
        *(Buffer(4, 0, (2, 4), "float32"), Buffer(5, 0, (LONG,), "int32")),
    ),
    steps=(Step("product", (1, 2, 3)), Step("relu", (4, 5)), Step("indices", (0, 7))),
    outputs=(6, 7),
)

_LAUNCHES = Launches(
    {
        "product": (Launch("product_kernel", (1, 0, 2), (2, 1, 1), (4, 1, 1)),),
        "relu": (Launch("relu_kernel", (0, 1), (1, 1, 1), (8, 1, 1)),),
        "indices": (Launch("indices_kernel", (0, 1), (LONG, 1, 1), (1, 1, 1)),),
    }
)

MANIFEST = Manifest(
    name="handmade",
    target="webgpu",
    isa="wgsl",
    features=(),
    threads=1,
    inputs=(TensorSpec("count", (1,), "int32"), TensorSpec("x", (2, 3), "float32")),
    outputs=(TensorSpec("y", (2, 4), "float32"), TensorSpec("indices", (LONG,), "int32")),
    params=(ParamSpec("w", (3, 4), "float16", "float32"),),
    loader="webgpu",
)

MEMBERS = {
    PROGRAM: _PROGRAM.to_json().encode(),
    LAUNCHES: _LAUNCHES.to_json().encode(),
    "code/kernels.wgsl": KERNELS.encode(),
}


def write_handmade(path, *, manifest=MANIFEST, weight=WEIGHT, members=()):
    """Write it; ``members`` replaces code by name."""
    return write_artifact(path, manifest, {**MEMBERS, **dict(members)}, {"w": weight}, REPORT)


def expected(inputs, weight=WEIGHT):
    """What it answers."""
    indices = np.arange(LONG, dtype=np.int32)
    indices[0] = inputs["count"][0]
    return {"y": np.maximum(inputs["x"] @ weight.astype(np.float32), 0), "indices": indices}


def some_inputs():
    """Inputs of which every element matters."""
    return {
        "count": np.array([-7], np.int32),
        "x": np.array([[1, 2, 3], [-4, 0.5, 6]], np.float32),
    }
