"""Biases for a model that has none, so that compensation can write to those of o_proj and down_proj."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PretrainedConfig

from ..core import UsageError
from ..modeling import ShearingModel
from ..shapes import OUTPUT_PROJECTIONS, family_of

COMPENSATED = tuple(name.split(".")[-1] for name in OUTPUT_PROJECTIONS)


def check_biases(config) -> None:
    """Raise ValueError where a config of this family has no flag for the biases of o_proj and down_proj."""
    family = family_of(config)
    lacking = [name for name in COMPENSATED if name not in family.biases]
    if lacking:
        raise UsageError(
            f"`compensation` by a bias needs one on {' and '.join(lacking)}, which no config of the family"
            f" {family.model_type!r} can have: the result would not be a stock checkpoint. Use 'least_squares', which"
            " changes weights alone."
        )


def config_with_biases(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of ``config`` with the flags that ``add_biases`` sets.

    Raises:
        ValueError: as ``check_biases``.
    """
    check_biases(config)
    config, family = copy.deepcopy(config), family_of(config)
    for name in COMPENSATED:
        if not family.has_bias(name, config):
            setattr(config, family.biases[name], True)
    return config


def add_biases(model: ShearingModel) -> None:
    """Set the config's flags that give o_proj and down_proj a bias (``attention_bias`` and ``mlp_bias`` of a Llama).

    Whatever a flag gives a bias to gets one. Those that are added are zero: the model computes what it did. Call it
    before an optimizer is made of the model's parameters.

    Raises:
        ValueError: as ``check_biases``.
    """
    check_biases(model.config)
    family = model.family
    for flag in {family.biases[name] for name in COMPENSATED if not family.has_bias(name, model.config)}:
        setattr(model.config, flag, True)
        for layer in model.model.layers:
            for name, module in layer.named_modules():
                if family.biases.get(name.split(".")[-1]) == flag:
                    zero = torch.zeros(module.out_features, dtype=module.weight.dtype, device=module.weight.device)
                    module.bias = nn.Parameter(zero, requires_grad=module.weight.requires_grad)
