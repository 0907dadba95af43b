"""``tune`` for a GPU elsewhere: here a process whose driver is the emulator's, behind TVM's RPC.

Nothing is replaced on the way but the driver there and the compiler here: ``nvcc`` is a script that
makes what the emulated driver loads. Nothing there can compile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import numpy_helper

from bscompile.tuning.database import Database
from bscompile.tuning.record import OK
from tests.targets.cuda import adapter, emulator
from tests.targets.cuda.conftest import block_sparse

SERVERS = """
import sys
from tvm import rpc
from tvm.rpc.tracker import Tracker
if __name__ == "__main__":
    tracker = Tracker(host="127.0.0.1", port=19500, port_end=19590)
    server = rpc.Server(
        host="127.0.0.1", port=19600, port_end=19690, key="h100",
        tracker_addr=("127.0.0.1", tracker.port), load_library=sys.argv[1],
    )
    print(tracker.port, flush=True)
    sys.stdin.read()
"""
NVCC = """#!{python}
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.targets.cuda.emulator import compile_source
source = next(Path(one) for one in sys.argv if one.endswith(".cu"))
Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(compile_source(source.read_text()))
"""
MODEL = """<ir_version: 9, opset_import: ["" : 17]>
layer (float[9, 256] x) => (float[9, 128] y) {
  a = MatMul(x, w)
  y = Relu(a)
}"""


@pytest.fixture
def elsewhere(tmp_path):
    """Port of a tracker that lends one emulated GPU."""
    pytest.importorskip("tornado")
    if not adapter.emulated():
        pytest.skip("a GPU is here")
    libraries = emulator.write_libraries(tmp_path / "driver")[:2]
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    script = tmp_path / "servers.py"
    script.write_text(SERVERS)
    process = subprocess.Popen(
        [sys.executable, str(script), ":".join(map(str, (*libraries, runtime)))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TVM_CUDA_COMPILE_MODE": "nvcc", "PATH": "/nowhere"},
        text=True,
        start_new_session=True,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers would outlive it
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
def test_a_model_is_tuned_on_a_gpu_elsewhere(elsewhere, tmp_path, rng):
    toolkit = tmp_path / "toolkit" / "bin"
    toolkit.mkdir(parents=True)
    (toolkit / "nvcc").write_text(
        NVCC.format(python=sys.executable, root=str(Path(__file__).parents[3]))
    )
    (toolkit / "nvcc").chmod(0o755)
    proto = onnx.parser.parse_model(MODEL)
    weight = block_sparse(rng, (128, 256), (16, 16), 0.3).to_dense().T
    array = np.ascontiguousarray(weight, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    onnx.save(proto, tmp_path / "model.onnx")
    database = tmp_path / "tuning.jsonl"
    command = [sys.executable, "-m", "bscompile", "tune", "model.onnx", "--target", "cuda:sm_90"]
    command += ["--dtype", "bf16", "--trials", "3", "--db", str(database)]
    command += ["--rpc", f"127.0.0.1:{elsewhere}", "--key", "h100"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ
        | {"CUDA_PATH": str(toolkit.parent), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = list(Database(database))
    assert {record.status for record in records} == {OK}, [r.detail for r in records]
    assert len({record.variant for record in records}) == 3
    assert {record.key.hardware.partition(",")[0] for record in records} == {"RPC h100"}
    assert all(record.time > 0 for record in records)
