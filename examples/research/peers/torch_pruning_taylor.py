"""torch-pruning: groups of coupled rows and columns, ranked by first-order Taylor scores of the loss on the text.

It can cut MLPs of a Llama. Heads that share keys fail in its graph, and hidden dimensions untie the embeddings.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_shear.data import Calibration


def cut_by_torch_pruning(
    model: PreTrainedModel, target: dict[str, int], calibration: Calibration
) -> PreTrainedModel | None:
    """MLPs; it has no way to others."""
    import torch_pruning

    if set(target) != {"intermediate_size"}:
        return None
    for batch in calibration.batches:
        model(input_ids=batch["input_ids"], labels=batch["input_ids"], use_cache=False).loss.backward()
    width = model.config.intermediate_size
    share = (width - target["intermediate_size"] - 0.5) / width  # it rounds what it keeps down
    mlps = [layer.mlp for layer in model.model.layers]
    pruned = {linear for mlp in mlps for linear in (mlp.gate_proj, mlp.up_proj)}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        calibration.batches[0]["input_ids"][:1],
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio_dict=dict.fromkeys(pruned, share),
        ignored_layers=[one for one in model.modules() if isinstance(one, nn.Linear) and one not in pruned],
        output_transform=lambda output: output.logits.sum(),
    )
    with torch.enable_grad():
        pruner.step()
    model.zero_grad()
    for mlp in mlps:
        mlp.intermediate_size = mlp.gate_proj.out_features
    model.config.intermediate_size = mlps[0].intermediate_size
    return model
