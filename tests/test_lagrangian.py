"""The sparsity constraint: its value, the direction in which each side moves, and the reference's numbers."""

import json

import pytest
import torch
from torch import nn

from hf_shear.masks import (
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    MaskPhase,
    MaskSettings,
    ShearingMasks,
)
from hf_shear.masks.hard_concrete import ascend, lagrangian_penalty
from hf_shear.shapes import ModelShape

REFERENCE_NAMES = {"head": KEY_VALUE_HEAD, "intermediate": INTERMEDIATE, "layer": LAYER, "hidden": HIDDEN}
REFERENCE_WARMUP_STEPS = 640


def test_penalty_by_hand():
    # Gaps .1 and -.2: mean of 2 * gap + 4 * gap^2 over the rows is (.24 - .24) / 2; of 3 * gap + 4 * gap^2: -.05.
    sparsity = torch.tensor([0.5, 0.2], dtype=torch.float64)
    first, second = torch.tensor(2.0), torch.tensor(4.0)
    assert lagrangian_penalty(sparsity, 0.4, first, second).item() == pytest.approx((0.24 - 0.24) / 2, abs=1e-12)
    assert lagrangian_penalty(sparsity, 0.4, first + 1, second).item() == pytest.approx(-0.05, abs=1e-12)


def test_ascend_keeps_the_value_and_negates_the_gradient():
    multiplier = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(ascend(multiplier), multiplier)
    (ascend(multiplier) * torch.tensor([3.0, 5.0], dtype=torch.float64)).sum().backward()
    assert multiplier.grad.tolist() == [-3.0, -5.0]


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("sparsity, sign", [(0.5, 1), (0.1, -1)])
def test_plain_descent_raises_the_multiplier_of_a_violated_constraint(make_optimizer, sparsity, sign):
    """gap = sparsity - target: above it lambda rises, below it falls; lambda_2 rises on either side."""
    linear, quadratic = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.3))
    optimizer = make_optimizer([linear, quadratic], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        before = linear.item(), quadratic.item()
        optimizer.zero_grad()
        lagrangian_penalty(torch.tensor([sparsity]), 0.3, ascend(linear), ascend(quadratic)).backward()
        optimizer.step()
        assert sign * (linear.item() - before[0]) > 1e-4
        assert quadratic.item() > before[1]


def test_multiplier_follows_adamw_on_the_negated_gradient():
    gaps = [0.4, 0.3, -0.1, 0.2]
    ours, theirs = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    settings = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    descent, ascent = torch.optim.AdamW([ours], **settings), torch.optim.AdamW([theirs], maximize=True, **settings)
    for gap in gaps:
        lagrangian_penalty(torch.tensor([0.5 + gap]), 0.5, ascend(ours), torch.zeros(())).backward()
        theirs.grad = torch.tensor(gap)
        descent.step(), ascent.step()
        descent.zero_grad()
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert ours.item() > 2


def test_constraint_reaches_its_target_under_one_plain_optimizer():
    """Ascent and descent together: a row that starts open ends with the sparsity asked for."""
    log_alpha = nn.Parameter(torch.linspace(2.0, 4.0, 32))
    masks = ShearingMasks(shape(32, 1, 1, 1, 8), shape(12, 1, 1, 1, 8), MaskSettings(method="hard_concrete"))
    with torch.no_grad():
        masks.log_alpha_hidden.copy_(log_alpha)
        masks.multiplier_linear.zero_(), masks.multiplier_quadratic.zero_()
    optimizer = torch.optim.AdamW(masks.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        masks.lagrangian().backward()
        optimizer.step()
    (hidden,) = masks.constrained
    assert masks.expected_sparsity(hidden).item() == pytest.approx(1 - 12 / 32, abs=0.01)


def shape(hidden, layers, heads, kv_heads, intermediate):
    return ModelShape(hidden, layers, heads, kv_heads, intermediate, head_dim=8)


@pytest.fixture(scope="module")
def reference(shared_data):
    path = shared_data / "reference" / "l0_module_target_shape.json"
    return json.loads(path.read_text())["cases"]["target_model_eval_target"]


@pytest.fixture
def reference_masks(reference):
    masks = ShearingMasks(shape(64, 5, 8, 8, 172), shape(48, 4, 6, 6, 128), MaskSettings(method="hard_concrete"))
    with torch.no_grad():
        for phase, name in enumerate(REFERENCE_NAMES):
            log_alpha = masks.log_alpha[REFERENCE_NAMES[name]]
            index = torch.arange(log_alpha.numel(), dtype=torch.float64)
            log_alpha.copy_((4 * torch.sin(0.7 * index + phase) + 0.5).reshape(log_alpha.shape))
        for index, kind in enumerate(masks.constrained):
            name = {ours: theirs for theirs, ours in REFERENCE_NAMES.items()}[kind.name]
            masks.multiplier_linear[index] = reference["lambdas"][f"lambda_1_{name}"]
            masks.multiplier_quadratic[index] = reference["lambdas"][f"lambda_2_{name}"]
    return masks


@pytest.mark.parametrize("step", [0, 100, 320, 640, 2000])
def test_reference_value_and_gradients(reference, reference_masks, step):
    masks, expected = reference_masks, reference["lagrangian"][str(step)]
    masks.phase = MaskPhase(budget_progress=min(step / REFERENCE_WARMUP_STEPS, 1.0))
    penalty = masks.lagrangian()
    assert penalty.item() == pytest.approx(expected["loss"], abs=5e-7)
    penalty.backward()
    for name, ours in REFERENCE_NAMES.items():
        index = [kind.name for kind in masks.constrained].index(ours)
        kind = masks.kinds[ours]
        assert masks.target_sparsity(kind) == pytest.approx(expected["log"][f"target_{name}_sparsity"], abs=1e-9)
        sparsity = masks.expected_sparsity(kind).mean().item()
        assert sparsity == pytest.approx(expected["log"][f"expected_{name}_sparsity"], abs=2e-7)
        # The reference ascends by a negative learning rate; here the gradient itself is negated.
        for number, gradient in ((1, masks.multiplier_linear.grad), (2, masks.multiplier_quadratic.grad)):
            theirs = expected["grad_lambda"][f"lambda_{number}_{name}"]
            assert -gradient[index].item() == pytest.approx(theirs, abs=2e-7)
        gradient = masks.log_alpha[ours].grad
        assert gradient.sum().item() == pytest.approx(expected["grad_z_loga_sum"][name], abs=2e-7)
        assert gradient.abs().sum().item() == pytest.approx(expected["grad_z_loga_abs_sum"][name], abs=2e-7)
