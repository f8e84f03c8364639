"""NVIDIA Model Optimizer: what its importance hooks score without Megatron, cut by our slicing and not compensated.

Its own pruning of language models (Minitron) needs Megatron, and Puzzletron trains a library of blocks. Both score by the
hooks that are run here: neurons by their share in the output of down_proj, chosen a few at each sample; groups of heads
by the size of what they add; hidden dimensions by the size of what norms give.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import PreTrainedModel

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.criteria import criterion
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, QUERY_HEAD


def cut_by_modelopt(model: PreTrainedModel, target: dict[str, int], calibration: Calibration) -> PreTrainedModel | None:
    """MLPs, whole groups of heads and hidden dimensions; it has no way to layers."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    heads = {name: target.get(name, getattr(config, name)) for name in ("num_attention_heads", "num_key_value_heads")}
    if "num_hidden_layers" in target or heads["num_attention_heads"] != group * heads["num_key_value_heads"]:
        return None
    scores = _scores(model, calibration)

    @criterion(ranks=tuple(scores))
    def by_hooks(model, calibration):
        return scores

    return prune_one_shot(model, target, calibration, PruneConfig(by_hooks, compensation="none")).model


@torch.no_grad()
def _scores(model: PreTrainedModel, calibration: Calibration) -> dict[str, torch.Tensor]:
    """By kind of unit, [*rows, units]."""
    from modelopt.torch.prune.importance_hooks import base_hooks

    samples = [sample[None] for batch in calibration.batches for sample in batch["input_ids"]]
    iterative = {"validation_full_iters": len(samples), "calibration_method": "scale_by_magnitude"}
    block = SimpleNamespace(attention=SimpleNamespace(num_key_value_heads=model.config.num_key_value_heads))
    layers, hooked, norms = model.model.layers, {}, [model.model.norm]
    for layer in layers:
        down, out = layer.mlp.down_proj, layer.self_attn.o_proj
        hooked[down] = base_hooks.IterativeChannelContributionHook(down, iterative)
        hooked[out] = base_hooks.IndependentKvHeadContributionHook(out, {"model": model, "block_config": block})
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    hooked |= {norm: base_hooks.LayerNormContributionHook(norm, {}) for norm in norms}
    handles = [module.register_forward_hook(hook) for module, hook in hooked.items()]
    for sample in samples:
        model(input_ids=sample, use_cache=False)
    for handle in handles:
        handle.remove()
    found = {module: hook.accumulate().float() for module, hook in hooked.items()}
    heads = torch.stack([found[layer.self_attn.o_proj] for layer in layers])
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    return {
        HIDDEN: torch.stack([found[norm] for norm in norms]).sum(dim=0),
        KEY_VALUE_HEAD: heads,
        QUERY_HEAD: heads[:, :, None].repeat(1, 1, group),
        INTERMEDIATE: torch.stack([found[layer.mlp.down_proj] for layer in layers]),
    }
