"""What may be tried for a layer: forms x execution blocks x templates x configurations."""

from __future__ import annotations

from collections import defaultdict

from bscompile.targets.planner import candidates, templates_for
from bscompile.tuning.measurer import Layer
from bscompile.tuning.record import Variant

#: Candidates that the cost model expects to take this many times the best are not tried.
PRUNE_FACTOR = 2.5
#: The best of each form and block is tried up to that, for the curve over execution blocks.
CURVE_FACTOR = 6.0


def all_variants(layer: Layer) -> list[Variant]:
    """Every candidate, the fastest by cost model first."""
    hardware = layer.context.hardware
    found = []
    for candidate in candidates(layer.op, layer.problem):
        problem = candidate.problem
        for template in templates_for(layer.op, layer.problem, layer.context):
            found += [
                Variant(
                    problem.form,
                    problem.block,
                    template.name,
                    config,
                    template.cost(problem, config, hardware),
                )
                for config in template.space(problem, hardware)
            ]
    return sorted(dict.fromkeys(found), key=lambda variant: variant.expected)


def worth_trying(variants: list[Variant]) -> list[Variant]:
    """The candidates that the cost model does not rule out, in their order.

    The dense form's best stays, whatever is expected of it: it is what the others must beat.
    """
    if not variants:
        return []
    best = variants[0].expected
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for variant in variants:
        first_of_its_kind = seen[variant.label] == 0
        seen[variant.label] += 1
        limit = CURVE_FACTOR if first_of_its_kind else PRUNE_FACTOR
        if variant.expected <= limit * best or (first_of_its_kind and variant.form == "dense"):
            kept.append(variant)
    return kept
