"""The measurements as a page: for each case the best of ours beside the peers."""

from __future__ import annotations

import math
from typing import Any


def page(found: dict[str, Any]) -> str:
    """Markdown of a result file's content."""
    ceilings = found["ceilings"]
    lines = [
        f"# {found['device']}",
        "",
        f"{'; '.join(found['peers'] or ['no torch'])}; {ceilings['tflops']:.0f} TFLOP/s bfloat16,",
        f"{ceilings['memory_tbs']:.2f} TB/s, {ceilings['launch_us']:.1f} us to copy four bytes.",
        "Speed-ups are over cuBLAS' dense product in the same run; the roof counts the work",
        "that is left, with x read once.",
        *(f"{line}." for line in (*found["missing"], *_dropped(found))),
        "",
        "| case | rows | cuBLAS us | torch bsr | ours us | ours | of the roof | error | kernel |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["case"], row["rows"]), []).append(row)
    lines += [
        _line(case, rows, group)
        for (case, rows), group in groups.items()
        if any(not row["runner"].startswith("ours: kronecker") for row in group)
    ]
    lines += [*_factorized(groups), *_calls(found.get("calls", []))]
    wrong = [row for row in found["rows"] if not row["error"] < 8e-3]
    lines += ["", f"{len(wrong)} of {len(found['rows'])} results are outside the tolerance."]
    return "\n".join(lines) + "\n"


def _dropped(found: dict[str, Any]) -> list[str]:
    """What the time did not suffice for."""
    lines = []
    for part, names in found["dropped"].items():
        if names:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            lines.append(f"No time was left for {len(names)} of {part}: {shown}")
    return lines


def _factorized(groups: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """The winner table: a factorized layer, and the same pattern in blocks where it was timed."""
    lines = [
        "",
        "| factorized case | rows | ours us | over cuBLAS | of the roof | in blocks us | wins |",
        "|---|---|---|---|---|---|---|",
    ]
    before = len(lines)
    for (case, rows), group in groups.items():
        for row in group:
            if row["runner"] != "ours: kronecker":
                continue
            blocks = [
                other["us"]
                for other in groups.get((case.rpartition("-")[0], rows), [])
                if other["runner"].startswith("ours") and other["error"] < 8e-3
            ]
            other = f"{min(blocks):.2f}" if blocks else ""
            wins = "" if not blocks else "factors" if row["us"] < min(blocks) else "blocks"
            cells = [case, str(rows), f"{row['us']:.2f}", _ratio(row["speedup"])]
            cells += [f"{row['roof_share']:.0%}", other, wins]
            lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > before else []


def _calls(calls: list[dict[str, Any]]) -> list[str]:
    """Whole models."""
    if not calls:
        return []
    lines = [
        "",
        "| model | dtype | rows | ours us | dense us | by | ours | roof | error | right | cuBLAS |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for call in calls:
        peer = call["peer_us"]
        ratio = ["", "", ""]
        if not math.isnan(peer):
            ratio = [f"{peer:.1f}", call["peer"], f"{peer / call['us']:.2f}x"]
        cells = [call["name"], call["precision"], str(call["rows"]), f"{call['us']:.1f}", *ratio]
        cells += [f"{call['roof_share']:.0%}", f"{call['error']:.1e}", str(call["right"])]
        cells.append(call["remark"] or "no layer")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _line(case: str, rows: int, group: list[dict[str, Any]]) -> str:
    by_name = {row["runner"]: row for row in group}
    peer = by_name.get("torch bsr")
    right = [row for row in group if row["runner"].startswith("ours") and row["error"] < 8e-3]
    base = by_name.get("cublas")
    cells = [case, str(rows), f"{base['us']:.2f}" if base else ""]
    cells.append(_ratio(peer["speedup"]) if peer else "")
    if right:
        best = min(right, key=lambda row: row["us"])
        cells += [f"{best['us']:.2f}", _ratio(best["speedup"]), f"{best['roof_share']:.0%}"]
        cells += [f"{best['error']:.1e}", best["runner"].removeprefix("ours: ")]
    else:
        cells += ["", "", "", "", ""]
    return "| " + " | ".join(cells) + " |"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}x"
