"""Well-known checkpoints by their configs alone: counts, targets, budgets, memory, without any weights."""

import pytest
import torch
from real_configs import REAL_CONFIGS

from hf_shear import MaskSettings
from hf_shear.modeling.auto_class import shearing_class
from hf_shear.shapes import SHAPE_NAMES, TargetShape, config_for_shape, count_parameters, family_of, shape_for_budget
from hf_shear.training.memory import estimate_memory
from hf_shear.training.memory_setup import TrainingSetup

pytestmark = pytest.mark.parametrize("real", REAL_CONFIGS, ids=lambda real: real.name)


def on_meta(config, model_class):
    with torch.device("meta"):
        return model_class(config)


def test_counts_are_the_published_ones(real):
    config = real.config()
    assert count_parameters(config) == real.published
    assert on_meta(config, family_of(config).model_class).num_parameters() == real.published


def test_a_budget_of_half_gives_a_shape_that_can_be_built(real):
    config = real.config()
    choice = shape_for_budget(config, num_parameters=real.published // 2)
    count = count_parameters(config, choice.shape)
    assert 0.48 * real.published < count <= real.published // 2
    cut = config_for_shape(config, choice.shape)
    assert on_meta(cut, family_of(config).model_class).num_parameters() == count
    masked = shearing_class(config)
    target = TargetShape.from_source(config, **choice.shape.sizes())
    model = on_meta(masked.config_class.from_source(config, target, MaskSettings()), masked)
    assert model.masks.target.sizes() == choice.shape.sizes()


def test_a_target_above_the_source_is_refused(real):
    config = real.config()
    for name in SHAPE_NAMES:
        with pytest.raises(ValueError, match=f"`{name}` must be between 1 and the source's"):
            TargetShape.from_source(config, **{name: getattr(config, name) + 1})


def test_memory_is_estimated_without_weights(real):
    """Full training in float32 with AdamW: four numbers of four bytes for every parameter, and activations above that."""
    setup = TrainingSetup(1, 2048, autocast=True, activation_checkpointing=True)
    estimate = estimate_memory(real.config(), setup)
    assert 16 * real.published < estimate.peak < 19 * real.published + 12e9
