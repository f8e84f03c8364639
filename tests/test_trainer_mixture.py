"""The mixture of domains in a run of ShearTrainer: its rule, its reference losses, and proportions that stay."""

from __future__ import annotations

import pytest
from training_helpers import masked_model, plain_model, stop_workers, train_domains, trained

from hf_shear import DynamicBatchSampler
from hf_shear.data import update_mixture_weights
from hf_shear.training import evaluate_domains


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
        mixture_floor=0.05, mixture_ceiling=0.6, clamp_excess=False,
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
    judged = trainer.domains.judged()
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
