"""The mixture of domains in a run of ShearTrainer: its rule, its reference losses, and proportions that stay."""

from __future__ import annotations

import pytest
from training_helpers import (
    held_out_domains,
    make_args,
    make_trainer,
    masked_model,
    plain_model,
    stop_workers,
    train_domains,
    trained,
)

from hf_shear import DynamicBatchSampler
from hf_shear.data import damped_excess, update_mixture_weights
from hf_shear.training import evaluate_domains, evaluate_samples


def _evaluations(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "eval_loss" in row]


def _mixture(row: dict) -> dict[str, float]:
    return {name: row[f"mixture/{name}"] for name in train_domains()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_weights_follow_the_rule_and_the_very_next_batch_follows_them(tmp_path, num_workers):
    references = {"books": 4.0, "code": 3.0, "wiki": 9.0}
    start = {"books": 1, "code": 1, "wiki": 2}
    trainer = trained(
        tmp_path, plain_model(), max_steps=8, eval_strategy="steps", eval_steps=3, reference_losses=references,
        mixture_weights=start, dataloader_num_workers=num_workers, gradient_accumulation_steps=2, data_seed=11,
        mixture_floor=0.05, mixture_ceiling=0.6, clamp_excess=False, mixture_update="paper",
    )  # fmt: skip
    if num_workers:
        stop_workers(trainer)
    assert [row["step"] for row in _evaluations(trainer)] == [3, 6, 8]
    weights = {"books": 0.25, "code": 0.25, "wiki": 0.5}
    options = {"clamp_excess": False, "floor": 0.05, "ceiling": 0.6}
    weights_at = {0: weights}
    for row in _evaluations(trainer):
        losses = {name: row[f"eval_{name}_loss"] for name in references}
        weights = update_mixture_weights(weights, losses, references, **options)
        assert _mixture(row) == weights
        assert {name: row[f"reference/{name}"] for name in references} == references
        weights_at[row["step"]] = weights
    train = train_domains()
    samples = [sample for dataset in train.values() for sample in dataset["input_ids"]]
    sampler = DynamicBatchSampler({name: len(dataset) for name, dataset in train.items()}, 8, start, seed=11)
    for step in range(8):
        if step in weights_at:
            sampler.set_mixture_weights(weights_at[step])
        batch = sum((record["input_ids"] for record in trainer.records if record["step"] == step), [])
        assert batch == [samples[index] for index in sampler.peek_global_batch()], step
        sampler.commit()


def test_reference_losses_are_the_sources_own(tmp_path):
    """All gates open, however closed the masks are, and before any training."""
    trainer = trained(tmp_path, masked_model("relaxed_topk"), max_steps=2, eval_strategy="steps", eval_steps=2)
    judged = trainer.domains.steering_samples()
    expected, _ = evaluate_domains(plain_model(), judged, 8)
    assert trainer.domains.reference_losses == pytest.approx(expected, abs=1e-5)
    masked, _ = evaluate_domains(masked_model("relaxed_topk"), judged, 8)
    assert max(abs(masked[name] - expected[name]) for name in expected) > 0.05
    plain = trained(tmp_path, plain_model(), max_steps=2, eval_strategy="steps", eval_steps=2)
    assert plain.domains.reference_losses == pytest.approx(expected, abs=1e-6)


def test_proportions_are_constant_when_asked_for(tmp_path):
    start = {"books": 0.5, "code": 0.25, "wiki": 0.25}
    trainer = trained(tmp_path, plain_model(), dynamic_batches=False, mixture_weights=start, eval_strategy="steps",
                      eval_steps=2, max_steps=6)  # fmt: skip
    assert [_mixture(row) for row in _evaluations(trainer)] == [start] * 3
    assert all(record["mixture_weights"] == start for record in trainer.records)
    assert trainer.domains.reference_losses is None
    assert trainer.stage_record("recovery")["history"][0]["mixture_weights"] == start
    assert "reference_loss" not in trainer.stage_record("recovery")["history"][0]


def test_the_evaluation_for_references_is_counted(tmp_path):
    trainer = trained(tmp_path, plain_model(), eval_strategy="steps", eval_steps=4)
    record = trainer.stage_record("recovery")
    assert record["reference_tokens"] == record["history"][0]["eval_tokens"] > 0
    given = trained(tmp_path, plain_model(), eval_strategy="steps", eval_steps=4,
                    reference_losses=trainer.domains.reference_losses)  # fmt: skip
    assert given.stage_record("recovery")["reference_tokens"] == 0


PLANNED = {"max_steps": 43, "eval_strategy": "steps"}  # two evaluations, after 14 and 29 steps


def assert_damped(trainer, noise_of) -> None:
    """Excess losses and their errors in the log, and weights that follow the rule of both."""
    weights = dict.fromkeys(train_domains(), 1 / 3)
    rows = trainer.stage_record("recovery")["history"]
    assert len(rows) == 2
    for row in rows:
        damped = damped_excess(row["excess_loss"], row["standard_error"])
        assert max(damped.values()) > min(damped.values()) or row["mixture_weights"] == pytest.approx(weights)
        weights = update_mixture_weights(weights, damped, dict.fromkeys(damped, 0.0))
        assert row["mixture_weights"] == weights
        for name in row["loss"]:
            assert row["excess_loss"][name] == pytest.approx(row["loss"][name] - row["reference_loss"][name], abs=1e-9)
    assert rows[-1]["standard_error"] == pytest.approx(noise_of(rows[-1]), rel=1e-6)


def test_weights_follow_excess_losses_less_their_noise(tmp_path):
    """References of the model itself, sample by sample: the noise is that of differences."""
    trainer = make_trainer(plain_model(), make_args(tmp_path, **PLANNED), held_out=held_out_domains(20))
    samples = trainer.domains.steering_samples()
    assert {len(dataset) for dataset in samples.values()} == {17}  # 51 in all
    reference = evaluate_samples(plain_model(), samples, 8)
    found = {}
    update = trainer.domains.update

    def note(losses):
        found.update(losses)
        update(losses)

    trainer.domains.update = note
    trainer.train()
    for name, sums in trainer.domains.reference_samples.items():
        assert sums == pytest.approx(reference[name].sums)
    assert_damped(
        trainer, lambda row: {name: it.above(reference[name].sums).standard_error for name, it in found.items()}
    )
    assert all(found[name].standard_error > 0 for name in found)


def test_references_known_by_their_means_leave_the_noise_of_losses(tmp_path):
    args = make_args(tmp_path, reference_losses=dict.fromkeys(train_domains(), 3.0), **PLANNED)
    trainer = make_trainer(plain_model(), args, held_out=held_out_domains(20))
    found = {}
    update = trainer.domains.update
    trainer.domains.update = lambda losses: (found.update(losses), update(losses))
    trainer.train()
    assert_damped(trainer, lambda row: {name: losses.standard_error for name, losses in found.items()})
    assert trainer.domains.reference_samples is None


def test_reference_samples_of_another_stage_are_compared_sample_by_sample(tmp_path):
    samples = held_out_domains(20)
    found = evaluate_samples(plain_model(3), samples, 8)
    references = {name: losses.mean for name, losses in found.items()}
    trainers = []
    for given in (None, {name: losses.sums for name, losses in found.items()}):
        args = make_args(tmp_path, reference_losses=references, **PLANNED)
        trainer = make_trainer(plain_model(), args, held_out=samples, reference_samples=given)
        trainer.train()
        trainers.append(trainer)
    rows = [trainer.stage_record("recovery")["history"][0] for trainer in trainers]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["standard_error"] != rows[1]["standard_error"]


def test_the_papers_rule_is_an_argument_away(tmp_path):
    found = [
        trained(tmp_path, plain_model(), eval_strategy="steps", eval_steps=4, mixture_update=rule,
                reference_losses={"books": 4.0, "code": 3.8, "wiki": 4.2}).stage_record("recovery")["mixture_weights"]
        for rule in ("paper", "damped")
    ]  # fmt: skip
    assert found[0] != found[1]
    with pytest.raises(ValueError, match="`mixture_update` must be 'damped' or 'paper', but it is 'mine'"):
        make_args(tmp_path, mixture_update="mine")
