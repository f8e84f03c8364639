"""Which tokens of a batch count: in statistics, and in the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
"""A label that counts in no loss (the convention of torch and transformers)."""


def counted_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Bool [samples, length]: tokens that are not padding, and whose label is not ignored.

    Padding is what an ``attention_mask`` [samples, length] says, where there is one. A mask [samples, 1, length, length]
    says which tokens attend to which, and nothing of padding. Without ``labels`` none is ignored.
    """
    import torch

    counted = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is not None and mask.dim() == 2:
        counted &= mask.bool()
    if labels is not None:
        counted &= labels != IGNORED_LABEL
    return counted


def predicted_tokens(labels: Tensor) -> Tensor:
    """Bool [samples, length - 1]: tokens whose loss counts, from each sample's second on."""
    return labels[:, 1:] != IGNORED_LABEL
