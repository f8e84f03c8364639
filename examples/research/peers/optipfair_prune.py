"""optipfair: neurons by `MAW` (largest absolute weights) times the size of activations, layers by cosine similarity."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hf_shear.data import Calibration


def cut_by_optipfair(
    model: PreTrainedModel, target: dict[str, int], calibration: Calibration
) -> PreTrainedModel | None:
    """MLPs or layers; it has no way to others."""
    from optipfair import prune_model
    from optipfair.pruning.depth import analyze_layer_importance

    batches = [
        {"input_ids": one["input_ids"], "attention_mask": torch.ones_like(one["input_ids"])}
        for one in calibration.batches
    ]
    if set(target) == {"intermediate_size"}:
        removed = model.config.intermediate_size - target["intermediate_size"]
        share = 100 * (removed + 0.5) / model.config.intermediate_size  # it rounds down
        return prune_model(model, "MLP_GLU", "MAW", share, dataloader=batches, show_progress=False)
    if set(target) == {"num_hidden_layers"}:
        scores = analyze_layer_importance(model, batches, show_progress=False)
        number = model.config.num_hidden_layers - target["num_hidden_layers"]
        least = sorted(sorted(scores, key=scores.get)[:number])
        return prune_model(model, "DEPTH", layer_indices=least, layer_selection_method="custom", show_progress=False)
    return None
