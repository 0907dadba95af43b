"""Engines as processes that take turns: environments, protocol, interleaved timing."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HOME = Path(os.environ.get("BSCOMPILE_PEERS", Path(__file__).parents[2] / ".peers"))
PAUSE, WARM, SECONDS = 0.03, 0.02, 0.05

#: Engine -> what pip installs for it; the others live in our own environment.
PACKAGES = {
    "deepsparse": ("deepsparse==1.8.0",),
    "openvino": ("openvino==2026.4.1", "numpy"),
}
ENVIRONMENT = {"openvino-bf16": "openvino"}


@dataclass(frozen=True)
class Times:
    """Seconds per call.

    Attributes:
        median: Of all calls.
        minimum: Of all calls.
        rounds: The median of each round; round by round engines met the same machine.
    """

    median: float
    minimum: float
    rounds: tuple[float, ...]

    def ratio_to(self, other: Times) -> float:
        """The median over rounds of our time over ``other``'s, which a change of the machine
        between rounds leaves alone.
        """
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))


def interpreter(engine: str) -> str:
    """The Python that has the engine; its environment is made when it is first asked for."""
    name = ENVIRONMENT.get(engine, engine)
    if name not in PACKAGES:
        return sys.executable
    python = HOME / name / "bin" / "python"
    done = HOME / name / "installed"
    if not done.exists():
        print(f"installing {' '.join(PACKAGES[name])} into {HOME.name}/{name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(HOME / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        done.touch()
    return str(python)


class Engine:
    """One engine with one model in a process of its own."""

    def __init__(self, name: str, path: Path, inputs: Path, threads: int) -> None:
        command = [interpreter(name), str(Path(__file__).with_name("serve.py"))]
        self.process = subprocess.Popen(
            [*command, name, str(path), str(inputs), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Its workers must fit the same processors as ours.
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        answer = self._answer()
        self.refusal = answer.get("refused", "")

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"refused": "the engine died"}

    def ask(self, line: str) -> dict:
        """Send one line of the protocol and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def compare(
    engines: Mapping[str, tuple[str, Path]],
    inputs: Mapping[str, np.ndarray],
    threads: int,
    seconds: float,
    reference: str = "onnxruntime",
) -> tuple[dict[str, Times], dict[str, str], dict[str, float]]:
    """Time engines in turns.

    Args:
        engines: Label -> (engine, model file).
        inputs: What every model gets.
        threads: Of each engine.
        seconds: Until no further round begins; at least five are made.
        reference: Label whose answer the others are compared with.

    Returns:
        (label -> times, label -> why it refused, label -> largest error over the largest value).
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, **inputs)
        running, refused = {}, {}
        for label, (name, path) in engines.items():
            engine = stack.enter_context(Engine(name, path, arrays, threads))
            if engine.refusal:
                refused[label] = engine.refusal
            else:
                running[label] = engine
        answers = {}
        for label, engine in running.items():
            goal = Path(folder) / f"{label}.npy"
            engine.ask(f"check {goal}")
            answers[label] = np.load(goal).astype(np.float64)
        times: dict[str, list[list[float]]] = {label: [] for label in running}
        begun, rounds = time.perf_counter(), 0
        while rounds < 5 or time.perf_counter() - begun < seconds:
            for label, engine in running.items():
                time.sleep(PAUSE)  # the idle workers of the one before go to sleep
                times[label].append(engine.ask(f"{WARM} {SECONDS}")["times"])
            rounds += 1
    want = answers[reference]
    errors = {k: float(np.abs(v - want).max() / np.abs(want).max()) for k, v in answers.items()}
    return {k: _summary(v) for k, v in times.items()}, refused, errors


def _summary(rounds: list[list[float]]) -> Times:
    calls = [seconds for one in rounds for seconds in one]
    return Times(
        statistics.median(calls), min(calls), tuple(statistics.median(one) for one in rounds)
    )
