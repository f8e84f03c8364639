"""Which tokens of a batch statistics run over."""

from __future__ import annotations

from torch import Tensor

from .calibration import IGNORED_LABEL


def counted_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Bool [samples, length]: tokens whose label is not ignored, and that are not padding."""
    counted = batch["labels"] != IGNORED_LABEL
    return counted & batch["attention_mask"].bool() if "attention_mask" in batch else counted
