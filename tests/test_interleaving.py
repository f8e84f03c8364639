"""Interleaved pruning: the target's shape, one clock, the budget in tokens, and nothing but kept units trained."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from training_helpers import (
    LENGTH,
    TARGET,
    RecordingTrainer,
    held_out_domains,
    make_args,
    masked_model,
    plain_model,
    train_domains,
)

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.core import StoppedBySignal, UsageError
from hf_shear.data import Calibration
from hf_shear.pruning import PruneConfig, prune_interleaved, pruning_steps
from hf_shear.pruning.interleave import InterleavedTrainer
from hf_shear.shapes import ModelShape

STEP_TOKENS = 4 * LENGTH
CLOCK = {"lr_scheduler_type": "cosine", "warmup_steps": 0.2, "max_steps": -1, "num_tokens": 10 * STEP_TOKENS}


def rates(trainer) -> list[float]:
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


@pytest.fixture
def calibration():
    ids = torch.tensor(train_domains()["books"][:8]["input_ids"])
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4)


@pytest.mark.parametrize(
    "choice",
    [
        {},  # the LLM Surgeon, and least squares
        {"criterion": "taylor", "compensation": "none"},
        {"criterion": "taylor", "compensation": "least_squares_bias:towards=source"},
    ],
)
def test_the_target_is_reached_under_one_clock_and_budget(tmp_path, calibration, choice):
    source = plain_model(attention_dropout=0.0)
    weights = {name: value.clone() for name, value in source.state_dict().items()}
    args = make_args(tmp_path / "a", **CLOCK)
    config = PruneConfig(num_shots=3, **choice)
    found = prune_interleaved(source, TARGET, calibration, config, args, train_domains(), held_out_domains())
    trainer = found.trainer
    assert {name: getattr(found.model.config, name) for name in TARGET} == TARGET
    assert trainer.tokens_seen() == CLOCK["num_tokens"]
    assert trainer.events == {0: 1 / 3, 1: 2 / 3, 3: 1.0}
    single = RecordingTrainer(plain_model(attention_dropout=0.0), make_args(tmp_path / "b", **CLOCK), train_domains(),
                              held_out_domains())  # fmt: skip
    single.train()
    assert len(rates(trainer)) == 10 and rates(trainer) == rates(single)
    assert all(torch.equal(value, weights[name]) for name, value in source.state_dict().items())

    ids = calibration.batches[0]["input_ids"]
    with torch.no_grad(), trainer.masked_model.eval().use_gates(trainer.gates):
        assert torch.allclose(trainer.masked_model(ids).logits, found.model(ids).logits, atol=1e-5)
    losses = trainer.evaluate(held_out_domains())  # after training, too, the closed units stay closed
    sliced = RecordingTrainer(found.model, make_args(tmp_path / "c"), train_domains(), held_out_domains())
    assert losses["eval_loss"] == pytest.approx(sliced.evaluate(held_out_domains())["eval_loss"], abs=1e-5)


def test_each_stage_scores_what_the_ones_before_trained_and_closed(tmp_path):
    seen = []

    def prune(model, gates, progress):
        seen.append((progress, dict(gates), model.model.embed_tokens.weight.detach().clone()))
        gate = torch.ones(3, 24)
        gate[:, : round(8 * progress)] = 0
        return {"intermediate": gate}

    model = ShearingLlamaForCausalLM.from_model(plain_model(attention_dropout=0.0))
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = make_args(tmp_path, max_steps=8, weight_decay=0.0)
    trainer = InterleavedTrainer(model, args, train_domains(), prune=prune, config=PruneConfig(num_shots=2))
    trainer.train()
    assert [progress for progress, _, _ in seen] == [0.5, 1.0] and trainer.events == {0: 0.5, 2: 1.0}
    assert seen[0][1] == {} and int(seen[1][1]["intermediate"][0].sum()) == 20
    assert not torch.equal(seen[0][2], seen[1][2])
    for name, value in model.named_parameters():
        if name.endswith("gate_proj.weight"):
            assert torch.equal(value[:4], start[name][:4])  # closed from the first step on: never trained
            assert not torch.equal(value[4:8], start[name][4:8])
            assert not torch.equal(value[8:], start[name][8:])


def test_a_run_that_a_signal_stops_goes_on_as_the_one_that_was_not_stopped(tmp_path, calibration, monkeypatch):
    def run(folder, **more):
        args = make_args(tmp_path / folder, **CLOCK)
        return prune_interleaved(plain_model(), TARGET, calibration, PruneConfig(num_shots=4), args, train_domains(),
                                 held_out_domains(), **more)  # fmt: skip

    whole = run("a")
    remove = InterleavedTrainer.remove_units

    def stopped_while_removing(trainer, progress):
        if progress == 0.75:
            os.kill(os.getpid(), signal.SIGTERM)
        remove(trainer, progress)

    with monkeypatch.context() as patch:
        patch.setattr(InterleavedTrainer, "remove_units", stopped_while_removing)
        with pytest.raises(StoppedBySignal, match="which is saved in"):
            run("b")
    again = run("b", resume_from_checkpoint=True)
    assert again.kept == whole.kept
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_moments_go_on_or_start_anew(tmp_path):
    ages = {}
    for restart in (False, True):
        model = ShearingLlamaForCausalLM.from_model(plain_model())
        trainer = InterleavedTrainer(
            model, make_args(tmp_path, max_steps=4), train_domains(), prune=lambda *_: {},
            config=PruneConfig(num_shots=2, pruning_share=1.0), restart_moments=restart,
        )  # fmt: skip
        trainer.train()
        ages[restart] = int(trainer.optimizer.state[model.model.norm.weight]["step"])
    assert ages == {False: 4, True: 2}


@pytest.mark.parametrize("num_shots, share, most", [(11, 1.0, 10), (6, None, 5), (6, 0.5, 5)])
def test_more_shots_than_steps_are_refused(num_shots, share, most):
    message = rf"`num_shots` .* must be at most the {most} optimizer steps .*, but it is {num_shots}. Train on"
    with pytest.raises(UsageError, match=message):
        pruning_steps(10, PruneConfig(num_shots=num_shots, pruning_share=share))


def test_models_that_do_not_fit_are_refused(tmp_path):
    for model in (plain_model(), masked_model()):
        with pytest.raises(ValueError, match="`model` must have masks and no target of its own"):
            InterleavedTrainer(model, make_args(tmp_path), train_domains(), prune=lambda *_: {}, config=PruneConfig())


def test_a_budget_is_shared_by_layers_and_protected_ones_stay(tmp_path, calibration):
    """The loop is that of one-shot pruning, so that its allocations serve here too."""
    config = PruneConfig("taylor", "least_squares", 2, "global", ["intermediate", "layer"], protect=[0])
    config = replace(config, criterion={"default": "taylor", "layer": "loss_rise"}, pruning_share=0.5)
    source, args = plain_model(attention_dropout=0.0), make_args(tmp_path, max_steps=4)
    found = prune_interleaved(source, 0.7, calibration, config, args, train_domains())
    assert found.uneven and found.num_parameters <= found.budget <= 0.7 * source.num_parameters()
    assert 0 in found.kept.layers and len(found.kept.intermediate[0]) == source.config.intermediate_size
    ids = calibration.batches[0]["input_ids"]
    with torch.no_grad(), found.trainer.masked_model.eval().use_gates(found.trainer.gates):
        assert torch.allclose(found.trainer.masked_model(ids).logits, found.model(ids).logits, atol=1e-5)


def test_shapes_are_those_of_the_trained_model(tmp_path, calibration):
    args = make_args(tmp_path, max_steps=4)
    config = PruneConfig(num_shots=2)
    found = prune_interleaved(plain_model(), TARGET, calibration, config, args, train_domains())
    shape = ModelShape.from_config(found.model.config)
    assert shape.num_hidden_layers == len(found.kept.layers) == TARGET["num_hidden_layers"]
