"""Deterministic masks and expected sizes are the reference's own, on the same scores."""

import json
import math

import pytest
import torch
from mask_helpers import make_masks

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER
from hf_shear.shapes import ModelShape

REFERENCE_NAMES = {"head": KEY_VALUE_HEAD, "intermediate": INTERMEDIATE, "layer": LAYER, "hidden": HIDDEN}
REFERENCE_MASKS = {
    "head_z": KEY_VALUE_HEAD,
    "intermediate_z": INTERMEDIATE,
    "head_layer_z": LAYER,
    "mlp_z": LAYER,
    "hidden_z": HIDDEN,
}


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data / "reference" / "l0_module_target_shape.json").read_text())["cases"]


@pytest.fixture(scope="module")
def reference_masks():
    source, target = ModelShape(64, 5, 8, 8, 172, head_dim=8), ModelShape(48, 4, 6, 6, 128, head_dim=8)
    log_alpha = {}
    for phase, (name, ours) in enumerate(REFERENCE_NAMES.items()):
        shape = {"head": (5, 8), "intermediate": (5, 172), "layer": (5,), "hidden": (64,)}[name]
        index = torch.arange(math.prod(shape), dtype=torch.float64)
        log_alpha[ours] = (4 * torch.sin(0.7 * index + phase) + 0.5).reshape(shape)
    return make_masks(source, target, log_alpha, method="hard_concrete")


@pytest.mark.parametrize("name", REFERENCE_MASKS)
def test_reference_deterministic_masks(reference, reference_masks, name):
    ours = reference_masks.deterministic()[REFERENCE_MASKS[name]]
    expected = reference["target_model_eval_target"]["deterministic_z"][name]
    assert [*reference_masks.kinds[REFERENCE_MASKS[name]].mask_shape] == [n for n in expected["shape"] if n != 1]
    theirs = torch.tensor(expected["z"]).reshape(ours.shape)
    assert ((ours == 0) == (theirs == 0)).all()
    assert (ours == 0).sum().item() == reference["target_model_eval_target"]["n_zero"][name]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_expected_shape(reference, reference_masks, name):
    kind = reference_masks.kinds[REFERENCE_NAMES[name]]
    expected = torch.tensor(reference["target_model_eval_target"]["expected_score"][name])
    torch.testing.assert_close(reference_masks.expected_open(kind).detach().flatten(), expected, rtol=0, atol=2e-7)
    key = {"head": "num_key_value_heads", "hidden": "hidden_size", "layer": "num_hidden_layers"}.get(
        name, "intermediate_size"
    )
    per_layer = expected.sum().item() / (5 if name in ("head", "intermediate") else 1)
    assert reference_masks.expected_shape()[key] == pytest.approx(per_layer, rel=1e-6)
