"""All masks of one small shape, at their start or with scores that are all different, and comparisons of their gates."""

import torch

from hf_shear.masks import STRATEGIES, MaskSettings, ShearingMasks
from hf_shear.shapes import ModelShape

METHODS = tuple(STRATEGIES)
# 4 layers, 3 groups of 3 queries each
SOURCE = ModelShape(18, 4, 9, 3, 22, head_dim=4)
TARGET = ModelShape(12, 3, 4, 2, 13, head_dim=4)


def make_masks(source=SOURCE, target=TARGET, log_alpha=None, **settings_fields):
    """Masks at their start, or with random (seed, an integer) or given scores."""
    masks = ShearingMasks(source, target, MaskSettings(**settings_fields))
    masks.load_state_dict(masks.start_parameters())
    with torch.no_grad():
        if isinstance(log_alpha, int):
            generator = torch.Generator().manual_seed(log_alpha)
            for parameter in masks.log_alpha.values():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        elif log_alpha is not None:
            for name, values in log_alpha.items():
                masks.log_alpha[name].copy_(torch.as_tensor(values))
    return masks


def assert_same_gates(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def differs_everywhere(left, right):
    return all(not torch.equal(left[name], right[name]) for name in left)
