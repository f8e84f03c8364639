"""Bias compensation (FLAP, arXiv 2312.11983, section 3.4): the mean of what the removed inputs gave."""

from __future__ import annotations

from torch import Tensor

from .gap import Gap


def bias(gap: Gap) -> tuple[Tensor | None, Tensor | None]:
    """No update of the weight, and E[d] for the bias: W[:, removed] mu_removed where the inputs are those of the source."""
    return None, gap.mean


bias.needs_bias = True
