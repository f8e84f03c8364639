"""Masks learned without gradients: they find what matters, sum to the target, and are drawn from the seed."""

from __future__ import annotations

import pytest
import torch

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.criteria.policy_gradient import LOWEST_PROBABILITY, policy_gradient, project
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE
from hf_shear.pruning import PruneConfig, prune_one_shot, score_units


@pytest.fixture
def source(build_llama):
    """Half of the neurons do nothing, the others much."""
    model = build_llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, ::2] = 0
        model.model.layers[0].mlp.down_proj.weight.mul_(3)
    return model


@pytest.fixture
def calibration(source):
    """What the source itself says, so that every one of its neurons that does something is needed."""
    prompt = torch.randint(3, 40, (8, 4), generator=torch.Generator().manual_seed(0))
    ids = source.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return Calibration([{"input_ids": ids, "labels": ids}], seed=3)


def test_it_beats_random_by_forward_passes_alone(source, calibration, monkeypatch):
    forbidden = "no gradient may be computed"
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: pytest.fail(forbidden))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **kwargs: pytest.fail(forbidden))
    graphs = []
    source.lm_head.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
    model = ShearingLlamaForCausalLM.from_model(source, {"intermediate_size": 11})
    model.lm_head.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
    choice = "policy_gradient:steps=60"
    scores = score_units(model, choice, calibration, [INTERMEDIATE])[INTERMEDIATE][0]
    assert len(graphs) == 240 and not any(graphs)
    assert scores[1::2].mean() > 2 * scores[::2].mean()
    assert float(scores.sum()) == pytest.approx(11, abs=1e-3)
    assert torch.equal(score_units(model, choice, calibration, [INTERMEDIATE])[INTERMEDIATE][0], scores)

    def loss(criterion, seed=3):
        text = Calibration(calibration.batches, seed)
        pruned = prune_one_shot(
            source, {"intermediate_size": 11}, text, PruneConfig(criterion, "none", num_shots=1)
        ).model
        with torch.no_grad():
            return pruned(**calibration.batches[0]).loss.item()

    assert loss(choice) < min(loss("random", seed) for seed in range(3))


def test_closed_units_stay_closed_and_kinds_that_lose_nothing_open(source, calibration):
    model = ShearingLlamaForCausalLM.from_model(source, {"intermediate_size": 11})
    gates = {INTERMEDIATE: torch.ones(1, 22)}
    gates[INTERMEDIATE][0, :6] = 0
    with model.use_gates(gates):
        found = policy_gradient(model, calibration, steps=3)
    assert (found[INTERMEDIATE][0, :6] == 0).all() and (found[INTERMEDIATE][0, 6:] > 0).all()
    assert float(found[INTERMEDIATE].sum()) == pytest.approx(11, abs=1e-3)
    assert (found[HIDDEN] == 1).all()


@pytest.mark.parametrize("num_kept", [1, 5, 9])
def test_the_projection_is_the_nearest_point(num_kept):
    generator = torch.Generator().manual_seed(num_kept)
    values = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    found = project(values, num_kept)
    torch.testing.assert_close(found.sum(dim=1), torch.full((4,), float(num_kept), dtype=torch.float64))
    assert (found >= LOWEST_PROBABILITY - 1e-9).all() and (found <= 1 - LOWEST_PROBABILITY + 1e-9).all()
    inside = (found > LOWEST_PROBABILITY + 1e-9) & (found < 1 - LOWEST_PROBABILITY - 1e-9)
    for row, moved, free in zip(values, found, inside, strict=True):
        shift = (row - moved)[free]
        assert len(shift) == 0 or float(shift.max() - shift.min()) < 1e-9  # the same for all that are not at a bound
    for _ in range(200):  # no other allowed point is nearer
        other = project(values + torch.randn(4, 10, generator=generator, dtype=torch.float64), num_kept)
        assert ((other - values).square().sum(1) >= (found - values).square().sum(1) - 1e-9).all()


def test_rows_with_no_more_open_units_than_are_kept_keep_them_all():
    open_now = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = project(torch.rand(2, 4), 2, open_now)
    assert found[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert float(found[1].sum()) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ("steps=0", "`steps` of `Criterion 'policy_gradient'` must be at least 1, but it is 0"),
        ("masks_per_step=1", "`masks_per_step` of .* must be at least 2"),
        ("step_size=0", "`step_size` of .* must be above 0"),
    ],
)
def test_bad_settings_are_refused(source, calibration, options, message):
    with pytest.raises(ValueError, match=message):
        prune_one_shot(source, {"intermediate_size": 11}, calibration, PruneConfig(f"policy_gradient:{options}"))
