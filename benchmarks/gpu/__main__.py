"""``python -m benchmarks.gpu build | run | dry-run``; see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import __doc__ as about

RESULTS = Path(__file__).parent.parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("build", "run", "dry-run"))
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for run")
    given = parser.parse_args()
    if given.what == "build":
        from benchmarks.gpu.build import build
        from bscompile.targets.cuda.compile import compile_source

        count = build(given.folder, given.arch, lambda code, arch: compile_source(code, (arch,)))
        print(f"{count} kernels for {given.arch} in {given.folder}")
        return 0
    if given.what == "run":
        from benchmarks.gpu.device import Gpu

        return measure(Gpu(given.folder), given.folder, given.budget, RESULTS)
    return dry_run()


def dry_run() -> int:
    """Small shapes through all of it: real kernels and peers, an emulated device."""
    from benchmarks.gpu.build import build
    from benchmarks.gpu.device import Emulated
    from tests.targets.cuda import emulator

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, "sm_90", lambda code, _: emulator.compile_source(code), small=True)
        return measure(Emulated(folder), folder, 600.0, folder)


def measure(device: Any, folder: Path, budget: float, results: Path) -> int:
    """Run, write the two result files, and fail if a result was wrong."""
    from benchmarks.gpu.measure import run, to_json
    from benchmarks.gpu.report import page

    ceilings, rows = run(device, folder, budget, small=device.place != "cuda")
    found = to_json(device, ceilings, rows)
    short = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")[:40]
    path = results / f"{datetime.date.today():%Y-%m-%d}-{short}"
    path.with_suffix(".json").write_text(json.dumps(found, indent=1))
    path.with_suffix(".md").write_text(page(found))
    print(page(found))
    return int(any(not row.error < 8e-3 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
