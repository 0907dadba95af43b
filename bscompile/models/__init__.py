"""Training with factorized block-sparse weights, for any torch model.

model = factorize(model, block=8, rank=2)
train(model, load("digits"), GradualPruning(sparsity=0.75))
export_onnx(model, "model.onnx", example)
"""

from bscompile.errors import UsageError

try:
    import torch as _torch  # noqa: F401 - asked for before what needs it
except ModuleNotFoundError as error:
    raise UsageError(
        "bscompile.models trains with torch, which is not installed",
        hint="pip install 'bscompile[train]'",
    ) from error

from bscompile.models.conv import BlockSparseConv2d
from bscompile.models.convert import LayerPlan, factorize, merge, plan
from bscompile.models.data import Dataset, load
from bscompile.models.export import export_onnx
from bscompile.models.layers import BlockSparseLinear, block_sparse_layers
from bscompile.models.methods import GradualPruning, ProximalL1, SparsityMethod
from bscompile.models.summary import summary
from bscompile.models.train import TrainConfig, Trainer, TrainResult, train

__all__ = [
    "BlockSparseConv2d",
    "BlockSparseLinear",
    "Dataset",
    "GradualPruning",
    "LayerPlan",
    "ProximalL1",
    "SparsityMethod",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "block_sparse_layers",
    "export_onnx",
    "factorize",
    "load",
    "merge",
    "plan",
    "summary",
    "train",
]
