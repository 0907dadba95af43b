"""The measurements as a page: for each case the best of ours beside the peers."""

from __future__ import annotations

from typing import Any


def page(found: dict[str, Any]) -> str:
    """Markdown of a result file's content."""
    ceilings = found["ceilings"]
    lines = [
        f"# {found['device']}",
        "",
        f"torch {found['torch']}; {ceilings['tflops']:.0f} TFLOP/s bfloat16,",
        f"{ceilings['memory_tbs']:.2f} TB/s, {ceilings['launch_us']:.1f} us for an empty kernel.",
        "Speed-ups are over cuBLAS' dense product in the same run; the roof counts the work",
        "that is left, with x read once.",
        "",
        "| case | rows | cuBLAS us | torch bsr | ours us | ours | of the roof | error | kernel |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["case"], row["rows"]), []).append(row)
    lines += [_line(case, rows, group) for (case, rows), group in groups.items()]
    wrong = [row for row in found["rows"] if not row["error"] < 8e-3]
    lines += ["", f"{len(wrong)} of {len(found['rows'])} results are outside the tolerance."]
    return "\n".join(lines) + "\n"


def _line(case: str, rows: int, group: list[dict[str, Any]]) -> str:
    by_name = {row["runner"]: row for row in group}
    peer = by_name.get("torch bsr")
    right = [row for row in group if row["runner"].startswith("ours") and row["error"] < 8e-3]
    cells = [case, str(rows), f"{by_name['cublas']['us']:.2f}"]
    cells.append(f"{peer['speedup']:.2f}x" if peer else "")
    if right:
        best = min(right, key=lambda row: row["us"])
        cells += [f"{best['us']:.2f}", f"{best['speedup']:.2f}x", f"{best['roof_share']:.0%}"]
        cells += [f"{best['error']:.1e}", best["runner"].removeprefix("ours: ")]
    else:
        cells += ["", "", "", "", ""]
    return "| " + " | ".join(cells) + " |"
