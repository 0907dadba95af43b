"""``python -m benchmarks.gpu build | run | dry-run``; see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu import __doc__ as about

RESULTS = Path(__file__).parent.parent / "results"
ABOUT = "about.json"
#: In the order in which they run; each may take that share of the time that is left.
PARTS = {"models": 0.35, "factorized": 0.2, "grid": 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("build", "run", "dry-run"))
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for run")
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    given = parser.parse_args()
    if given.what == "build":
        from bscompile.targets.cuda.compile import compile_source

        def compile_code(source: str, arch: str) -> bytes:
            return compile_source(source, (arch,))

        build(given.folder, given.arch, compile_code, given.part)
        return 0
    if given.what == "run":
        from benchmarks.gpu.archive import unpack
        from benchmarks.gpu.device import Gpu

        unpack(given.folder)
        return measure(Gpu(given.folder), given.folder, given.budget, given.results, given.part)
    from benchmarks.gpu.dry_run import dry_run

    return dry_run(given.part)


def build(
    folder: Path,
    arch: str,
    compile_code: Callable[[str, str], bytes],
    parts: Sequence[str],
    small: bool = False,
) -> None:
    """Everything that ``measure`` needs, part by part, and the archive of it."""
    from benchmarks.gpu import build as grid
    from benchmarks.gpu import factorized, models
    from benchmarks.gpu.archive import pack

    folder.mkdir(parents=True, exist_ok=True)
    builders = {
        "grid": lambda: grid.build(folder, arch, compile_code, small),
        "factorized": lambda: factorized.build(folder, arch, compile_code, small),
        "models": lambda: models.build(folder / "models", arch, small),
    }
    grid.copy_runtime(folder, wheels=not small)
    (folder / ABOUT).write_text(json.dumps({"arch": arch, "small": small}))
    for part in parts:
        print(f"{part}: {builders[part]()} built for {arch} in {folder}", flush=True)
    print("\n".join(pack(folder)[1]), flush=True)


def measure(device: Any, folder: Path, budget: float, results: Path, parts: Sequence[str]) -> int:
    """Run, write the two result files, and fail if a result was wrong.

    They are written anew after each part, so that what was measured is there whatever ends it.
    """
    from benchmarks.gpu import factorized, models
    from benchmarks.gpu.measure import TOLERANCE, find_peers, measure_ceilings, run, to_json

    ends = time.perf_counter() + budget
    peers = find_peers(device)
    ceilings = measure_ceilings(device, peers, json.loads((folder / ABOUT).read_text())["small"])
    print(f"{device.name}: {ceilings}", flush=True)
    rows, calls, dropped = [], [], {}
    for part in [part for part in PARTS if part in parts]:
        left = ends - time.perf_counter()
        share = left if part == parts[-1] else left * PARTS[part]
        if part == "models":
            calls, dropped[part] = models.run(device, folder / part, peers, ceilings, share)
        else:
            measure_part = run if part == "grid" else factorized.run
            more, dropped[part] = measure_part(device, folder, peers, ceilings, share)
            rows += more
        found = to_json(device, peers, ceilings, rows) | {
            "calls": [asdict(call) | {"right": call.right} for call in calls],
            "dropped": dropped,
        }
        written = write(found, results)
    print(written.read_text(), flush=True)
    return int(any(not row.error < TOLERANCE for row in rows) or not all(c.right for c in calls))


def write(found: dict[str, Any], results: Path) -> Path:
    """Two files, named by day and device; returns the page's path."""
    from benchmarks.gpu.report import page

    short = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")[:40]
    path = results / f"{datetime.date.today():%Y-%m-%d}-{short}"
    path.with_suffix(".json").write_text(json.dumps(found, indent=1))
    path.with_suffix(".md").write_text(page(found))
    return path.with_suffix(".md")


if __name__ == "__main__":
    sys.exit(main())
