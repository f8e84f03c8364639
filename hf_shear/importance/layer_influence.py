"""How far each layer turns the residual stream: block influence, 1 - mean cos(x_in, x_out).

ShortGPT (arXiv 2403.03853) ranks layers by it, Adapt-Pruner (arXiv 2502.03460) allocates by it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling import ShearingMixin


@torch.no_grad()
def layer_influence(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Influence of each layer under the gates in use: one forward pass per batch.

    Args:
        model: a masked model, left as it is.
        batches: keyword arguments of its forward, on its device.

    Returns:
        float32 [layers], in [0, 2]; the mean over all tokens.
    """
    totals = torch.zeros(len(model.model.layers), dtype=torch.float64)
    num_tokens, was_training = 0, model.training

    def count(layer: int):
        def hook(module, args, output) -> None:
            after = output[0] if isinstance(output, tuple) else output
            totals[layer] += float((1 - F.cosine_similarity(args[0].float(), after.float(), dim=-1)).sum())

        return hook

    handles = [layer.register_forward_hook(count(index)) for index, layer in enumerate(model.model.layers)]
    model.eval()
    try:
        for inputs in batches:
            model(**inputs, use_cache=False)
            num_tokens += inputs["input_ids"].numel()
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return (totals / num_tokens).float()
