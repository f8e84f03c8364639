"""What it costs to remove rows, columns, entries or pairs of entries of a linear layer: the expected rise of its loss.

Legend: y = W a, W [R, C]; A = E[a a^T] [C, C]; G = E[g g^T] [R, R], g the gradient of the loss by y.

All costs are those of one quadratic form, 1/2 tr(G dW A dW^T) = 1/2 vec(dW)^T (G (x) A) vec(dW) (arXiv 2312.17244,
section 3). ``surgeon`` costs are its minimum over what remains, once the structure is zero (optimal brain surgeon):
for a set Q of entries, 1/2 w_Q^T [F^-1]_QQ^-1 w_Q with F^-1 = G^-1 (x) A^-1. ``damage`` costs leave what remains as it is
(optimal brain damage): 1/2 w_Q^T F_QQ w_Q. The first are for pruning with updates, the second (K-OBD) for pruning
without. Factors are taken as they are given: damped, and without the rows and columns that were removed before.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

GROUP_SIZE = 4  # neighbouring inputs of which two remain
PAIRS = tuple(itertools.combinations(range(GROUP_SIZE), 2))  # of positions in a group, those to be removed


def row_costs(weight: Tensor, inputs: Tensor, output_scales: Tensor) -> Tensor:
    """1/2 W_r A W_r^T s_r for every row.

    Args:
        weight: [R, C].
        inputs: A.
        output_scales: s [R]: ``1 / diag(G^-1)`` for surgeon costs, ``diag(G)`` for damage.

    Returns:
        [R].
    """
    return 0.5 * ((weight @ inputs) * weight).sum(dim=1) * output_scales


def column_costs(weight: Tensor, outputs: Tensor, input_scales: Tensor) -> Tensor:
    """1/2 W_c^T G W_c s_c for every column, [C]; s [C] is ``1 / diag(A^-1)`` or ``diag(A)``."""
    return row_costs(weight.t(), outputs, input_scales)


def entry_costs(weight: Tensor, output_scales: Tensor, input_scales: Tensor) -> Tensor:
    """1/2 w^2 s_r s_c for every entry, [R, C]; scales as for rows and columns."""
    return 0.5 * weight.square() * output_scales[:, None] * input_scales


def pair_costs(weight: Tensor, output_scales: Tensor, pair_matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest pair of entries in each group of four along the inputs, removed jointly.

    Args:
        weight: [R, C], C a multiple of 4.
        output_scales: [R], as for rows.
        pair_matrices: [C / 4, 6, 2, 2]: ``pair_matrices_surgeon(A^-1)`` or ``pair_matrices_damage(A)``.

    Returns:
        Costs [R, C / 4], and which pair (an index into ``PAIRS``) [R, C / 4].
    """
    groups = weight.view(len(weight), -1, GROUP_SIZE)
    values = groups[..., torch.tensor(PAIRS, device=weight.device)]  # [R, C / 4, 6, 2]
    costs = 0.5 * torch.einsum("rgpi,gpij,rgpj->rgp", values, pair_matrices, values)
    cheapest, which = (costs * output_scales[:, None, None]).min(dim=-1)
    return cheapest, which


def pair_matrices_damage(inputs: Tensor) -> Tensor:
    """A_pp of every pair p of every group, [C / 4, 6, 2, 2]."""
    size = len(inputs)
    starts = torch.arange(0, size, GROUP_SIZE, device=inputs.device)[:, None, None]
    pairs = starts + torch.tensor(PAIRS, device=inputs.device)  # [C / 4, 6, 2]
    return inputs[pairs[..., :, None], pairs[..., None, :]]


def pair_matrices_surgeon(inverse_inputs: Tensor) -> Tensor:
    """[A^-1]_pp^-1 of every pair p of every group, [C / 4, 6, 2, 2]: each 2 x 2 inverse is written out."""
    block = pair_matrices_damage(inverse_inputs)
    first, cross, second = block[..., 0, 0], block[..., 0, 1], block[..., 1, 1]
    rows = [torch.stack([second, -cross], dim=-1), torch.stack([-cross, first], dim=-1)]
    return torch.stack(rows, dim=-2) / (first * second - cross.square())[..., None, None]


def removed_by_pairs(chosen: Tensor, which: Tensor) -> Tensor:
    """Entries that the pairs ``which`` of the ``chosen`` groups remove: bool [R, C], from bool and integers [R, C / 4]."""
    table = torch.zeros(len(PAIRS), GROUP_SIZE, dtype=torch.bool, device=which.device)
    for index, pair in enumerate(PAIRS):
        table[index, list(pair)] = True
    return (table[which.long()] & chosen[..., None]).flatten(start_dim=1)
