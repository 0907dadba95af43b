"""Whole models as artifacts: equal to onnxruntime on the device, and how long one call takes.

mlp, vit, bert, llama   float32, 10 % of the 16x16 blocks live, against onnxruntime's answers
vit-h-ffn               1280 -> 5120 -> 1280, 256 images of 257 tokens, bfloat16, 64x64, 10 % live
llama-8b-ffn            4096 -> 14336 -> 4096 with gate, one token, bfloat16, 64x64, 10 % live

The peer of the two last is the dense model compiled by torch with max-autotune in the same run.
Both sides are timed as CUDA graphs, the second-level cache overwritten before each call. Of the
roof counts: weights read once, inputs and outputs, 2 · rows · live numbers FLOPs of linear layers.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

_REPEATS = 15
_FFN = {  # name -> (inputs, hidden, rows, gate), and the same for a dry run
    "vit-h-ffn": ((1280, 5120, 256 * 257, False), (64, 128, 33, False)),
    "llama-8b-ffn": ((4096, 14336, 1, True), (64, 128, 1, True)),
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
        peer_us: Of the dense model by torch; NaN where there is no peer.
        error: Norm of the difference to onnxruntime over the norm.
        roof_share: Of the roof.
    """

    name: str
    precision: str
    rows: int
    live: int
    us: float = float("nan")
    peer_us: float = float("nan")
    error: float = float("nan")
    roof_share: float = float("nan")

    @property
    def right(self) -> bool:
        """Whether the error is what the precision explains."""
        return self.error < _TOLERANCE[self.precision]


# ---------------------------------------------------------------- where the compiler is


def build(folder: Path, arch: str, small: bool) -> int:
    """Compile every model and keep onnxruntime's answers beside it; returns how many."""
    from importlib.metadata import version

    import onnxruntime as ort

    from bscompile.compiler import CompileOptions, compile_model

    folder.mkdir(parents=True, exist_ok=True)
    calls = []
    for name, make in _sources(small).items():
        started = time.perf_counter()
        proto, feeds = make()
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
    listed = {"calls": calls, "tvm": version("apache-tvm"), "small": small}
    (folder / "models.json").write_text(json.dumps(listed, indent=1))
    return len(calls)


def _sources(small: bool) -> dict[str, Callable[[], tuple[Any, dict[str, np.ndarray]]]]:
    from tests.end_to_end.families import FAMILIES

    found = {}
    for name in ("mlp",) if small else ("mlp", "vit", "bert", "llama"):
        found[name] = lambda family=FAMILIES[name]: _family(family, small)
    for name, sizes in _FFN.items():
        found[name] = lambda chosen=sizes[small]: _ffn(*chosen)
    return found


def _family(family: Any, small: bool) -> tuple[Any, dict[str, np.ndarray]]:
    import onnx

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


def _ffn(k: int, hidden: int, rows: int, gate: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """down(gelu(up(x))), or down(silu(gate(x)) * up(x)), with weights [in, out]."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)

    def weight(inputs: int, outputs: int) -> np.ndarray:
        live = rng.random((inputs // 64, outputs // 64)) < 0.1
        live[0, 0] = True
        mask = live.repeat(64, 0).repeat(64, 1)
        values = rng.standard_normal((inputs, outputs), dtype=np.float32)
        return values * mask / np.float32(np.sqrt(0.1 * inputs))

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


def run(device: Any, folder: Path, memory_tbs: float, budget: float) -> list[Call]:
    """Load, check and time every model, until the budget in seconds is spent."""
    import bscompile

    started, found = time.perf_counter(), []
    listed = json.loads((folder / "models.json").read_text())
    peak = {"bfloat16": _peak(device, torch.bfloat16), "float32": _peak(device, torch.float32)}
    with _importable_tvm(device, folder.parent / "rt", listed["tvm"]):
        for entry in listed["calls"]:
            call = Call(**entry)
            if time.perf_counter() - started > budget:
                print(f"stopped at {call.name}: {budget:.0f} s are spent", flush=True)
                break
            if not (folder / f"{call.name}.bsc").exists():
                print(f"{call.name} was not carried here", flush=True)
                continue
            with np.load(folder / f"{call.name}.npz") as held:
                feeds = {k[3:]: held[k] for k in held.files if k.startswith("in_")}
                wanted = held["wanted"]
            if call.name in _FFN:
                feeds = {"x": np.resize(feeds["x"], (call.rows, feeds["x"].shape[1]))}
            with bscompile.load(folder / f"{call.name}.bsc") as model:
                got = [next(iter(model.run(feeds).values())) for _ in range(3)][-1]  # a replay
                answers = got[: len(wanted)]
                error = float(np.linalg.norm(answers - wanted) / np.linalg.norm(wanted))
                seconds = _replay_seconds(device, model)
            peer = _dense_seconds(device, call.name, listed["small"])
            size = {"float32": 4, "bfloat16": 2}[call.precision]
            ends = got.nbytes + sum(array.nbytes for array in feeds.values())
            roof = max(
                2.0 * call.rows * call.live / peak[call.precision],
                (size * call.live + ends) / (memory_tbs * 1e12),
            )
            call = replace(
                call,
                us=seconds * 1e6,
                peer_us=peer * 1e6,
                error=error,
                roof_share=roof / seconds,
            )
            wrong = "" if call.right else "  WRONG"
            print(f"{call.name:16} {call.us:10.1f} us, dense {call.peer_us:10.1f} us, "
                  f"error {error:.1e}{wrong}", flush=True)  # fmt: skip
            found.append(call)
    return found


def _peak(device: Any, dtype: torch.dtype) -> float:
    side = 4096 if device.place == "cuda" else 64
    a = torch.randn(side, side, device=device.place, dtype=dtype)
    return float(2 * side**3 / device.time([lambda: a @ a]))


@contextmanager
def _importable_tvm(device: Any, runtime: Path, version: str) -> Any:
    """A package named tvm with the runtime's libraries alone, where tvm is not installed."""
    if device.place != "cuda":
        yield
        return
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        (site / "tvm" / "lib").mkdir(parents=True)
        (site / "tvm" / "__init__.py").write_text("")
        for library in runtime.iterdir():
            (site / "tvm" / "lib" / library.name).symlink_to(library.resolve())
        about = site / f"apache_tvm-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: apache-tvm\nVersion: {version}\n")
        sys.path.append(name)
        try:
            yield
        finally:
            sys.path.remove(name)


def _replay_seconds(device: Any, model: Any) -> float:
    """Median seconds of one call's graph, without the copies to the device and back."""
    recorder = model._executor._recorder
    recording = next(iter(recorder._recorded.values()))

    def launch() -> None:
        recorder._ask("cudaGraphLaunch", recording.graph, recorder._stream)

    if device.place == "cuda":
        return _timed(launch, torch.cuda.ExternalStream(recorder._stream.value))
    started = time.perf_counter()
    launch()
    return time.perf_counter() - started


def _dense_seconds(device: Any, name: str, small: bool) -> float:
    """The dense model, compiled by torch for this very shape; NaN where it is no peer's model."""
    if name not in _FFN:
        return float("nan")
    k, hidden, rows, gate = _FFN[name][small]
    place, kind = device.place, torch.bfloat16
    names = ("up", "down", *(["gate"] if gate else []))
    made = {
        n: torch.nn.Linear(*((hidden, k) if n == "down" else (k, hidden)), bias=False,
                           device=place, dtype=kind)
        for n in names
    }  # fmt: skip
    x = torch.randn(rows, k, device=place, dtype=kind)

    def ffn(x: torch.Tensor) -> torch.Tensor:
        up = made["up"](x)
        functional = torch.nn.functional
        wide = functional.silu(made["gate"](x)) * up if gate else functional.gelu(up)
        return made["down"](wide)

    with torch.no_grad():
        if place != "cuda":
            started = time.perf_counter()
            ffn(x)
            return time.perf_counter() - started
        compiled = torch.compile(ffn, mode="max-autotune-no-cudagraphs")
        for _ in range(3):
            compiled(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled(x)
        return _timed(graph.replay, torch.cuda.current_stream())


def _timed(launch: Callable[[], None], stream: Any) -> float:
    """Median seconds of a launch on a stream, with nothing of use in the second-level cache."""
    size = 3 * torch.cuda.get_device_properties(0).L2_cache_size
    other = torch.empty(size, dtype=torch.uint8, device="cuda")
    times = []
    with torch.cuda.stream(stream):
        for _ in range(_REPEATS):
            other.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            launch()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)
