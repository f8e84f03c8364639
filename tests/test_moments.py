"""AdamW's moments carried over the cut: the sliced model goes on exactly as the masked one would have."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import make_args, make_trainer, masked_model, plain_model

from hf_shear import slice_model
from hf_shear.masks import MaskPhase
from hf_shear.training.moments import load_moments, save_kept_moments

HARD = MaskPhase(hardening=1.0)  # gates of exactly 0 and 1, as in the last steps of mask learning


def train(model, optimizer, first: int, num_steps: int) -> None:
    """Steps on seeded batches, clipped as the trainer clips: without masks."""
    weights = [p for name, p in model.named_parameters() if not name.startswith("masks.")]
    for step in range(first, first + num_steps):
        ids = torch.randint(3, 61, (4, 12), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def adamw(model) -> torch.optim.AdamW:
    weights = [p for name, p in model.named_parameters() if not name.startswith("masks.")]
    return torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)


def largest_difference(first, second) -> float:
    found, wanted = first.state_dict(), second.state_dict()
    assert found.keys() == wanted.keys()
    return max((found[name] - wanted[name]).abs().max().item() for name in found)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 6}],
    ids=["grouped", "tied", "biased", "multi-head"],
)
def test_the_sliced_model_goes_on_as_the_masked_one_would(changes, tmp_path):
    model = masked_model(attention_dropout=0.0, **changes).train()
    model.set_mask_phase(HARD)
    optimizer = adamw(model)
    train(model, optimizer, 0, 5)
    sliced, kept = slice_model(model)
    file = tmp_path / "moments.safetensors"
    save_kept_moments(file, optimizer, model, kept, model.masks.source.head_dim)
    afresh, _ = slice_model(model)

    carried, fresh = adamw(sliced), adamw(afresh)
    load_moments(file, carried, sliced)
    train(sliced.train(), carried, 5, 5)
    train(afresh.train(), fresh, 5, 5)
    train(model, optimizer, 5, 5)
    wanted, _ = slice_model(model)
    assert largest_difference(sliced, wanted) < 2e-5
    assert largest_difference(afresh, wanted) > 1e-3  # what is carried matters


@pytest.fixture
def learned(tmp_path):
    """A trainer that has learned masks, the sliced model, and the file of its moments."""
    trainer = make_trainer(masked_model(), make_args(tmp_path / "masks"))
    trainer.train()
    sliced, kept = slice_model(trainer.masked_model)
    file = tmp_path / "moments.safetensors"
    assert trainer.save_moments(file, kept) is True
    return trainer, sliced, file


def test_a_trainer_starts_from_the_moments_of_another(learned, tmp_path):
    trainer, sliced, file = learned
    recovery = make_trainer(sliced, make_args(tmp_path / "recovery", start_moments=str(file)))
    optimizer = recovery.create_optimizer()
    saved = load_file(file)
    assert saved["step"].item() == trainer.state.global_step == 8
    for name, parameter in sliced.named_parameters():
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], saved[f"exp_avg:{name}"]), name
        assert torch.equal(state["exp_avg_sq"], saved[f"exp_avg_sq:{name}"]), name
        assert state["exp_avg_sq"].any(), name
    recovery.train()
    assert {state["step"].item() for state in recovery.optimizer.optimizer.state.values()} == {16}


def test_moments_of_another_model_are_refused(learned, tmp_path):
    _, sliced, file = learned
    other = make_trainer(plain_model(), make_args(tmp_path / "other", start_moments=str(file)))
    with pytest.raises(
        ValueError, match=r"`start_moments=.*` is of another model: 30 weights differ .* 'lm_head.weight'"
    ):
        other.create_optimizer()
    moments = load_file(file)
    moments["exp_avg:model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(moments, file)
    surplus = make_trainer(sliced, make_args(tmp_path / "surplus", start_moments=str(file)))
    with pytest.raises(
        ValueError, match="is of another model: 1 weights differ .* 'model.layers.9.mlp.up_proj.weight'"
    ):
        surplus.create_optimizer()


def test_what_cannot_take_moments_is_refused(learned, tmp_path):
    _, sliced, file = learned
    sgd = make_trainer(sliced, make_args(tmp_path / "sgd", start_moments=str(file), optim="sgd"))
    with pytest.raises(ValueError, match="`start_moments` needs AdamW, but the optimizer is SGD"):
        sgd.create_optimizer()
    with pytest.raises(ValueError, match="`start_moments='nowhere'` is not a file"):
        make_trainer(sliced, make_args(tmp_path / "missing", start_moments="nowhere"))


def test_an_optimizer_without_moments_writes_none(tmp_path):
    trainer = make_trainer(masked_model(), make_args(tmp_path / "masks", optim="sgd"))
    trainer.train()
    _, kept = slice_model(trainer.masked_model)
    assert trainer.save_moments(tmp_path / "moments.safetensors", kept) is False
    assert not (tmp_path / "moments.safetensors").exists()
