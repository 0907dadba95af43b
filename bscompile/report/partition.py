"""Which part of the machine runs what, for machines of several parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from bscompile.dialect import CHOICE_KEY, LAYER_KEY, is_dialect


def partition(model: ir.Model, places: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(part, what it runs) in the order in which the parts first appear.

    Args:
        model: After the form choice.
        places: Kernel template -> part; the empty name stands for everything else.
    """
    layers: dict[str, list[str]] = {}
    others: dict[str, Counter[str]] = {}
    for node in model.graph.all_nodes():
        if is_dialect(node):
            template = json.loads(node.metadata_props.get(CHOICE_KEY, "{}")).get("template", "")
            place = places.get(template, places[""])
            layers.setdefault(place, []).append(node.metadata_props.get(LAYER_KEY) or node.op_type)
        elif node.op_type != "Constant":
            others.setdefault(places[""], Counter())[node.op_type] += 1
    found = []
    for place in dict.fromkeys([*layers, *others]):
        counted = [f"{count} {name}" for name, count in others.get(place, Counter()).items()]
        found.append((place, ", ".join([*layers.get(place, []), *counted])))
    return tuple(found)
