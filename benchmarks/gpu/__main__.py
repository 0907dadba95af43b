"""``python -m benchmarks.gpu build | run | dry-run``; see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import __doc__ as about

RESULTS = Path(__file__).parent.parent / "results"


PARTS = ("grid", "factorized", "models")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("build", "run", "dry-run"))
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for run")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if given.what == "build":
        from bscompile.targets.cuda.compile import compile_source

        build(
            given.folder, given.arch, lambda code, arch: compile_source(code, (arch,)), given.part
        )
        return 0
    if given.what == "run":
        from benchmarks.gpu.device import Gpu

        return measure(Gpu(given.folder), given.folder, given.budget, RESULTS, given.part)
    return dry_run(given.part)


def build(
    folder: Path, arch: str, compile_code: Any, parts: Sequence[str], small: bool = False
) -> None:
    """Everything that ``measure`` needs, part by part."""
    from benchmarks.gpu import build as grid
    from benchmarks.gpu import factorized, models

    folder.mkdir(parents=True, exist_ok=True)
    counts = {
        "grid": lambda: grid.build(folder, arch, compile_code, small),
        "factorized": lambda: factorized.build(folder, arch, compile_code, small),
        "models": lambda: models.build(folder / "models", arch, small),
    }
    grid.copy_runtime(folder / "rt")
    for part in parts:
        print(f"{part}: {counts[part]()} built for {arch} in {folder}", flush=True)


def dry_run(parts: Sequence[str]) -> int:
    """Small shapes through all of it: real kernels and peers, an emulated device."""
    from benchmarks.gpu.device import Emulated
    from tests.targets.cuda import emulator

    emulator.start()
    compile_code = "bscompile.targets.cuda.build.compile_source"
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch(compile_code, lambda code, _: emulator.compile_source(code)),
    ):
        folder = Path(name)
        build(folder, "sm_90", lambda code, _: emulator.compile_source(code), parts, small=True)
        return measure(Emulated(folder), folder, 600.0, folder, parts)


def measure(device: Any, folder: Path, budget: float, results: Path, parts: Sequence[str]) -> int:
    """Run, write the two result files, and fail if a result was wrong.

    Models come first and may take a third of the time, factorized layers a fifth of the rest.
    """
    from benchmarks.gpu import factorized, models
    from benchmarks.gpu.measure import measure_ceilings, run, to_json
    from benchmarks.gpu.report import page

    small, ends = device.place != "cuda", time.perf_counter() + budget
    ceilings, rows, calls = measure_ceilings(device, 64 if small else 8192), [], []
    if "models" in parts:
        share = budget if parts == ["models"] else budget / 3
        calls = models.run(device, folder / "models", ceilings.memory_tbs, share)
    if "factorized" in parts:
        left = ends - time.perf_counter()
        rows += factorized.run(device, folder, ceilings, left / 5, small)
    if "grid" in parts:
        ceilings, more = run(device, folder, ends - time.perf_counter(), small=small)
        rows = more + rows
    found = to_json(device, ceilings, rows) | {
        "calls": [asdict(call) | {"right": call.right} for call in calls]
    }
    short = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")[:40]
    path = results / f"{datetime.date.today():%Y-%m-%d}-{short}"
    path.with_suffix(".json").write_text(json.dumps(found, indent=1))
    path.with_suffix(".md").write_text(page(found))
    print(page(found))
    return int(any(not row.error < 8e-3 for row in rows) or not all(c.right for c in calls))


if __name__ == "__main__":
    sys.exit(main())
