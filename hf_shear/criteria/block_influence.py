"""How much a layer turns the residual stream (ShortGPT, arXiv 2403.03853, section 2.3; Adapt-Pruner, arXiv 2502.03460)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calibration import Batch, observe
from ..core import sum_over_ranks
from ..data import Calibration
from ..masks import LAYER
from ..modeling import ShearingMixin
from .criterion import Scores, criterion


@criterion(ranks=(LAYER,))
def block_influence(model: ShearingMixin, calibration: Calibration) -> Scores:
    """1 - mean over counted tokens of cos(x_in, x_out) of each layer, from one forward per batch.

    Returns:
        float32 [layers] in [0, 2]; 0 for a layer that only scales, or is closed.

    Raises:
        ValueError: no token counts.
    """
    gaps = torch.zeros(model.masks.kinds[LAYER].num_units, dtype=torch.float64, device=model.device)
    count = torch.zeros((), dtype=torch.float64, device=model.device)

    def see(index: int, inputs: Tensor, outputs: Tensor, batch: Batch) -> None:
        if index == 0:  # each batch is counted once
            count.add_(batch.num_tokens)
        cosine = F.cosine_similarity(inputs.float(), outputs.float(), dim=-1)
        gaps[index] += ((1 - cosine) * batch.counted).sum()

    pairs = {layer: partial(see, index) for index, layer in enumerate(model.model.layers)}
    observe(model, calibration.batches, pairs=pairs)
    sum_over_ranks(gaps, count)
    return {LAYER: (gaps / count).float()}
