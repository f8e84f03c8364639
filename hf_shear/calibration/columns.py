"""Removing columns (inputs) of a linear layer y = W a: what it costs, and what remains.

All of it is the constrained minimum of 1/2 vec(dW)^T (G (x) A) vec(dW) (LLM Surgeon, arXiv 2312.17244, section 3), with
A and G as in ``moments``. Costs are the expected rise of the mean loss, in nats. Legend: W [R, C]; S a set of removed
columns, K of kept ones; M = A^-1.

| removed       | cost with the best update of the rest       | without any update (K-OBD)        |
|---------------|---------------------------------------------|-----------------------------------|
| column c      | 1/2 W_c^T G W_c / M_cc                      | 1/2 W_c^T G W_c A_cc              |
| columns S     | 1/2 tr(G W_S (M_SS)^-1 W_S^T)               | 1/2 tr(G W_S A_SS W_S^T)          |
| all columns   | 1/2 tr(G W A W^T)                           | the same                          |

The cost of a set is joint: columns of a head that replace each other are dear together and cheap one by one. With
G = I the cost is half the squared error of the layer's output per token, which forward passes alone give.

The best update is W_:K += W_:S A_SK A_KK^-1. G cancels: it is the least-squares reconstruction of W a, of all weights on
the kept inputs the one with the smallest mean squared error of the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from ..core import charge_flops
from .factors import DAMPING, check_finite, cholesky, damped, inverse


class ColumnCosts:
    """Costs of removing columns (inputs) of one linear layer.

    Columns that are closed already, and dead ones, whose input is 0 at every token, cost nothing and take no part; nor do
    rows whose gradient is 0 at every token.

    Args:
        weight: W, [R, C]; rows that are masked must be 0 in it.
        gram: A, [C, C].
        gradients: G, [R, R]; None: the identity.
        open_columns: bool [C]; None: all.
        damping: a share of the mean diagonal, added to the diagonals of A (of its live part) and of G.
        update: whether the columns that stay may take over; else costs are those of K-OBD, for which nothing is
            inverted and nothing damped.
        name: of the layer, for messages.

    Raises:
        ValueError: A or G are not finite, or (when a cost is asked for) A is not positive definite.
    """

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        gradients: Tensor | None = None,
        open_columns: Tensor | None = None,
        damping: float = DAMPING,
        update: bool = True,
        name: str = "the layer",
    ):
        check_finite(gram, f"A, the second moment of the inputs of {name},")
        live = gram.diagonal() > 0
        if open_columns is not None:
            live &= open_columns.to(live.device)
        self.name, self.update, self.num_columns = name, update, len(gram)
        self.live = live.nonzero().flatten()
        self._place = torch.full((len(gram),), -1, device=gram.device)  # of a column among the live ones
        self._place[self.live] = torch.arange(len(self.live), device=gram.device)
        if len(self.live) < len(gram):
            gram = gram[self.live][:, self.live]
        damping = damping if update else 0.0
        self._gram = damped(gram, damping) if len(gram) else gram.double()
        self._weight = weight.detach()[:, self.live].double()
        if gradients is None:
            self._product = self._weight  # G W
        else:
            check_finite(gradients, f"G, the second moment of the gradients of the outputs of {name},")
            rows = (
                (gradients.diagonal() > 0).nonzero().flatten()
            )  # others, such as closed hidden dimensions, cost nothing
            self._product = torch.zeros_like(self._weight)
            if len(rows):
                charge_flops(2 * len(rows) * self._weight[rows].numel())
                self._product[rows] = damped(gradients[rows][:, rows], damping) @ self._weight[rows]

    @cached_property
    def _inverse(self) -> Tensor:
        return inverse(self._gram, f"A of {self.name}")

    def single(self) -> Tensor:
        """Cost of each column alone: float64 [C]."""
        costs = torch.zeros(self.num_columns, dtype=torch.float64, device=self._weight.device)
        if len(self.live):
            factor = 1 / self._inverse.diagonal() if self.update else self._gram.diagonal()
            costs[self.live] = 0.5 * (self._weight * self._product).sum(dim=0) * factor
        return costs

    def sets(self, members: Iterable[Tensor]) -> Tensor:
        """Joint cost of each set of columns: float64 [sets].

        Args:
            members: indices of the columns of each set.
        """
        return torch.stack([self._of_set(columns) for columns in members])

    def _of_set(self, columns: Tensor) -> Tensor:
        places = self._place[columns]
        places = places[places >= 0]
        if not len(places):
            return self._weight.new_zeros(())
        weight, product = self._weight[:, places], self._product[:, places]
        if not self.update or len(places) == len(self.live):  # of all columns, (M_SS)^-1 = A
            taken = weight @ self._gram[places][:, places]
        else:
            factor = cholesky(self._inverse[places][:, places], f"A^-1 of {self.name}")
            taken = torch.cholesky_solve(weight.t(), factor).t()
        return 0.5 * (product * taken).sum()

    def everything(self) -> Tensor:
        """Cost of all columns: of the layer writing nothing but its bias. Nothing is left to update."""
        charge_flops(2 * self._weight.numel() * len(self._gram))
        return 0.5 * (self._product * (self._weight @ self._gram)).sum()


def least_squares_columns(
    weight: Tensor,
    gram: Tensor,
    kept: Tensor,
    removed: Tensor,
    damping: float = DAMPING,
    joint: bool = True,
) -> Tensor:
    """New columns for the kept inputs.

    Args:
        weight: [R, C].
        gram: A, [C, C].
        kept, removed: indices of inputs; those in neither are closed, and neither used nor made up for. Kept inputs
            that are 0 at every token are neither used nor changed.
        damping: a share of the mean of diag(A) over the live inputs of both, added to the diagonal.
        joint: whether removed columns are made up for together. False: the paper's "independent" update, in which each
            moves the others as if it were the only one, and the moves are added; never better, here to be compared.

    Returns:
        [R, len(kept)], in the dtype of ``weight``; solved in float64.

    Raises:
        ValueError: A is not finite, or not positive definite.
    """
    name, wide = "A, the second moment of the inputs", weight.double()
    check_finite(gram, name)
    live = gram.diagonal() > 0
    new, keeps = wide[:, kept], live[kept]
    kept, removed = kept[keeps], removed[live[removed]]
    if len(kept) and len(removed):
        both, size = torch.cat([kept, removed]), len(kept)
        system = damped(gram[both][:, both], damping)
        if joint:
            mix = torch.cholesky_solve(system[:size, size:], cholesky(system[:size, :size], name))
        else:
            inverted = inverse(system, name)
            mix = -inverted[:size, size:] / inverted.diagonal()[size:]
        new[:, keeps] += wide[:, removed] @ mix.t()  # mix [kept, removed]: how much of each every kept one takes over
    return new.to(weight.dtype)
