"""wgmma kernels: their instructions and registers, and the faults that the emulator finds."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import asdict, replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import bscompile
from bscompile.compiler import CompileOptions, compile_model
from bscompile.dialect import LinearOp, evaluate
from bscompile.dialect.precision import PRECISIONS, in_precision, kernel_weight
from bscompile.targets.base import problem_of
from bscompile.targets.cuda import TARGET, nvcc
from bscompile.targets.cuda.compile import to_ptx
from bscompile.targets.cuda.hardware import hardware
from bscompile.targets.cuda.kernels.band_shape import BandShape
from bscompile.targets.cuda.kernels.bands import BAND, band_layout, pack_bands
from bscompile.targets.cuda.kernels.packing import expected_steps
from bscompile.targets.cuda.kernels.wgmma import Wgmma, _kept_pieces
from tests.targets.cuda import adapter, emulator
from tests.targets.cuda.conftest import block_sparse
from tests.targets.cuda.test_code import kernels_source
from tests.targets.cuda.test_target import problem
from tests.targets.numeric_suite import Call
from tests.tolerance import assert_close

MACHINE = hardware("sm_90")
SMALL = BandShape(bands=2, rows=16, parts=1, group=64, stages=2, cluster=1)
#: What the cost model picks for large layers, and what else asks for most registers.
LARGE = {
    "one_band": BandShape(1, 256, 2, 32, 4, 2),
    "two_bands": BandShape(2, 256, 1, 64, 4, 4),
    "four_bands": BandShape(4, 128, 1, 64, 4, 2),
    "two_blocks": BandShape(1, 128, 1, 64, 4, 1),
    "narrow_pieces": BandShape(2, 256, 1, 16, 4, 4),
    "shared_tile": BandShape(2, 64, 1, 32, 4, 1, split=4),
}


def kernel_of(weight, shape, m=None, epilogue=("bias",), dtype="bfloat16"):
    """(kernel, op) of a layer in a shape that the cost model may not pick."""
    op = in_precision(LinearOp("layer", weight, epilogue), PRECISIONS[dtype])
    posed = problem_of(op, m, PRECISIONS[dtype])
    template = TARGET.template(f"{posed.form}_wgmma")
    return template.build(posed, kernel_weight(op), asdict(shape), MACHINE), op


# ---------------------------------------------------------------- packing and the cost model


@pytest.mark.parametrize(("bands", "group"), [(1, 64), (2, 32), (4, 16)])
def test_bands_keep_the_matrix_and_nothing_dead(bands, group, rng):
    weight = block_sparse(rng, (200, 264), (16, 16), 0.1)
    packed = dict(pack_bands(weight, bands, group, "float32"))
    unit = band_layout(bands, group).unit(264)
    dense = np.zeros((256 + 64 * bands, 264))
    for row, tile in enumerate(packed["order"]):
        seen = np.zeros(bands, bool)
        for step in range(packed["indptr"][row], packed["indptr"][row + 1]):
            mask, place, count = packed["live"][step]
            assert bin(mask).count("1") == count
            for bit in np.flatnonzero(mask >> np.arange(bands * 64 // group) & 1):
                band, at = divmod(bit, 64 // group)
                seen[band] = True
                rows = tile * bands * BAND + band * BAND + np.arange(BAND)
                columns = packed["starts"][step][at] * unit + np.arange(group)
                dense[np.ix_(rows, columns)] += unswizzled(packed["values"][place])
                place += 1
        assert seen.all(), "a band whose sums nothing begins"
    np.testing.assert_array_equal(dense[:200], weight.to_dense())
    zeros = sum(not piece.any() for piece in packed["values"])
    assert zeros <= len(packed["order"]) * bands


def unswizzled(values):
    """By the manual: bits 4 and up of an address are xored with bits 7 and up."""
    plain, (rows, group) = np.empty_like(values), values.shape
    for row in range(rows):
        for run in range(group // 8):
            address = row * group * 2 + run * 16
            to = (address ^ (address >> 7 & (group // 8 - 1)) << 4) % (group * 2) // 16
            plain[row, 8 * run : 8 * run + 8] = values[row, 8 * to : 8 * to + 8]
    return plain


@pytest.mark.parametrize("block", [64, 32, 16])
def test_the_cost_model_counts_the_pieces_that_are_kept(block, rng):
    weight = block_sparse(rng, (1024, 1024), (block, block), 0.2)
    shape = replace(SMALL, group=block)
    posed = problem((block, block), weight.nnzb, 1024, 1024)
    packed = dict(pack_bands(weight, 2, block, "float32"))
    steps = expected_steps(posed, band_layout(2, block))
    assert steps == pytest.approx(len(packed["live"]), rel=0.15)
    assert _kept_pieces(posed, shape) == pytest.approx(len(packed["values"]), rel=0.05)


def test_the_model_expects_what_large_layers_were_asked_for():
    """4096 rows, one block in ten: of what cuBLAS takes at 790 TFLOP/s, a fourth and a sixth.

    And not more than it where a half of the 64x64 blocks, or a fourth of the 16x16 ones, are live.
    """

    def best(form, block, live):
        posed = problem(block, live, 11008, 4096, form, m=4096)
        posed = replace(posed, x_dtype="bfloat16", y_dtype="bfloat16")
        template = Wgmma(form)
        return template.cost(posed, template.space(posed, MACHINE)[0], MACHINE)

    dense = 2 * 4096 * 4096 * 11008 / 790e12
    assert dense > 0.9 * best("dense", (1, 1), 11008 * 4096)
    assert dense > 4 * best("block_sparse", (64, 64), 172 * 64 // 10)
    assert dense > 6 * best("block_sparse", (128, 128), 86 * 32 // 10)
    assert dense > 1.3 * best("block_sparse", (64, 64), 172 * 64 // 2)
    assert dense > 1.2 * best("block_sparse", (16, 16), 688 * 256 // 4)


@pytest.mark.parametrize("name", ["sm_80", "sm_100", "sm_80+sm_90", "sm_90+sm_80"])
def test_other_machines_and_unaligned_rows_are_left_to_others(name):
    template = Wgmma("block_sparse")
    assert template.space(problem((64, 64), 30), MACHINE)
    assert not template.space(problem((64, 64), 30), hardware(name))
    assert not template.space(problem((64, 64), 30, k=516), MACHINE)


def test_registers_are_those_of_a_processor():
    posed = [problem((64, 64), 30, m=m) for m in (1, 100, 4096)]
    for config in [c for one in posed for c in Wgmma("block_sparse").space(one, MACHINE)]:
        shape = BandShape(**config)
        resident = shape.resident(MACHINE)
        if (moved := shape.registers(resident)) is None:
            continue
        loading, multiplying = moved
        assert multiplying % 8 == 0
        assert multiplying >= shape.columns // 2 + 32
        assert resident * (128 * loading + (shape.threads - 128) * multiplying) <= 65536


# ---------------------------------------------------------------- generated code


@pytest.fixture(scope="module")
def source():
    """One text with a kernel of every large shape."""
    weight = block_sparse(np.random.default_rng(0), (256, 512), (64, 64), 0.5)
    steps = ("bias", "gelu", "residual")
    kernels = {name: kernel_of(weight, shape, None, steps)[0] for name, shape in LARGE.items()}
    kernels["dense"] = kernel_of(weight.to_dense(), LARGE["two_bands"], None, steps)[0]
    return kernels_source({name: one.prim_func for name, one in kernels.items()}, MACHINE)


def test_hopper_code_holds_the_meant_instructions_and_portable_code_others(source):
    if nvcc.find() is None:
        pytest.skip("nvcc is not installed; the emulator's tests run the same source")
    own, portable = to_ptx(source, "sm_90a"), to_ptx(source, "sm_90")
    of_both = [
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast",
        "mbarrier.try_wait.parity",
        "mbarrier.arrive.expect_tx",
        "barrier.cluster.arrive",
    ]
    of_hopper = [
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        "setmaxnreg.inc.sync.aligned.u32 232",
    ]
    assert not [text for text in (*of_both, *of_hopper) if text not in own]
    assert not [text for text in of_both if text not in portable]
    assert "wgmma" not in portable
    assert "setmaxnreg" not in portable
    assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in portable


def test_no_sum_is_spilled_and_no_wgmma_serialized(source, tmp_path):
    path = nvcc.find()
    if path is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "k.cu").write_text(source)
    flags = ("--cubin", "-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++17")
    command = [path, *flags, "--ptxas-options=-v", "-o", os.devnull, "k.cu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "serialized" not in said
    assert len(re.findall(r"0 bytes spill stores, 0 bytes spill loads", said)) == len(LARGE) + 1


# ---------------------------------------------------------------- the emulated device


@pytest.mark.usefixtures("on_emulator")
def test_portable_code_gives_the_same_sums(rng, monkeypatch):
    """What a newer GPU runs from PTX: mma.sync on the operands that TMA brought for wgmma."""
    compiled = emulator.compile_source
    monkeypatch.setattr(emulator, "compile_source", lambda text: compiled(text, hopper=False))
    weight = block_sparse(rng, (130, 136), (32, 32), 0.5)
    kernels = {
        f"group{group}": kernel_of(weight, BandShape(1, 32, 1, group, 2, cluster))
        for group, cluster in ((64, 1), (32, 4), (16, 2))
    }
    functions = {name: kernel.prim_func for name, (kernel, _) in kernels.items()}
    module = adapter.compile_module(functions, MACHINE)
    x, bias = (rng.standard_normal(size).astype(np.float32) for size in ((40, 136), 130))
    for name, (kernel, op) in kernels.items():
        got = adapter.run(module[name], Call(kernel, (x, bias), (40, 130)))
        want = evaluate(op, x.astype(PRECISIONS["bfloat16"]), (bias,))
        assert_close(got, want, np.float32, 136, what=name)


WIDE = """<ir_version: 9, opset_import: ["" : 17]>
wide (float[n, 1024] x) => (float[n, 512] y) {
  a = MatMul(x, w)
  b = Add(a, bias)
  c = Relu(b)
  d = Exp(c)
  y = MatMul(d, v)
}"""


@pytest.mark.usefixtures("on_emulator")
def test_a_model_mixes_them_with_scheduled_kernels(rng, tmp_path):
    """The whole road: both dialects in one module, tensor maps by the host, clusters, graphs."""
    proto = onnx.parser.parse_model(WIDE)
    weights = {
        "w": block_sparse(rng, (512, 1024), (64, 64), 0.3).to_dense().T,
        "v": rng.standard_normal((512, 512)) / 512,
        "bias": rng.standard_normal(512),
    }
    for name, value in weights.items():
        array = np.ascontiguousarray(value, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    session = ort.InferenceSession(proto.SerializeToString())
    options = CompileOptions(target="cuda:sm_90", precision="bfloat16", typical_rows=300)
    compiled = compile_model(proto, options)
    used = {layer.template for layer in compiled.report.layers}
    assert used == {"block_sparse_wgmma", "dense_wgmma"}
    with bscompile.load(compiled.save(tmp_path / "model.bsc")) as loaded:
        for rows in (37, 5, 37, 37):
            x = rng.standard_normal((rows, 1024)).astype(np.float32)
            want, got = session.run(None, {"x": x})[0], loaded.run({"x": x})["y"]
            assert np.abs(got - want).max() <= 2e-2 * np.abs(want).max()


#: Kernel -> what is changed in it, how often, and what the emulator says; empty for wrong results.
FAULTS = {
    "none": (r"$^", "", ""),
    "read before it is full": (
        r"bscompile_wait\([^;]*\[\(v_\d+ \+ \d+\)\]\)\), v_\d+\);",
        ";",
        "mbarrier",
    ),
    "filled before it is empty": (r"bscompile_wait\([^;]*\^ 1\)\);", ";", "mbarrier"),
    "released before it is read": (r"bscompile_wgmma_wait_[01]\(\);\n(?=\s+if \(0 <=)", ";\n", ""),
    "sums of the tile before": (
        r"(bscompile_wgmma_\d+_bf16\(.*), _ptr_\d+\[0\]\);",
        r"\1, 1);",
        "",
    ),
    "another slice": (r"\+ \(uint64_t\)2ULL", "+ (uint64_t)4ULL", ""),
    "bytes that never come": (r"\* 8192\) \+", "* 8200) +", "deadlock"),
    "an unaligned tile": (r"(load_tile\(\(&\([^;]*?) \* 1024\)", r"\1 * 1032)", "not aligned"),
}


def change(source, names):
    """The source with each kernel's own fault in it."""
    parts = re.split(r'(?=extern "C" __global__)', source)
    for number, name in enumerate(names):
        pattern, by, _ = FAULTS[name]
        for place, part in enumerate(parts):
            if re.match(rf'extern "C" __global__ void [^{{]* fault{number}_kernel\([^;]*{{', part):
                parts[place], count = re.subn(pattern, by, part)
                assert count or name == "none", f"{name}: the source has no such place"
    return "".join(parts)


def in_a_child(call, wanted, path):
    """Exit status of a process that runs a kernel: 0 right, 1 wrong, 86 ended by the emulator."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 2
    try:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2)
        got = call()
        with np.errstate(invalid="ignore"):
            status = int(not np.abs(got - wanted).max() < 1e-2)
    finally:
        os._exit(status)


@pytest.mark.usefixtures("on_emulator")
def test_planted_faults_are_found(rng, tmp_path):
    weight = block_sparse(rng, (128, 512), (64, 64), 0.7)
    kernel, op = kernel_of(weight, SMALL)
    x, bias = (rng.standard_normal(size).astype(np.float32) for size in ((40, 512), 128))
    wanted = evaluate(op, x.astype(PRECISIONS["bfloat16"]), (bias,))
    functions = {f"fault{number}": kernel.prim_func for number in range(len(FAULTS))}
    module = adapter.compile_module(functions, MACHINE, lambda text: change(text, FAULTS))
    for number, (name, (_, _, said)) in enumerate(FAULTS.items()):
        call = Call(kernel, (x, bias), (40, 128))
        path = tmp_path / str(number)
        status = in_a_child(
            lambda call=call, fault=f"fault{number}": adapter.run(module[fault], call), wanted, path
        )
        found = 0 if name == "none" else 86 if said else 1
        assert status == found, f"{name}: {path.read_text()}"
        assert said in path.read_text(), name


def test_the_grid_leaves_no_cluster_without_a_place():
    assert [replace(SMALL, cluster=c).processors(MACHINE) for c in (1, 2, 4)] == [132, 132, 128]
