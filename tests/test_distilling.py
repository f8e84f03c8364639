"""Recovery through the trainer: what is trained, what the loss is, and that a stopped run goes on bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from test_trainer_resume import assert_same_run
from torch import nn
from torch.nn import functional as F
from training_helpers import (
    LENGTH,
    VOCAB_SIZE,
    make_args,
    make_trainer,
    masked_model,
    plain_model,
    train_domains,
    weights_of,
)

from hf_shear import MaskSettings, ShearTrainer
from hf_shear.data import TEACHER_COLUMNS
from hf_shear.distillation import TEACHER_IDS, TEACHER_LOG_PROBS, DistillationSettings, Teacher, store_teacher_logits
from hf_shear.training import merge_adapter
from hf_shear.training.adapters import default_peft_config
from hf_shear.training.distilling import Distiller

DISTILLED = {"distillation": "forward_kl", "distillation_temperature": 2.0, "distillation_weight": 0.4}
LOW = {"books": 0.5, "code": 1.0, "wiki": 2.0}  # reference losses that no domain reaches: all weights move
METHODS = {
    "full": {},
    "norms_and_biases": {"recovery_method": "norms_and_biases"},
    "lora": {"recovery_method": "lora"},
    "distilled": DISTILLED,
    "distilled_lora": {"recovery_method": "lora"} | DISTILLED,
}


def still(seed: int = 0, **changes):
    """Without dropout, for runs that are compared over splits of a batch."""
    return plain_model(seed, attention_dropout=0.0, **changes)


def trainer_of(folder, model=None, teacher_seed=1, train=None, teacher="plain", peft_config=None, **changes):
    args = make_args(folder, **({"max_steps": 3} | changes))
    if teacher == "plain":
        teacher = still(teacher_seed) if args.distillation != "none" else None
    return make_trainer(
        plain_model() if model is None else model, args, train, teacher=teacher, peft_config=peft_config
    )


def logged(trainer, name: str = "loss") -> list[float]:
    return [row[name] for row in trainer.state.log_history if "loss" in row]


def skip_without_peft(method: str) -> None:
    if "lora" in method:
        pytest.importorskip("peft", reason="peft is not installed")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_only_what_it_should_with_dynamic_batches(method, tmp_path):
    skip_without_peft(method)
    trainer = trainer_of(
        tmp_path,
        **METHODS[method],
        eval_strategy="steps",
        eval_steps=1,
        eval_token_share=1.0,
        reference_losses=LOW,
        mixture_ceiling=0.8,
    )
    before, trained = weights_of(trainer.model), {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    expected = {"norms_and_biases": lambda name: name.endswith("norm.weight"), "full": lambda name: True}
    matches = expected.get(method, (lambda name: "lora_" in name) if "lora" in method else (lambda name: True))
    assert trained == {name for name in before if matches(name)}
    weights = [record["mixture_weights"] for record in trainer.records]
    assert weights[0] != weights[-1]
    assert type(trainer.model.get_output_embeddings()) is nn.Linear or "lora" in method
    assert trainer.model.config.use_cache


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_the_loss_is_the_mix_of_its_parts_and_they_are_those_of_a_plain_forward(kind, tmp_path):
    trainer = trainer_of(tmp_path, still(), **DISTILLED | {"distillation": kind}, logging_steps=1)
    student, teacher = still(), still(1)
    trainer.train()
    ids = torch.tensor(trainer.records[0]["input_ids"])
    with torch.no_grad():
        logits, other = student(ids).logits[:, :-1], teacher(ids).logits[:, :-1]
    q, p = (logits / 2).log_softmax(-1), (other / 2).log_softmax(-1)
    p, q = (p, q) if kind == "forward_kl" else (q, p)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    distance = (p.exp() * (p - q)).sum(-1).mean().item()
    first = trainer.state.log_history[0]
    assert first["cross_entropy"] == pytest.approx(cross_entropy, abs=1e-5)
    assert first["divergence"] == pytest.approx(distance, abs=1e-5)
    mixes = zip(logged(trainer), logged(trainer, "cross_entropy"), logged(trainer, "divergence"), strict=True)
    for loss, one, two in mixes:
        assert loss == pytest.approx(0.6 * one + 0.4 * 4 * two, abs=1e-4)  # transformers rounds


@pytest.mark.parametrize("accumulation", [1, 4])
def test_with_a_tiny_weight_it_is_plain_training(accumulation, tmp_path):
    splits = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    plain = trainer_of(tmp_path, still(), **splits)
    found = trainer_of(tmp_path, still(), **splits, distillation="forward_kl", distillation_weight=1e-7)
    plain.train(), found.train()
    losses = [[record["loss"] for record in trainer.records] for trainer in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("method", ["distilled", "distilled_lora"])
@pytest.mark.parametrize("separate", [False, True], ids=["packed", "block_diagonal"])
def test_eight_micro_batches_of_one_are_one_of_eight(method, separate, tmp_path):
    skip_without_peft(method)
    train = train_domains()
    if separate:  # documents of 3 to 13 tokens: micro-batches with different numbers of labels
        train = {
            name: Dataset.from_dict(
                {
                    "input_ids": data["input_ids"],
                    "position_ids": [[*range(3 + row % 10), *range(LENGTH - 3 - row % 10)] for row in range(len(data))],
                }
            )
            for name, data in train.items()
        }
    ends = []
    for size in (8, 1):
        splits = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, still(), train=train, **METHODS[method] | splits, max_grad_norm=0.0, optim="sgd")
        trainer.train()
        ends.append((weights_of(trainer.model), logged(trainer), logged(trainer, "divergence")))
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=2e-4) and ends[0][2] == pytest.approx(ends[1][2], abs=2e-4)


@pytest.mark.parametrize("settings", [MaskSettings(), MaskSettings(method="hard_concrete", log_alpha_start=1.0)])
def test_masks_learn_from_a_teacher(settings, tmp_path):
    student = masked_model(settings, attention_dropout=0.0)
    trainer = trainer_of(tmp_path, student, teacher_seed=0, **DISTILLED)
    start = {name: value.clone() for name, value in student.masks.state_dict().items()}
    trainer.train()
    moved = {name for name, value in student.masks.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {name for name, _ in student.masks.named_parameters()}
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(0.6 * first["cross_entropy"] + 0.4 * 4 * first["divergence"], abs=1e-4)
    assert ("lagrangian_loss" in first) == (settings.method == "hard_concrete")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_a_run_resumes_bit_for_bit(method, tmp_path):
    skip_without_peft(method)
    options = METHODS[method] | {"max_steps": 6, "logging_steps": 4, "eval_strategy": "steps", "eval_steps": 3}
    runs = []
    for folder, changes in (("whole", {"save_strategy": "steps", "save_steps": 3}), ("resumed", {})):
        torch.manual_seed(0)
        runs.append(trainer_of(tmp_path / folder, **options | changes))
    whole, resumed = runs
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_run(resumed, whole, first_step=3)
    if "distilled" in method:
        assert logged(resumed, "cross_entropy") == logged(whole, "cross_entropy")
        assert logged(resumed, "divergence") == logged(whole, "divergence")


def test_a_saved_adapter_knows_its_base_and_merges_into_what_was_trained(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    trainer = trainer_of(tmp_path, still(), recovery_method="lora")
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor(trainer.records[0]["input_ids"])
    merged = merge_adapter(still(), tmp_path / "adapter").eval()
    torch.testing.assert_close(merged(ids).logits, trainer.model.eval()(ids).logits, rtol=0, atol=1e-5)
    assert len(json.loads((tmp_path / "adapter" / "shear_adapter.json").read_text())["base_digest"]) == 64
    with pytest.raises(ValueError, match="was trained on other weights"):
        merge_adapter(still(5), tmp_path / "adapter")


def test_stored_logits_train_as_the_live_teacher_does(tmp_path):
    teacher = still(1)
    stored = store_teacher_logits(train_domains(), Teacher(teacher), tmp_path, top_k=VOCAB_SIZE - 1, temperature=2.0)
    live = trainer_of(tmp_path, still(), **DISTILLED)
    found = trainer_of(tmp_path, still(), train=stored, teacher=None, **DISTILLED)
    live.train(), found.train()
    losses = [[record["loss"] for record in trainer.records] for trainer in (found, live)]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)  # float16: 2**-11 of log-probabilities of about 4, times 1.6
    with pytest.raises(ValueError, match="were stored at temperature 2, but `distillation_temperature` is 1"):
        trainer_of(tmp_path, train=stored, teacher=None, distillation="forward_kl")
    with pytest.raises(ValueError, match="Give one of the two"):
        trainer_of(tmp_path, train=stored, **DISTILLED)
    streams = {name: data.to_iterable_dataset() for name, data in stored.items()}
    with pytest.raises(ValueError, match="needs a teacher: .* streams carry none"):
        trainer_of(tmp_path, train=streams, teacher=None, **DISTILLED)


def test_a_loss_of_ones_own_beside_a_teacher_is_refused(tmp_path):
    args = make_args(tmp_path, max_steps=1, **DISTILLED)
    with pytest.raises(ValueError, match="`compute_loss_func` would take the place of the loss from the teacher"):
        ShearTrainer(plain_model(), args, train_domains(), teacher=still(1), compute_loss_func=lambda *_, **__: None)


def test_the_cost_report_says_what_its_memory_counts(tmp_path):
    assert "are trained" not in trainer_of(tmp_path).memory_line()
    line = trainer_of(tmp_path, **METHODS["norms_and_biases"] | DISTILLED).memory_line()
    counted = (
        "126 parameters of norms and biases are trained; the teacher on the device, the student's logits in chunks"
    )
    assert line.endswith(f"({counted})")


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    model = plain_model()
    with pytest.raises(ValueError, match="shares weights with the model that is trained"):
        trainer_of(tmp_path, model, teacher=model, **DISTILLED)
    assert all(parameter.requires_grad for parameter in model.parameters())  # nothing was frozen on the way
    with pytest.raises(ValueError, match="`teacher` has masks"):
        trainer_of(tmp_path, teacher=masked_model(), **DISTILLED)
    with pytest.raises(ValueError, match="The teacher's vocabulary has 64 entries, the student's 61"):
        trainer_of(tmp_path, teacher=plain_model(vocab_size=64), **DISTILLED)
    with pytest.raises(ValueError, match="needs a teacher"):
        trainer_of(tmp_path, teacher=None, **DISTILLED)
    with pytest.raises(ValueError, match="`teacher` is given, but `distillation` is 'none'"):
        trainer_of(tmp_path, teacher=plain_model())
    with pytest.raises(ValueError, match="is of recovery, but the model has masks"):
        trainer_of(tmp_path, masked_model(), recovery_method="lora")
    with pytest.raises(ValueError, match="`push_to_hub=True` would publish masked checkpoints"):
        trainer_of(tmp_path, masked_model(), push_to_hub=True)
    pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(ValueError, match="`peft_config` is given, but `recovery_method` is 'norms_and_biases'"):
        trainer_of(tmp_path, peft_config=default_peft_config(), recovery_method="norms_and_biases")
    with pytest.raises(ValueError, match="`peft_config` is of recovery, but the model has masks"):
        trainer_of(tmp_path, masked_model(), peft_config=default_peft_config())


def test_sums_are_logged_as_means_and_kept_over_a_checkpoint():
    student = plain_model()
    distiller = Distiller(DistillationSettings("forward_kl", 2.0, 0.25), student, None, None)
    outputs = {"logits": torch.tensor([8.0, 4.0])}
    labels = torch.zeros(2, 5, dtype=torch.long)
    assert distiller.loss(outputs, labels, 16).item() == pytest.approx(0.75 * 0.5 + 0.25 * 4 * 0.25)
    assert distiller.loss(outputs, labels).item() == pytest.approx(0.75 * 1.0 + 0.25 * 4 * 0.5)  # 8 labels
    later = Distiller(distiller.settings, student, None, None)
    later.load_state_dict(distiller.state_dict(), distiller.own_state_dict(), True)
    assert later.log_entries(2) == {"cross_entropy": 0.75, "divergence": 0.375}
    assert later.log_entries(4) == {} and later.own_state_dict() == {"sums": None}


def test_the_loader_and_the_store_call_the_columns_the_same():
    """hf_shear.data and hf_shear.distillation know nothing of each other."""
    assert set(TEACHER_COLUMNS) == {TEACHER_LOG_PROBS, TEACHER_IDS}
