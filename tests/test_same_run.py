"""What decides a result is compared on resume, argument by argument; what may change is a list, and is told."""

from __future__ import annotations

import dataclasses
import enum

import pytest
import torch
from datasets import Dataset, List, Value, concatenate_datasets
from training_helpers import (
    assert_equal_weights,
    held_out_domains,
    letter_tokenizer,
    make_args,
    make_domains,
    make_trainer,
    masked_model,
    plain_model,
    train_domains,
    weights_of,
)
from transformers import TrainerCallback

from hf_shear import ShearTrainingArguments
from hf_shear.core import UsageError
from hf_shear.data import samples_digest
from hf_shear.distillation import sampled_digest
from hf_shear.training.same_run import check_same_run, deciding_arguments
from hf_shear.training.trainer_options import TRAINER_OPTIONS

COMPARED = """adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices bf16_full_eval
    budget_warmup_ratio clamp_excess clip_masks data_seed distillation distillation_temperature distillation_weight
    dynamic_batches end_temperature eval_delay eval_on_start eval_steps eval_strategy eval_token_share fp16_full_eval
    full_determinism greater_is_better hardening_ratio ignore_data_skip label_names label_smoothing_factor
    length_column_name load_best_model_at_end lr_scheduler_kwargs lr_scheduler_type mask_scheduler metric_for_best_model
    mixture_ceiling mixture_floor mixture_update mixture_weights neftune_noise_alpha optim optim_args optim_target_modules
    recovery_method reference_losses remove_unused_columns seed start_noise start_temperature train_sampling_strategy
    warmup_steps weight_decay""".split()


def test_every_argument_is_compared_or_may_change_for_a_reason():
    """A new one of transformers has to be put in one of the two lists."""
    fields = {field.name for field in dataclasses.fields(ShearTrainingArguments)}
    may_change = {name for name, option in TRAINER_OPTIONS.items() if option.resume is not None}
    assert not set(COMPARED) & may_change
    assert fields - may_change <= set(COMPARED)


def another(value):
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, enum.Enum):
        return next(member for member in type(value) if member != value)
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if value is None or isinstance(value, str) else {"books": 1.0}


@pytest.mark.parametrize("name", COMPARED)
def test_another_value_of_a_compared_argument_is_refused_by_name(name, tmp_path):
    args = make_args(tmp_path)
    if not hasattr(args, name):
        pytest.skip(f"this transformers has no {name}")
    before = deciding_arguments(args)
    setattr(args, name, another(getattr(args, name)))
    if name == "recovery_method":
        args.recovery_method = "norms_and_biases"
    with pytest.raises(
        UsageError, match=f"would be continued with other arguments: {name} was .* and is now .*Give the"
    ):
        check_same_run(before, deciding_arguments(args), "It would be continued")


def test_fp16_alone_may_change_for_another_precision(tmp_path):
    args = make_args(tmp_path)
    args.fp16, before = True, deciding_arguments(args)
    args.fp16, args.bf16 = True, False
    fp16 = deciding_arguments(args)
    args.fp16, args.bf16 = False, True
    bf16 = deciding_arguments(args)
    assert check_same_run(fp16, bf16, "x") == ["precision was 'fp16' and is now 'bf16'"]
    with pytest.raises(UsageError, match="precision was 'bf16' and is now 'fp16'"):
        check_same_run(bf16, fp16, "x")
    with pytest.raises(UsageError, match="precision was 'no' and is now 'bf16'"):
        check_same_run(before, bf16, "x")


# ---- the trainer's own checkpoints ----------------------------------------------------------------------------

STEPS = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(trainer, checkpoint of the second of four steps)."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(masked_model(), make_args(folder, **STEPS))
    trainer.train()
    return trainer, str(folder / "checkpoint-2")


@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"mixture_floor": 0.3}, "mixture_floor was 0.0 and is now 0.3"),
        ({"dynamic_batches": False}, "dynamic_batches was True and is now False"),
        ({"hardening_ratio": 0.1}, "hardening_ratio was 0.4 and is now 0.1"),
        ({"weight_decay": 0.5}, "weight_decay was 0.0 and is now 0.5"),
        ({"per_device_train_batch_size": 2}, "samples per step was 4 and is now 2"),
        ({"max_steps": 6}, "optimizer steps was 4 and is now 6"),
        ({"max_steps": -1, "num_tokens": 4 * 64 + 1}, "optimizer steps was 4 and is now 5"),
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused(whole, changes, shown, tmp_path):
    trainer = make_trainer(masked_model(), make_args(tmp_path, **STEPS | changes))
    with pytest.raises(UsageError, match=f"checkpoint-2' would be continued with other arguments: {shown}. Give the"):
        trainer.train(resume_from_checkpoint=whole[1])
    assert trainer.records == []


class CastsAndStops(TrainerCallback):
    """Casts the weights, as DeepSpeed does, before the checkpoint of the first step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert model.config.pad_token_id == 2  # transformers took it over from the tokenizer
        model.to(torch.bfloat16)
        control.should_training_stop = True


def test_what_training_changes_by_itself_does_not_keep_a_run_from_going_on(tmp_path):
    tokenizer = letter_tokenizer()
    tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(2)})
    args = {"max_steps": 2, "dynamic_batches": False, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    for resumed, callbacks in ((None, [CastsAndStops()]), (str(tmp_path / "checkpoint-1"), [])):
        model = plain_model()
        assert model.config.pad_token_id is None and model.dtype == torch.float32
        trainer = make_trainer(model, make_args(tmp_path, **args), processing_class=tokenizer, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resumed)
    assert trainer.state.global_step == 2


def test_a_checkpoint_of_another_text_or_model_is_refused(whole, tmp_path):
    def refused(shown, model=None, train=None, held_out=None):
        trainer = make_trainer(
            masked_model() if model is None else model, make_args(tmp_path, **STEPS), train, held_out
        )
        with pytest.raises(UsageError, match=f"with other arguments: {shown}. Give"):
            trainer.train(resume_from_checkpoint=whole[1])

    changed = make_domains()
    rows = changed["code"].to_dict()
    rows["input_ids"][-1][-1] ^= 1  # one token of one sample
    changed["code"] = Dataset.from_dict(rows)
    refused("the text of domain 'code' has changed", train=changed)
    other = make_domains(dict.fromkeys(held_out_domains(), 4), seed=2)
    refused("the held-out text of domain 'books' has changed, .*'code'.*'wiki' has changed", held_out=other)
    refused("the model's attention_dropout was 0.1 and is now 0.0", model=masked_model(attention_dropout=0.0))


def test_the_same_batches_split_otherwise_are_the_same_run(whole, tmp_path, capsys):
    trainer, checkpoint = whole
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 3, "save_steps": 9}
    resumed = make_trainer(masked_model(), make_args(tmp_path, **STEPS | changes | {"max_grad_norm": 2.0}))
    resumed.train(resume_from_checkpoint=checkpoint)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"Since {checkpoint} was written, max_grad_norm was 1.0 and is now 2.0, per_device_train_batch_size was 4"
        in said
    )
    assert resumed.state.global_step == 4 and "save_steps" not in said
    budget = {"max_steps": -1, "num_tokens": 4 * 64}  # the same steps by another name
    again = make_trainer(masked_model(), make_args(tmp_path, **STEPS | budget))
    again.train(resume_from_checkpoint=checkpoint)
    assert_equal_weights(again.model, weights_of(trainer.model))


def test_another_teacher_is_refused(tmp_path):
    def trainer(seed, **changes):
        args = make_args(
            tmp_path, distillation="forward_kl", max_steps=2, save_strategy="steps", save_steps=1, **changes
        )
        return make_trainer(plain_model(), args, teacher=plain_model(seed))

    trainer(1).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(UsageError, match="with other arguments: the teacher has changed. Give"):
        trainer(2, save_total_limit=1).train(resume_from_checkpoint=checkpoint)
    trainer(1).train(resume_from_checkpoint=checkpoint)


# ---- digests --------------------------------------------------------------------------------------------------


def test_samples_have_one_digest_however_they_are_stored():
    books = train_domains()["books"]
    expected = samples_digest(books)
    ids = books["input_ids"]
    parts = [Dataset.from_dict({"input_ids": ids[part]}) for part in (slice(0, 7), slice(7, None))]
    for same in (
        Dataset.from_dict({"input_ids": ids}),
        concatenate_datasets(parts),
        books.with_format("torch"),
        books.cast_column("input_ids", List(Value("int32"))),
    ):
        assert samples_digest(same) == expected
    for other in (books.shuffle(seed=1), books.select(range(39)), books.select([*range(1, 40), 0])):
        assert samples_digest(other) != expected


def test_the_digest_covers_positions_teacher_logits_and_what_is_no_data_set():
    ids = [[1, 2, 3], [4, 5, 6]]
    plain = Dataset.from_dict({"input_ids": ids})
    found = {
        samples_digest(plain),
        samples_digest(ids_as_list(ids)),
        samples_digest(ids_as_list([[1, 2, 3], [4, 5, 7]])),
    }
    for positions in ([[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [0, 0, 1]]):
        found.add(samples_digest(plain.add_column("position_ids", positions)))
    for value in (-1.0, -1.5):
        found.add(samples_digest(plain.add_column("teacher_log_probs", [[value] * 6] * 2)))
    assert len(found) == 7


def ids_as_list(ids) -> list[dict]:
    return [{"input_ids": row} for row in ids]


def test_the_digest_of_a_model_tells_weights_and_not_how_wide_they_are():
    model = plain_model()
    expected = sampled_digest(model)
    half = plain_model().to(torch.bfloat16)
    assert sampled_digest(half) == sampled_digest(half.float()) != expected == sampled_digest(plain_model())
    assert sampled_digest(plain_model(1)) != expected
