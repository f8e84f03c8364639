"""Layers that stay under any criterion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hf_shear.data import Calibration
from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.pruning.plan import protected_layers


@pytest.mark.parametrize(
    "choice, found",
    [
        ("first:2,last:1", [0, 1, 7]),
        ("3", [3]),
        ("3, last:2,first:0", [3, 6, 7]),
        ([5, 0], [0, 5]),
        ((), []),
        ("", []),
        ("first:1,0", [0]),
    ],
)
def test_layers_are_named_by_place_or_index(choice, found):
    assert protected_layers(choice, 8, 5) == found


@pytest.mark.parametrize("choice", ["first", "first:-1", "middle:2", "8", "-1", "last:9", "first:x", [8], [-1]])
def test_what_is_no_layer_is_refused(choice):
    with pytest.raises(ValueError, match="`protect` has the part .*must be the index of one of the source's 8 layers"):
        protected_layers(choice, 8, 5)


def test_more_than_the_target_keeps_are_refused():
    with pytest.raises(ValueError, match="`protect` 'first:3,last:3' protects 6 layers, but the target keeps 5"):
        protected_layers("first:3,last:3", 8, 5)


@pytest.mark.parametrize("num_shots", [1, 2])
@pytest.mark.parametrize("criterion", ["loss_rise", "joint_rise", "block_influence", "random", "magnitude", "taylor"])
def test_protected_layers_stay(build_llama, criterion, num_shots):
    source = build_llama(num_hidden_layers=4)
    with torch.no_grad():  # layers that would be the first to go
        for index in (0, 3):
            source.model.layers[index].self_attn.o_proj.weight.mul_(1e-3)
            source.model.layers[index].mlp.down_proj.weight.mul_(1e-3)
    ids = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(3))
    text = Calibration([{"input_ids": ids, "labels": ids}])
    config, arguments = PruneConfig(criterion, "none", num_shots), (source, {"num_hidden_layers": 2}, text)
    assert prune_one_shot(*arguments, replace(config, protect="first:1,last:1")).kept.layers == [0, 3]
    if criterion in ("block_influence", "taylor"):  # the loss of random weights says nothing
        assert prune_one_shot(*arguments, config).kept.layers == [1, 2]
