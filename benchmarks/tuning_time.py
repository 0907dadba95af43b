"""How long does tuning a model of BERT-base's size take, and what does it bring?

Run: python -m benchmarks.tuning_time [--small] [--timeout S] [--trials N] [--block B] [--density D]
     [--database PATH]

A BERT-base with random weights, sequence 128, batch 1, a tenth of its 16x16 blocks live, is tuned
from nothing, then again with the database warm. Wanted: under 10 minutes on 2 cores, under 5 s
warm. Each distinct problem is printed with the time of the dense form, of the cost model's
choice and of the tuned one, all from the same rounds, and the rank correlation of expected with
measured times over the candidates of all problems (wanted: 0.8), and within each problem.

Needs the packages of the tests (transformers, torch).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.cost_model_rank import rank_correlation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny BERT, to try the script")
    parser.add_argument(
        "--timeout", type=float, help="seconds of tuning; what is left stays untuned"
    )
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--database", type=Path, help="keep the records here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
        model = sparse_bert(Path(folder) / "bert.onnx", arguments)
        database = arguments.database or Path(folder) / "db.jsonl"
        cold, result = tuned(model, database, arguments)
        show(result)
        finished = sum(layer.seconds is not None for layer in result.layers)
        print(f"from nothing: {cold:.0f} s for {finished} of {len(result.layers)} problems")
        correlations(database)
        warm, again = tuned(model, database, arguments)
        told = "it went on" if any(layer.tuned_now for layer in again.layers) else "all was known"
        print(f"with the database warm: {warm:.1f} s, {told}")
    return 0


def sparse_bert(path: Path, arguments: argparse.Namespace) -> Path:
    import onnx

    from tests.end_to_end.families import FAMILIES, export, with_weights, zero_blocks

    export(FAMILIES["bert"], path, full=not arguments.small, batch=1)
    block = (arguments.block, arguments.block)
    onnx.save(with_weights(onnx.load(path), zero_blocks(block, arguments.density)), path)
    return path


def tuned(model: Path, database: Path, arguments: argparse.Namespace):
    """(seconds until every problem is tuned, the result); the whole model is not timed here."""
    from bscompile.compiler import CompileOptions
    from bscompile.runtime import tvm_library
    from bscompile.tuner import tune_model
    from bscompile.tuning.database import Database
    from bscompile.tuning.session import TuneOptions

    tvm_library.import_compiler()
    begun = time.monotonic()
    options = CompileOptions(threads=arguments.threads)
    settings = TuneOptions(trials=arguments.trials, timeout=arguments.timeout)
    found = tune_model(model, options, settings, Database(database), time_whole=False, watch=watch)
    return time.monotonic() - begun, found.result


def watch(state) -> None:
    if state.trial == state.trials:
        print(f"  {state.number}/{state.total} {state.layer}", file=sys.stderr, flush=True)


def show(result) -> None:
    print(
        f"{'problem':44} {'uses':>4} {'tried':>5} {'dense':>8} {'model':>8} {'tuned':>8} gain  as"
    )
    gains = []
    for layer in result.layers:
        if layer.seconds is None:
            continue
        chosen = layer.model_seconds or float("nan")
        gains.append(chosen / layer.seconds)
        name = f"{layer.name[-24:]} {layer.shape[0]}x{layer.shape[1]} m={layer.rows}"
        times = " ".join(f"{t * 1e6:8.1f}" for t in (layer.dense_seconds, chosen, layer.seconds))
        tried = sum(layer.statuses.values())
        print(f"{name:44} {layer.uses:4} {tried:5} {times} {gains[-1]:.2f}  {layer.winner}")
    if gains:
        print(f"tuned against the cost model's choice: median {np.nanmedian(gains):.3f}, "
              f"best {np.nanmax(gains):.2f} times as fast (microseconds above)")  # fmt: skip


def correlations(path: Path) -> None:
    """Of expected with measured times: over everything, and the median within a problem."""
    from bscompile.tuning.database import Database
    from bscompile.tuning.record import OK

    groups: dict[str, list[tuple[float, float]]] = {}
    for record in Database(path):
        if record.status == OK and not record.final:
            pair = (record.variant.expected, record.time)
            groups.setdefault(record.key.digest, []).append(pair)
    everything = [pair for pairs in groups.values() for pair in pairs]
    if len(everything) < 3:
        return
    within = [rank_correlation(*zip(*p, strict=True)) for p in groups.values() if len(p) > 7]
    overall = rank_correlation(*zip(*everything, strict=True))
    inside = np.median(within) if within else float("nan")
    print(f"rank correlation over {len(everything)} candidates {overall:.3f}")
    print(f"within a problem {inside:.3f} (median of {len(within)})")


if __name__ == "__main__":
    sys.exit(main())
