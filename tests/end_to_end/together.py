"""Many small models as one, so that they are compiled together: a build costs more than a node.

Models are put side by side, under names of their own. What does not come out equal in company is
built alone, and that is its outcome; so is what feeds sizes at run time, most of which is declined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
import onnx.compose

from bscompile.compiler import analyse_model
from bscompile.errors import BscompileError
from tests.end_to_end.onnx_backend import Case, Outcome, outcome

#: Models in one build; with more, one that is declined late sends too many on their own.
_TOGETHER = 12


def outcomes(cases: Iterable[Case], folder: Path) -> dict[str, Outcome]:
    """What becomes of each case, by name."""
    alone, alike = [], defaultdict(list)
    for case in cases:
        if len(case.data) != 1 or case.model.functions or case.feeds_sizes or declined(case):
            alone.append(case)
        else:
            opsets = tuple(sorted((o.domain, o.version) for o in case.model.opset_import))
            alike[opsets, case.rtol, case.atol].append(case)
    found = {}
    for several in alike.values():
        for start in range(0, len(several), _TOGETHER):
            group = several[start : start + _TOGETHER]
            result = outcome(join(group), folder)
            if result.kind == "equal":
                found |= dict.fromkeys((case.name for case in group), result)
            else:
                alone += group
    return found | {case.name: outcome(case, folder) for case in alone}


def declined(case: Case) -> bool:
    """Whether the model is refused before any code is made, which most are that are refused."""
    try:
        analyse_model(case.model)
    except BscompileError:
        return True
    return False


def join(cases: Sequence[Case]) -> Case:
    """One model of models side by side, whose opsets and tolerances agree."""
    whole = onnx.ModelProto()
    whole.CopyFrom(cases[0].model)
    whole.graph.Clear()
    whole.graph.name = "together"
    whole.ir_version = max(case.model.ir_version for case in cases)
    feeds, wanted = {}, []
    for number, case in enumerate(cases):
        graph = onnx.compose.add_prefix_graph(case.model.graph, f"m{number}_")
        for part in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
            getattr(whole.graph, part).extend(getattr(graph, part))
        ((inputs, outputs),) = case.data
        feeds |= {f"m{number}_{name}": value for name, value in inputs.items()}
        wanted += outputs
    name = ", ".join(case.name for case in cases)
    return Case(name, whole, ((feeds, wanted),), cases[0].rtol, cases[0].atol)
