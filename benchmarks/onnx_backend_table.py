"""The onnx package's own backend tests: equal, declined with a reason, or wrong.

Run: python -m benchmarks.onnx_backend_table [--all] [--output FILE] [NAME ...]. By default the node
tests of the operators that the model families use and the ``light_*`` networks; ``--all`` takes
every node test, NAME those whose names contain it. Each case runs in a worker process under a time
limit, so that a crash or a hang is a row of the table. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from bscompile.devices.cpu import cpu_name
from tests.end_to_end.onnx_backend import (
    FAMILY_OPERATORS,
    Case,
    Outcome,
    network_case,
    networks,
    node_cases,
    outcome,
)

LIMIT_S = 300
KINDS = ("equal", "declined", "wrong")


def serve(pipe: Connection) -> None:
    """Answer names with outcomes until None comes."""
    with tempfile.TemporaryDirectory() as folder:
        while (name := pipe.recv()) is not None:
            case = network_case(name) if name in networks() else node_cases()[name]
            try:
                result = outcome(case, Path(folder))
            except Exception as error:  # whatever escapes the compiler is a finding
                first = (str(error).splitlines() or [""])[0]
                result = Outcome("wrong", f"{type(error).__name__}: {first}")
            pipe.send(result)


def outcomes(names: Iterable[str]) -> Iterator[tuple[str, Outcome]]:
    """Run every case in a process that may die."""
    context = multiprocessing.get_context("spawn")
    worker = None
    for name in names:
        if worker is None:
            here, there = context.Pipe()
            worker = context.Process(target=serve, args=(there,))
            worker.start()
            there.close()
        here.send(name)
        try:
            if here.poll(LIMIT_S):
                yield name, here.recv()
                continue
            yield name, Outcome("wrong", f"no answer within {LIMIT_S} s")
            worker.kill()
        except (EOFError, ConnectionResetError):
            worker.join()
            yield name, Outcome("wrong", f"the process died, exit code {worker.exitcode}")
        worker = None
    if worker is not None:
        here.send(None)
        worker.join()


def chosen(cases: dict[str, Case], everything: bool, parts: list[str]) -> list[str]:
    """Names of the cases to run."""
    if parts:
        return [name for name in [*cases, *networks()] if any(part in name for part in parts)]
    names = [n for n, case in cases.items() if everything or set(case.operators) & FAMILY_OPERATORS]
    return [*names, *networks()]


def table(results: dict[str, Outcome], cases: dict[str, Case]) -> Iterator[str]:
    """Counts for each operator, then every reason for which something was declined or wrong."""
    by_subject: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, result in results.items():
        by_subject[_subject(name, cases)][result.kind] += 1
        if result.kind != "equal":
            reasons[result.kind, result.reason].append(name)
    yield f"{'operator':32s}" + "".join(f"{kind:>10s}" for kind in KINDS)
    for subject, counts in sorted(by_subject.items()):
        yield f"{subject:32s}" + "".join(f"{counts[kind] or '':>10}" for kind in KINDS)
    total = Counter(result.kind for result in results.values())
    yield f"{'all':32s}" + "".join(f"{total[kind]:>10}" for kind in KINDS)
    for (kind, reason), names in sorted(reasons.items(), reverse=True):
        yield f"\n{kind}: {reason}"
        yield "    " + " ".join(names)


def _subject(name: str, cases: dict[str, Case]) -> str:
    """The operator that a case tests, also where it is spelled out in simpler ones."""
    if name not in cases:
        return "light_* networks"
    tested = cases[name].tested
    return cases.get(tested, cases[name]).operators[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every node test")
    parser.add_argument("--output", type=Path, help="where to write the table as well")
    parser.add_argument("names", nargs="*", help="parts of names")
    arguments = parser.parse_args()
    cases, begun = node_cases(), time.perf_counter()
    results = {}
    for name, result in outcomes(chosen(cases, arguments.all, arguments.names)):
        results[name] = result
        if result.kind == "wrong" or arguments.names:
            print(name, result.kind, result.reason, flush=True)
    lines = [
        f"onnx {version('onnx')} backend tests, {datetime.now(UTC):%Y-%m-%d}",
        f"{cpu_name()} with {os.cpu_count()} threads, Python {platform.python_version()}",
        f"{len(results)} cases in {time.perf_counter() - begun:.0f} s",
        "",
        *table(results, cases),
    ]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any(result.kind == "wrong" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
