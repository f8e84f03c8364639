"""Second moments over tokens: A = E[a a^T] of what a linear layer reads, G = E[g g^T] of what it writes.

Legend: C inputs and R outputs of a linear layer, a [C] its input at a token, g [R] the gradient of the summed negative
log-likelihood (nats) of the token's sequence with regard to its output, N tokens read, P tokens predicted.

A is a mean over the N tokens read, G is the sum over tokens divided by P. Then the Kronecker product G (x) A is K-FAC's
estimate of the Fisher information of the *mean* loss per predicted token, and 1/2 vec(dW)^T (G (x) A) vec(dW) is the
rise of that mean loss in nats that a change dW of the weight is expected to cause (LLM Surgeon, arXiv 2312.17244,
section 3.1). A and G of one layer are sums over tokens of single sequences: they do not depend on the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import count_over_ranks, sum_over_ranks

NUM_BLOCKS = 4  # block rows of a symmetric sum, of which the upper triangle is computed: 10 of 16 blocks
MIN_BLOCKED_SIZE = 256  # below, the extra calls cost more than they save


def _steps(size: int) -> range:
    step = -(-size // NUM_BLOCKS) if size >= MIN_BLOCKED_SIZE else size
    return range(0, size, step)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, where the user allowed less (TF32 on a GPU, bfloat16 on a CPU)."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def add_products(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to the diagonal blocks and all blocks above them of ``total`` [C, C]; ``mirror`` fills the rest.

    Args:
        rows: [N, C], in the dtype of ``total``.
    """
    steps = _steps(len(total))
    with full_float32():
        for start in steps:
            end = start + steps.step
            total[start:end, start:].addmm_(rows[:, start:end].t(), rows[:, start:])


def mirror(total: Tensor) -> Tensor:
    """``total`` with the blocks below the diagonal filled in, in place."""
    steps = _steps(len(total))
    for start in steps:
        end = start + steps.step
        total[end:, start:end] = total[start:end, end:].t()
    return total


@dataclass
class InputMoments:
    """Sums over the tokens that a linear layer read, in float32 or wider.

    Attributes:
        second: [C, C], sum of a a^T; only its diagonal blocks and those above are filled (see ``add_products``).
        first: [C], sum of a.
        num_tokens: N.
    """

    second: Tensor
    first: Tensor
    num_tokens: int = 0

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> InputMoments:
        """Of a layer of ``size`` inputs, before any token."""
        return cls(torch.zeros(size, size, dtype=dtype, device=device), torch.zeros(size, dtype=dtype, device=device))

    def add(self, inputs: Tensor) -> None:
        """Count the inputs [..., C] of a forward."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(self.second.dtype)
        add_products(self.second, flat)
        self.first.add_(flat.sum(dim=0))
        self.num_tokens += len(flat)

    def all_reduce(self) -> None:
        """Sum over the ranks."""
        self.num_tokens = count_over_ranks(self.num_tokens, self.first.device)
        sum_over_ranks(self.second)
        sum_over_ranks(self.first)

    @property
    def gram(self) -> Tensor:
        """A = E[a a^T], [C, C]."""
        return mirror(self.second / self.num_tokens)

    @property
    def mean(self) -> Tensor:
        """E[a], [C]."""
        return self.first / self.num_tokens


InputsByModule = dict[tuple[int, str], InputMoments]
"""A of linear layers by (index of the decoder layer, name within it), handed from what collected it to what needs it."""


@dataclass
class GradientMoments:
    """Sums over tokens of the gradients of what a linear layer wrote, in float32 or wider.

    Attributes:
        second: [R, R], sum of g g^T, filled as ``InputMoments.second``.
        num_predicted: P, tokens whose loss was summed.
    """

    second: Tensor
    num_predicted: int = 0

    @classmethod
    def zeros(
        cls, size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> GradientMoments:
        """Of a layer of ``size`` outputs, before any token."""
        return cls(torch.zeros(size, size, dtype=dtype, device=device))

    def add(self, gradients: Tensor) -> None:
        """Count the gradients [..., R] of a backward pass. ``num_predicted`` is counted by the caller."""
        add_products(self.second, gradients.detach().reshape(-1, gradients.shape[-1]).to(self.second.dtype))

    def all_reduce(self) -> None:
        """Sum over the ranks."""
        self.num_predicted = count_over_ranks(self.num_predicted, self.second.device)
        sum_over_ranks(self.second)

    @property
    def gram(self) -> Tensor:
        """G = sum of g g^T / P, [R, R]."""
        return mirror(self.second / self.num_predicted)
