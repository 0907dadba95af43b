"""Whole models as artifacts: equal to onnxruntime on the device, and how long one call takes.

vit-h-ffn               1280 -> 5120 -> 1280, 256 images of 257 tokens, bfloat16, 64x64, 10 % live
llama-8b-ffn            4096 -> 14336 -> 4096 with gate, one token, bfloat16, 64x64, 10 % live
vit-h-ffn-dense         the first one with every block live: what the dense fallback is worth
mlp, vit, llama, bert   float32, 10 % of the 16x16 blocks live, against onnxruntime's answers

The peer of the three first is the dense model compiled by torch with max-autotune in the same run;
without torch it is what cuBLAS takes for the products alone, which is less than the model. Both
sides are timed as CUDA graphs, the second-level cache overwritten before each call. Of the
roof counts: weights read once, inputs and outputs, 2 · rows · live numbers FLOPs of linear layers.

Weights take one of sixteen values each, so that artifacts travel in an eighth of their size.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import Array, rounded
from benchmarks.gpu.measure import Ceilings, Peers, product_seconds

_REPEATS = 15
_FFN = {  # name -> (inputs, hidden, rows, gate, live share), and the same for a dry run
    "vit-h-ffn": ((1280, 5120, 256 * 257, False, 0.1), (64, 128, 33, False, 0.1)),
    "llama-8b-ffn": ((4096, 14336, 1, True, 0.1), (64, 128, 1, True, 0.1)),
    "vit-h-ffn-dense": ((1280, 5120, 256 * 257, False, 1.0), (64, 128, 33, False, 1.0)),
}
_CHECKED = 64  # rows of a feed-forward network that are checked; the others repeat them
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Call:
    """One model and what is measured of it.

    Attributes:
        name: Of the artifact, too.
        precision: Of its linear layers.
        rows: Of x in them.
        live: Numbers of their weights that are not zero.
        us: Of one call.
        peer_us: Of the dense model; NaN where there is no peer.
        peer: Whose that is.
        error: Norm of the difference to onnxruntime over the norm.
        roof_share: Of the roof.
        remark: How many of its dense layers ran on cuBLAS; empty where none could.
    """

    name: str
    precision: str
    rows: int
    live: int
    us: float = float("nan")
    peer_us: float = float("nan")
    error: float = float("nan")
    roof_share: float = float("nan")
    peer: str = ""
    remark: str = ""

    @property
    def right(self) -> bool:
        """Whether the error is what the precision explains."""
        return self.error < _TOLERANCE[self.precision]


# ---------------------------------------------------------------- where the compiler is


def build(folder: Path, arch: str, small: bool) -> int:
    """Compile every model and keep onnxruntime's answers beside it; returns how many."""
    import onnxruntime as ort

    from bscompile.compiler import CompileOptions, compile_model

    folder.mkdir(parents=True, exist_ok=True)
    calls = []
    for name, make in _sources(small).items():
        started = time.perf_counter()
        proto, feeds = make()
        _snap(proto)
        precision = "bfloat16" if name in _FFN else "float32"
        rows = _FFN[name][small][2] if name in _FFN else 0
        options = CompileOptions(
            target=f"cuda:{arch}", precision=precision, dimensions={"n": rows} if rows else {}
        )
        compile_model(proto, options).save(folder / f"{name}.bsc")
        (wanted,) = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)
        np.savez(folder / f"{name}.npz", **{f"in_{k}": v for k, v in feeds.items()}, wanted=wanted)
        rows = rows or int(np.prod(wanted.shape[:-1]))
        calls.append(asdict(Call(name, precision, rows, _live(proto))))
        print(f"{time.perf_counter() - started:6.0f} s  {name}", flush=True)
    listed = {"calls": calls, "small": small}
    (folder / "models.json").write_text(json.dumps(listed, indent=1))
    return len(calls)


def _sources(small: bool) -> dict[str, Callable[[], tuple[Any, dict[str, np.ndarray]]]]:
    from tests.end_to_end.families import FAMILIES

    found = {name: lambda chosen=sizes[small]: _ffn(*chosen) for name, sizes in _FFN.items()}
    for name in ("mlp",) if small else ("mlp", "vit", "llama", "bert"):
        found[name] = lambda family=FAMILIES[name]: _family(family, small)
    return found


def _snap(proto: Any) -> None:
    """Give each number of a matrix the nearest of sixteen values; zeros stay."""
    from onnx import numpy_helper

    for one in proto.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.ndim >= 2 and array.dtype == np.float32 and array.any():
            unit = np.float32(3 * array[array != 0].std() / 8)
            level = np.clip(np.floor(array / unit), -8, 7) + np.float32(0.5)
            snapped = np.where(array == 0, np.float32(0), level * unit).astype(np.float32)
            one.CopyFrom(numpy_helper.from_array(snapped, one.name))


def _family(family: Any, small: bool) -> tuple[Any, dict[str, np.ndarray]]:
    import onnx
    import torch

    from tests.end_to_end.families import _Logits, export, with_weights, zero_blocks

    if family.name == "bert":  # the embedding of few words: it is no part of what is compared

        def few_words(full: bool) -> Any:
            from transformers import BertConfig, BertModel

            body = BertModel(
                BertConfig(vocab_size=500, attn_implementation="eager"), add_pooling_layer=False
            )
            return _Logits(body, ("input_ids", "attention_mask"))

        family = replace(family, make=few_words)
    with tempfile.TemporaryDirectory() as folder:
        path = export(family, Path(folder) / "m.onnx", full=not small, batch=1)
        proto = with_weights(onnx.load(path), zero_blocks((16, 16), 0.5 if small else 0.1))
    torch.manual_seed(1)
    return proto, {k: v.numpy() for k, v in family.inputs(not small, 1).items()}


def _ffn(
    k: int, hidden: int, rows: int, gate: bool, share: float
) -> tuple[Any, dict[str, np.ndarray]]:
    """down(gelu(up(x))), or down(silu(gate(x)) * up(x)), with weights [in, out]."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)

    def weight(inputs: int, outputs: int) -> np.ndarray:
        live = rng.random((inputs // 64, outputs // 64)) < share
        live[0, 0] = True
        mask = live.repeat(64, 0).repeat(64, 1)
        values = rng.standard_normal((inputs, outputs), dtype=np.float32)
        return values * mask / np.float32(np.sqrt(share * inputs))

    steps = (
        "g = MatMul(x, wg)\n s = Sigmoid(g)\n a = Mul(g, s)\n u = MatMul(x, wu)\n h = Mul(a, u)"
        if gate
        else "u = MatMul(x, wu)\n h = Gelu(u)"
    )
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        ffn (float[n, {k}] x) => (float[n, {k}] y) {{
            {steps}
            y = MatMul(h, wd)
        }}"""
    )
    arrays = {"wu": weight(k, hidden), "wd": weight(hidden, k)}
    if gate:
        arrays["wg"] = weight(k, hidden)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return proto, {"x": rng.standard_normal((min(rows, _CHECKED), k), dtype=np.float32)}


def _live(proto: Any) -> int:
    from onnx import numpy_helper

    arrays = (numpy_helper.to_array(one) for one in proto.graph.initializer if len(one.dims) == 2)
    return sum(int(np.count_nonzero(array)) for array in arrays)


# ---------------------------------------------------------------- where the GPU is


def run(
    device: Any, folder: Path, peers: Peers, ceilings: Ceilings, budget: float
) -> tuple[list[Call], list[str]]:
    """(calls, names of the models that the budget in seconds did not suffice for)."""
    started, found = time.perf_counter(), []
    listed = json.loads((folder / "models.json").read_text())
    peaks = {"bfloat16": ceilings.tflops * 1e12, "float32": _float32_peak(device, peers, listed)}
    for number, entry in enumerate(listed["calls"]):
        call = Call(**entry)
        if time.perf_counter() - started > budget:
            return found, [other["name"] for other in listed["calls"][number:]]
        call, ends = _measure(device, folder, call)
        seconds, peer = _dense(device, peers, call.name, listed["small"])
        size = {"float32": 4, "bfloat16": 2}[call.precision]
        roof = max(
            2.0 * call.rows * call.live / peaks[call.precision],
            (size * call.live + ends) / (ceilings.memory_tbs * 1e12),
        )
        found.append(
            replace(call, peer_us=seconds * 1e6, peer=peer, roof_share=roof / (call.us * 1e-6))
        )
        wrong = "" if call.right else "  WRONG"
        print(f"{call.name:16} {call.us:10.1f} us, dense {seconds * 1e6:10.1f} us {peer}, "
              f"error {call.error:.1e}{wrong}  {call.remark}", flush=True)  # fmt: skip
    return found, []


def _measure(device: Any, folder: Path, call: Call) -> tuple[Call, int]:
    """The call with its time and error; bytes of its inputs and outputs."""
    import bscompile

    with np.load(folder / f"{call.name}.npz") as held:
        feeds = {k[3:]: held[k] for k in held.files if k.startswith("in_")}
        wanted = held["wanted"]
    if call.name in _FFN:
        feeds = {"x": np.resize(feeds["x"], (call.rows, feeds["x"].shape[1]))}
    with bscompile.load(folder / f"{call.name}.bsc") as model:
        got = [next(iter(model.run(feeds).values())) for _ in range(3)][-1]  # a replay
        error = float(np.linalg.norm(got[: len(wanted)] - wanted) / np.linalg.norm(wanted))
        seconds, remark = _replay_seconds(device, model), model.remark
    ends = got.nbytes + sum(array.nbytes for array in feeds.values())
    return replace(call, us=seconds * 1e6, error=error, remark=remark), ends


def _replay_seconds(device: Any, model: Any) -> float:
    """Median seconds of one call's graph, without the copies to the device and back."""
    recorder = model._executor._recorder
    recording = next(iter(recorder._recorded.values()))
    size = max(1 << 20, 3 * device.cache_bytes)
    source, target = device.empty((size,), "uint8"), device.empty((size,), "uint8")

    def launch() -> None:
        recorder._ask("cudaGraphLaunch", recording.graph, recorder._stream)

    return float(
        device.time_launches(
            launch, _REPEATS, lambda: device.move(source, target), recorder._stream
        )
    )


def _float32_peak(device: Any, peers: Peers, listed: dict[str, Any]) -> float:
    """Rate of cuBLAS in float32; without it that of the data sheet."""
    if peers.cublas is None:
        return 66.9e12
    side = 64 if listed["small"] else 4096
    square: Array = np.random.default_rng(0).standard_normal((side, side), np.float32)
    return float(2 * side**3 / product_seconds(device, peers, square, "float32"))


def _dense(device: Any, peers: Peers, name: str, small: bool) -> tuple[float, str]:
    """(seconds of the dense model, by whom); NaN where there is nobody."""
    if name not in _FFN:
        return math.nan, ""
    k, hidden, rows, gate, _ = _FFN[name][small]
    if peers.torch is not None:
        try:
            return peers.torch.dense_ffn(k, hidden, rows, gate), "torch max-autotune"
        except Exception as error:  # a peer that fails costs its line, not the report
            print(f"{name}: torch cannot compile the dense model: {str(error)[:90]}", flush=True)
    if peers.cublas is None:
        return math.nan, ""
    rng = np.random.default_rng(0)
    shapes = [(hidden, k), (k, hidden), *([(hidden, k)] if gate else [])]
    total = 0.0
    for n, inner in shapes:
        x, weight = (
            rounded(rng.standard_normal(shape, np.float32))
            for shape in ((min(rows, 64), inner), (n, inner))
        )
        total += peers.dense(device, weight, np.resize(x, (rows, inner)))[0]
    return total, "cuBLAS, products alone"
