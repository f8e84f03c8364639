"""A target, settings and phases for the tiny masked Llama, with scores that are all different, and its gradients."""

import torch

from hf_shear.masks import MaskPhase, MaskSettings

TARGET = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 13,
}
PAPER = MaskSettings(method="hard_concrete", seed=5)
TRAINING_PHASE = MaskPhase(optimizer_step=3, temperature=0.5, noise_scale=0.4)


def scatter_masks(model, seed=0):
    """Random scores and multipliers, so that deterministic masks keep scattered units of every kind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.masks.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return model


def fresh(source, add_masks, method="relaxed_topk", target=TARGET, seed=0, **settings):
    model = add_masks(source, target, MaskSettings(method=method, **settings))
    return scatter_masks(model, seed)


def enable_checkpointing(model, options=None, **kwargs):
    """By the name that the installed transformers has for it: the older one is deprecated from 5.23 on."""
    older = not hasattr(model, "activation_checkpointing_enable")
    (model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable)(options, **kwargs)


def gradients(model, token_ids, lagrangian_share=1.0):
    model.zero_grad()
    output = model(token_ids, labels=token_ids)
    loss = output.loss
    if output.lagrangian_loss is not None:
        loss = loss + lagrangian_share * output.lagrangian_loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
