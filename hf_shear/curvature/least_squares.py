"""What remains of a linear layer when inputs are removed: the least-squares update.

Of all weights on the kept inputs K, W_K + W_S A_SK A_KK^-1 has the smallest mean squared error of the layer's output,
where A = E[a a^T] and S are the removed inputs. It is the LLM Surgeon's joint update of columns (arXiv 2312.17244,
section 3.3), in which the curvature of the outputs cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01  # times the mean of the diagonal of A_KK (the value of the Surgeon's code)


def least_squares_columns(
    weight: Tensor, gram: Tensor, kept: Tensor, removed: Tensor, damping: float = DAMPING
) -> Tensor:
    """New columns for the kept inputs.

    Args:
        weight: [R, C].
        gram: A, [C, C].
        kept, removed: indices of inputs; those in neither are dead, and neither used nor made up for.
        damping: a share of mean diag(A_KK), added to the diagonal of A_KK.

    Returns:
        [R, len(kept)], in the dtype of ``weight``; solved in float64.
    """
    gram, wide = gram.double(), weight.double()
    system = gram[kept][:, kept]
    cross = gram[kept][:, removed]  # A_KS
    diagonal = system.diagonal()
    diagonal += damping * diagonal.mean()
    update = torch.cholesky_solve(cross @ wide[:, removed].t(), torch.linalg.cholesky(system)).t()
    return (wide[:, kept] + update).to(weight.dtype)
