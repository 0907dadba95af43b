"""The order of the passes, as data, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from bscompile.errors import BscompileError
from bscompile.passes.absorb_permutation import AbsorbPermutation
from bscompile.passes.absorb_reshape import AbsorbReshape
from bscompile.passes.absorb_windows import AbsorbWindows
from bscompile.passes.base import GraphPass, Note
from bscompile.passes.choice import OrderJudge, Planner, not_measured
from bscompile.passes.choose_form import ChooseForm
from bscompile.passes.drop_squeezes import DropSqueezes
from bscompile.passes.fold_constants import FoldConstants
from bscompile.passes.fuse_epilogues import FuseEpilogues
from bscompile.passes.merge_groups import MergeGroups
from bscompile.passes.permute_features import PermuteFeatures
from bscompile.passes.recognise_factorized import RecogniseFactorized
from bscompile.passes.recognise_linear import RecogniseLinear
from bscompile.passes.recognise_quantized import RecogniseQuantized
from bscompile.passes.recover_factors import RecoverFactors
from bscompile.passes.requantize import Requantize
from bscompile.passes.restate_convolutions import RestateConvolutions
from bscompile.passes.restate_normalisation import RestateNormalisation
from bscompile.passes.shrink import Shrink
from bscompile.passes.split_outputs import SplitOutputs
from bscompile.passes.widen_float16 import WidenFloat16
from bscompile.passes.write_dialect import WriteDialect

Dump = Callable[[int, str, ir.Model], None]


def pipeline(
    plan: Planner,
    precision: str = "float32",
    price: Planner | None = None,
    judge: OrderJudge = not_measured,
) -> list[GraphPass]:
    """The passes in their order.

    Args:
        plan: (layer, rows or None, dtype) -> the form to run it in; see choose_form.py.
        precision: What layers are stored and multiplied in, see dialect/precision.py.
        price: The cost model, which says whether another order of features pays; None for no
            other orders.
        judge: Knows what layers take that were measured; it then says which order pays.
    """
    return [
        # First, so that everything after it sees float32 only.
        WidenFloat16(),
        # Before folding, which would widen int8 weights for good.
        RecogniseQuantized(),
        # Recognition reads constants: weights that the graph computes must be one by then.
        FoldConstants(),
        # Before the next, which turns ConvTranspose in one group only.
        MergeGroups(),
        # Before recognition, which knows convolutions of two axes and matmuls.
        RestateConvolutions(),
        # Before the next: no reshape may stand between convolutions of one axis.
        RestateNormalisation(),
        # After both: convolutions of one axis left pairs that cancel.
        DropSqueezes(),
        # Before the next, which would take each MatMul of a factorized layer for a layer.
        RecogniseFactorized(),
        # Before the next, which would take the Conv that lists windows for a layer.
        AbsorbWindows(),
        RecogniseLinear(),
        # Before fusing, which follows a layer's result only as long as nothing reshapes it.
        AbsorbReshape(),
        # Before looking for factors: blocks may show only in another order of the channels.
        AbsorbPermutation(),
        # Before shrinking: factors are found in whole weights, and lose whole blocks.
        RecoverFactors(),
        # Before the choice: the epilogue is part of the problem that a kernel is chosen for.
        FuseEpilogues(),
        # After fusing, which took the biases; before the next, which drop and reorder features.
        SplitOutputs(),
        # After fusing: what quantises a layer's result comes after all else.
        Requantize(),
        # After fusing: a constant is easiest followed through steps of an op.
        Shrink(),
        # After shrinking, when only features are left that somebody needs.
        *([] if price is None else [PermuteFeatures(price, precision, judge)]),
        ChooseForm(plan, precision),
        # Last: it shares equal weights again and writes the functions of what is left.
        WriteDialect(),
    ]


def run(
    model: ir.Model,
    passes: Sequence[GraphPass],
    dump: Dump | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Note]:
    """Run passes in order on a model, in place.

    Args:
        model: The model to rewrite.
        passes: Fresh pass objects; each runs once.
        dump: Called after each pass with its number from 1, its name and the model.
        progress: Called before each pass with its name.

    Returns:
        What every pass applied and refused, in order.

    Raises:
        BscompileError: a pass found something that the user can mend.
        onnx_ir.passes.PassError: a pass broke; the message names it and those before it.
    """
    notes: list[Note] = []
    done: list[str] = []
    for number, step in enumerate(passes, 1):
        name = type(step).__name__
        if progress:
            progress(f"pass {number}/{len(passes)}: {name}")
        try:
            step(model)
        except BscompileError:
            raise
        except Exception as error:
            after = f" after {', '.join(done)}" if done else ""
            raise ir.passes.PassError(f"pass {name} failed{after}: {error}") from error
        done.append(name)
        notes += [*step.applied, *step.refused]
        if dump:
            dump(number, name, model)
    return notes
