"""BlockSparseLinear: a linear layer whose weight is W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ, never built."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bscompile.errors import UsageError
from bscompile.models.blocks import Block, as_block, merge_factors, merged_block_norms
from bscompile.models.function import Form, cheapest_form, kronecker_linear, macs_per_row
from bscompile.models.initialise import nearest_kronecker_sum, variance_preserving_


class KroneckerWeight(nn.Module):
    """The factors of one weight [out, in] and the mask of its live blocks.

    Base of the linear and the convolution layer; holds all that does not depend on how the
    weight is applied.

    Attributes:
        S: Parameter [m1, n1]; S[p, q] = 0 makes block (p, q) of W exactly zero.
        A: Parameter [r, m1, n1].
        B: Parameter [r, bh, bw].
        mask: Bool buffer [m1, n1]; False is a pruned block, whatever S says.
    """

    mask: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        block: int | Block,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (out, inner), (bh, bw) = shape, as_block(block)
        if out % bh or inner % bw:
            raise UsageError(
                f"block {bh}x{bw} must divide the weight [{out}, {inner}]",
                hint="factorize() picks the nearest block that does",
            )
        m1, n1 = out // bh, inner // bw
        exact = min(m1 * n1, bh * bw)
        if not 1 <= rank <= exact:
            raise UsageError(
                f"rank must lie in 1..{exact} for [{out}, {inner}] in {bh}x{bw} blocks, got {rank}",
                hint=f"rank {exact} already represents every such weight",
            )
        self.shape, self.block, self.rank = (out, inner), (bh, bw), rank
        self.S = nn.Parameter(torch.ones(m1, n1, device=device, dtype=dtype))
        self.A = nn.Parameter(torch.empty(rank, m1, n1, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(rank, bh, bw, device=device, dtype=dtype))
        self.register_buffer("mask", torch.ones(m1, n1, device=device, dtype=torch.bool))

    def reset_factors(self, gain: float = 2.0) -> None:
        """S = 1, all blocks live, A and B random so that var(W) = gain / in."""
        with torch.no_grad():
            self.S.fill_(1)
            self.mask.fill_(True)
            variance_preserving_(self.A, self.B, self.shape[1], gain)

    def set_weight(self, weight: Tensor) -> None:
        """Take the nearest factors of a given weight [out, in]; its zero blocks are masked."""
        factors = nearest_kronecker_sum(weight.detach(), self.block, self.rank)
        with torch.no_grad():
            for parameter, value in zip((self.S, self.A, self.B), factors, strict=True):
                parameter.copy_(value)
            self.mask.copy_(factors[0] != 0)

    def coefficients(self) -> Tensor:
        """C = (S∘mask)∘A [r, m1, n1]."""
        return (self.S * self.mask) * self.A

    def merged_weight(self) -> Tensor:
        """W [out, in]; differentiable."""
        return merge_factors(self.coefficients(), self.B)

    @torch.no_grad()
    def block_norms(self) -> Tensor:
        """Frobenius norms [m1, n1] of the blocks of W, pruned ones zero.

        The scale of S against A and B is arbitrary, so blocks are ranked by this, never by |S|.
        """
        return merged_block_norms(self.coefficients(), self.B)

    @torch.no_grad()
    def support(self) -> Tensor:
        """Bool [m1, n1]: blocks with a coefficient that is not exactly zero."""
        return self.coefficients().ne(0).any(dim=0)

    @property
    def sparsity(self) -> float:
        """Share of blocks that are exactly zero."""
        return 1.0 - float(self.support().float().mean())

    @property
    def macs_per_row(self) -> int:
        """Multiply-adds of one row in the form that this layer runs."""
        return macs_per_row(self.shape, self.block, self.rank)[self.form]

    @property
    def form(self) -> Form:
        """How the product is contracted: the cheapest, or what the user set."""
        return self._form or cheapest_form(self.shape, self.block, self.rank)

    _form: Form | None = None

    def use_form(self, form: Form | None) -> None:
        """Fix the contraction; ``None`` goes back to the cheapest."""
        self._form = form


class BlockSparseLinear(KroneckerWeight):
    """y = x Wᵀ + bias with W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ.

    Args:
        in_features: Size of each input row.
        out_features: Size of each output row.
        block: Side of square blocks, or (out side, in side).
        rank: Number of Kronecker terms; at most min(blocks, entries of a block).
        bias: Whether to add a bias [out].
        device: As in nn.Linear.
        dtype: As in nn.Linear.

    Raises:
        UsageError: The block does not divide the layer, or the rank is out of range.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: int | Block = 8,
        rank: int = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__((out_features, in_features), block, rank, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Variance-preserving factors, zero bias."""
        self.reset_factors()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_dense(
        cls, layer: nn.Linear, block: int | Block, rank: int, nearest: bool = True
    ) -> BlockSparseLinear:
        """A factorized copy of a linear layer: nearest factors, or random ones, and its bias."""
        bias, weight = layer.bias is not None, layer.weight
        size = layer.in_features, layer.out_features
        new = cls(*size, block, rank, bias, weight.device, weight.dtype)
        if nearest:
            new.set_weight(weight)
        if new.bias is not None:
            with torch.no_grad():
                new.bias.copy_(layer.bias)
        return new.train(layer.training)

    def to_dense(self) -> nn.Linear:
        """The same layer with W built; zero blocks are exactly zero."""
        dense = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        dense.weight = nn.Parameter(self.merged_weight().detach().clone())
        dense.bias = self.bias  # type: ignore[assignment]
        return dense

    @property
    def weight(self) -> Tensor:
        """W [out, in], built on the spot, for code that reads ``linear.weight``."""
        return self.merged_weight()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return kronecker_linear(x, self.S, self.mask, self.A, self.B, self.form, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        (bh, bw), bias = self.block, self.bias is not None
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"block={bh}x{bw}, rank={self.rank}, bias={bias}"
        )


def block_sparse_layers(model: nn.Module) -> Iterator[tuple[str, KroneckerWeight]]:
    """Each factorized layer of a model once, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, KroneckerWeight):
            yield name, module
