"""What remains of a linear layer when columns (inputs) or rows (outputs) are removed: the LLM Surgeon's updates.

Both are the constrained minimum of 1/2 vec(dW)^T (G (x) A) vec(dW) (arXiv 2312.17244, section 3.3; A and G as in
``moments``), in closed form:

    columns S removed, K kept:  W_:K += W_:S A_SK A_KK^-1      G cancels: the least-squares reconstruction of W a
    rows Q removed, P kept:     W_P: += G_PP^-1 G_PQ W_Q:      A cancels

Where both are removed, one after the other, in any order, is the joint optimum of both.

Of all weights on the kept inputs, the update of columns has the smallest mean squared error of the layer's output.
``joint=False`` is the paper's "independent" update: each removed column moves the others as if it were the only one,
and the moves are added. It is cheaper to think of and never better; it is here to be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .factors import DAMPING, check_finite, cholesky, damped, inverse


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
        joint: whether removed columns are made up for together (see above).

    Returns:
        [R, len(kept)], in the dtype of ``weight``; solved in float64.

    Raises:
        ValueError: A is not finite, or not positive definite.
    """
    update = _mix(gram, kept, removed, damping, joint, "A, the second moment of the inputs")  # [kept, removed]
    wide = weight.double()
    return (wide[:, kept] + wide[:, removed] @ update.t()).to(weight.dtype)


def update_rows(
    weight: Tensor,
    gradients: Tensor,
    kept: Tensor,
    removed: Tensor,
    damping: float = DAMPING,
    joint: bool = True,
) -> Tensor:
    """New rows for the kept outputs.

    Args:
        weight: [R, C].
        gradients: G, [R, R].
        kept, removed: indices of outputs.
        damping, joint: as in ``least_squares_columns``.

    Returns:
        [len(kept), C], in the dtype of ``weight``; solved in float64.

    Raises:
        ValueError: G is not finite, or not positive definite.
    """
    update = _mix(gradients, kept, removed, damping, joint, "G, the second moment of the gradients of the outputs")
    wide = weight.double()
    return (wide[kept] + update @ wide[removed]).to(weight.dtype)


def _mix(matrix: Tensor, kept: Tensor, removed: Tensor, damping: float, joint: bool, name: str) -> Tensor:
    """How much of each removed column every kept one takes over: X_KK^-1 X_KS, float64 [kept, removed]."""
    check_finite(matrix, name)
    live = matrix.diagonal() > 0
    result = torch.zeros(len(kept), len(removed), dtype=torch.float64, device=matrix.device)
    keeps, leaves = live[kept], live[removed]
    if not bool(keeps.any()) or not bool(leaves.any()):
        return result
    kept, removed = kept[keeps], removed[leaves]
    both = torch.cat([kept, removed])
    system = damped(matrix[both][:, both], damping)
    size = len(kept)
    if joint:
        found = torch.cholesky_solve(system[:size, size:], cholesky(system[:size, :size], name))
    else:
        inverted = inverse(system, name)
        found = -inverted[:size, size:] / inverted.diagonal()[size:]
    places = keeps.nonzero().flatten().unsqueeze(1), leaves.nonzero().flatten()
    result[places] = found
    return result
