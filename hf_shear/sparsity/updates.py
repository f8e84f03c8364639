"""What remains of a linear layer when rows, columns or entries are removed.

Legend: W [R, C], A [C, C] of its inputs and G [R, R] of its output gradients as in ``costs``, both damped; F = G (x) A.

The update dW of a removed set Q minimises 1/2 tr(G dW A dW^T) where dW = -W on Q: -F^-1 E^T (E F^-1 E^T)^-1 w_Q with E
the rows of the identity that Q names (arXiv 2312.17244, section 3). Entries removed before belong to Q, with w = 0: so
they stay zero, and what remains is the best given that. Rows and columns have a closed form. Sets of entries are solved
``jointly`` (conjugate gradients, exact up to a tolerance, no matrix larger than W, A and G), or in ``blocks`` (one
dense system each, every block as if it were removed alone). With float64 arguments the result is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.factors import cholesky

BLOCKS_AT_ONCE_ENTRIES = 2**24  # of the systems that are solved together: 128 MiB in float64


def remove_rows_and_columns(
    weight: Tensor, inputs: Tensor, outputs: Tensor, kept_rows: Tensor, kept_columns: Tensor
) -> Tensor:
    """W with zero rows and columns, and the best rest.

    Removed columns S: W_K += W_S A_SK A_KK^-1. Removed rows R: W_K += G_KK^-1 G_KR W_R. The two commute, so that one
    after the other is the joint minimum.

    Args:
        kept_rows, kept_columns: bool [R] and [C]: those that are left, also of what was removed before.
    """
    new = _without_columns(weight, inputs, kept_columns)
    return _without_columns(new.t(), outputs, kept_rows).t().contiguous()


def remove_entries_jointly(
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    kept: Tensor,
    inverse_inputs: Tensor,
    inverse_outputs: Tensor,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
) -> tuple[Tensor, int]:
    """W with all entries outside ``kept`` at zero, and the best rest.

    Conjugate gradients on the kept entries, preconditioned by G^-1 (x) A^-1, from the point where the rest is as it was.
    Every iterate is zero where it must be and never worse than the one before, so that a stop at ``max_iterations`` is a
    weaker update, not a wrong one.

    Args:
        kept: bool [R, C].
        tolerance: on the norm of the gradient relative to the start's, both in the metric of the preconditioner.

    Returns:
        The new weight and the number of iterations: each takes four products of the cost of G W A.
    """
    scale = outputs.diagonal().mean() * inputs.diagonal().mean()  # the solution does not depend on it, rounding does
    step = torch.where(kept, 0.0, -weight)
    gradient = torch.where(kept, outputs @ step @ inputs, 0.0) / scale
    direction, last, start, iteration = torch.zeros_like(step), None, None, 0
    for iteration in range(max_iterations + 1):
        conditioned = torch.where(kept, inverse_outputs @ gradient @ inverse_inputs, 0.0) * scale
        norm = (gradient * conditioned).sum()
        start = norm if start is None else start
        if norm <= tolerance**2 * start or iteration == max_iterations:
            break
        direction = -conditioned if last is None else direction * (norm / last) - conditioned
        curved = torch.where(kept, outputs @ direction @ inputs, 0.0) / scale
        length = norm / (direction * curved).sum()
        step += length * direction
        gradient += length * curved
        last = norm
    return torch.where(kept, weight + step, 0.0), iteration


def remove_entries_in_blocks(
    weight: Tensor, inverse_inputs: Tensor, inverse_outputs: Tensor, kept: Tensor, block_size: int
) -> Tensor:
    """W with all entries outside ``kept`` at zero, and the sum of the updates of blocks of removed entries.

    Blocks are runs of ``block_size`` removed entries in the order of rows, so that entries of one row, which share
    inputs, are solved together. Correlations within a block are exact, those between blocks are left out, and where
    updates of other blocks fall on removed entries they are dropped. Size 1 is the sum of independent updates; a block
    that holds all is the joint update.
    """
    places = (~kept).nonzero()
    multipliers = torch.zeros_like(weight)
    whole = len(places) // block_size * block_size
    at_once = max(1, BLOCKS_AT_ONCE_ENTRIES // block_size**2) * block_size
    for part in [*places[:whole].split(at_once), places[whole:]]:
        if len(part):
            rows, columns = part.view(-1, min(block_size, len(part)), 2).unbind(dim=-1)  # each [blocks, entries]
            systems = inverse_outputs[rows[:, :, None], rows[:, None]]
            systems = systems * inverse_inputs[columns[:, :, None], columns[:, None]]
            removed = weight[rows, columns][..., None]
            solved = torch.cholesky_solve(removed, torch.linalg.cholesky(systems))
            multipliers[rows, columns] = solved[..., 0]
    return torch.where(kept, weight - inverse_outputs @ multipliers @ inverse_inputs, 0.0)


def quadratic_form(change: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """1/2 tr(G dW A dW^T), the expected rise of the loss for a change dW, [R, C], of the weight."""
    return 0.5 * ((outputs @ change @ inputs) * change).sum()


def _without_columns(weight: Tensor, inputs: Tensor, kept: Tensor) -> Tensor:
    new = torch.zeros_like(weight)
    if kept.any():
        system, cross = inputs[kept][:, kept], inputs[kept][:, ~kept]  # A_KK, A_KS
        update = torch.cholesky_solve(cross @ weight[:, ~kept].t(), cholesky(system, "A factor of what remains"))
        new[:, kept] = weight[:, kept] + update.t()
    return new
