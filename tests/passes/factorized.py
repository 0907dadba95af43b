"""A factorized layer y = x Wᵀ + bias, W = Σᵢ (S∘Aᵢ) ⊗ Bᵢ, in every spelling people write it."""

import io
import warnings

import numpy as np
import onnx
import torch
from torch import nn

SPELLINGS = (
    "loop",
    "loop_a_first",
    "stacked",
    "flat",
    "einsum",
    "einsum2",
    "columns",
    "build_w",
    "kron",
)


class Factorized(nn.Module):
    """x [..., n] -> [..., m] with S, Aᵢ [m/bh, n/bw] and Bᵢ [bh, bw]."""

    def __init__(self, spelling, n=64, m=48, block=(8, 8), rank=2, density=0.4, seed=0):
        super().__init__()
        self.spelling, self.n, self.m = spelling, n, m
        self.rank, (self.bh, self.bw) = rank, block
        rng = np.random.default_rng(seed)
        m1, n1 = m // self.bh, n // self.bw

        def parameter(array):
            return nn.Parameter(torch.tensor(array, dtype=torch.float32))

        self.S = parameter(rng.random((m1, n1)) < density)
        self.A = parameter(rng.standard_normal((rank, m1, n1)) / n1**0.5)
        self.B = parameter(rng.standard_normal((rank, self.bh, self.bw)) / self.bw**0.5)
        self.bias = parameter(rng.standard_normal(m))

    def weight(self):
        """W [out, in]."""
        blocks = torch.einsum("rpq,rhw->phqw", self.S * self.A, self.B)
        return blocks.reshape(self.m, self.n)

    def forward(self, x):
        return getattr(self, f"_{self.spelling}")(x) + self.bias

    def _loop(self, x):
        X = x.reshape(*x.shape[:-1], -1, self.bw)
        Y = 0
        for i in range(self.rank):
            Y = Y + (self.S * self.A[i]) @ (X @ self.B[i].T)
        return Y.reshape(*x.shape[:-1], self.m)

    def _loop_a_first(self, x):
        X = x.reshape(*x.shape[:-1], -1, self.bw)
        terms = [((self.S * self.A[i]) @ X) @ self.B[i].T for i in range(self.rank)]
        return torch.stack(terms).sum(0).reshape(*x.shape[:-1], self.m)

    def _stacked(self, x):  # "VecPar": one product for all B, one for all S∘A
        rows, p = x.numel() // self.n if x.dim() > 2 else x.shape[0], self.n // self.bw
        B = self.B.permute(2, 0, 1).reshape(self.bw, self.rank * self.bh)
        Z = x.reshape(rows, p, self.bw) @ B
        Z = Z.view(rows, p, self.rank, self.bh).permute(0, 3, 2, 1)
        Z = Z.reshape(rows * self.bh, self.rank * p)
        A = (self.S * self.A).permute(0, 2, 1).reshape(self.rank * p, self.m // self.bh)
        Y = (Z @ A).view(rows, self.bh, self.m // self.bh).transpose(1, 2)
        return Y.reshape(*x.shape[:-1], self.m)

    def _flat(self, x):  # all leading dimensions flattened and never unflattened until the end
        X = x.reshape(-1, self.n // self.bw, self.bw)
        Y = sum((self.S * self.A[i]) @ (X @ self.B[i].T) for i in range(self.rank))
        return Y.reshape(-1, self.m).reshape(*x.shape[:-1], self.m)

    def _columns(self, x):  # features first, rows last, as bscompile.models computes
        X = x.reshape(-1, self.n).T.reshape(self.n // self.bw, self.bw, -1)
        Y = 0
        for i in range(self.rank):
            Z = (self.B[i] @ X).reshape(self.n // self.bw, -1)
            Y = Y + (self.S * self.A[i]) @ Z
        return Y.reshape(self.m, -1).T.reshape(*x.shape[:-1], self.m)

    def _einsum(self, x):
        X = x.reshape(*x.shape[:-1], self.n // self.bw, self.bw)
        Y = torch.einsum("...qw,rpq,rhw->...ph", X, self.S * self.A, self.B)
        return Y.reshape(*x.shape[:-1], self.m)

    def _einsum2(self, x):
        X = x.reshape(*x.shape[:-1], self.n // self.bw, self.bw)
        Z = torch.einsum("zab,...cb->...zca", self.B, X)
        Y = torch.einsum("...zca,zdc->...da", Z, self.S * self.A)
        return Y.reshape(*x.shape[:-1], self.m)

    def _build_w(self, x):
        SA = (self.S * self.A).reshape(self.rank, -1)
        W = (SA.T @ self.B.reshape(self.rank, -1)).view(
            self.m // self.bh, self.n // self.bw, self.bh, self.bw
        )
        return x @ W.permute(0, 2, 1, 3).reshape(self.m, self.n).T

    def _kron(self, x):
        W = 0
        for i in range(self.rank):
            W = W + torch.kron(self.S * self.A[i], self.B[i])
        return x @ W.T


def export(module, shape, dynamic=(), dynamo=True):
    """The ONNX model of a module for x of that shape; ``dynamic`` axes are symbolic."""
    names = [f"dim{axis}" for axis in range(len(shape))]
    buffer = io.BytesIO()
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {axis: torch.export.Dim(names[axis]) for axis in dynamic}
            program = torch.onnx.export(
                module.eval(), (x,), dynamo=True, dynamic_shapes=(dims,), verbose=False
            )
            return program.model_proto
        torch.onnx.export(
            module.eval(),
            (x,),
            buffer,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {axis: names[axis] for axis in dynamic}},
        )
    return onnx.load_from_string(buffer.getvalue())
