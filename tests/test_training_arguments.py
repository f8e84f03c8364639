"""ShearTrainingArguments: defaults, what flags and JSON give, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser

from hf_shear import ShearTrainingArguments


def make(**fields) -> ShearTrainingArguments:
    return ShearTrainingArguments(output_dir="unused", use_cpu=True, **fields)


def test_changed_defaults():
    args = make()
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.0, 1.0)
    assert args.remove_unused_columns is False
    assert args.logging_nan_inf_filter is False
    assert args.ignore_data_skip is True
    assert (args.dynamic_batches, args.clamp_excess, args.clip_masks) == (True, True, False)
    assert args.hardening_ratio == 0.4


def test_the_default_rate_and_warm_up_depend_on_the_masks():
    args = make()
    assert (args.mask_rate("relaxed_topk", 1000), args.mask_rate("hard_concrete", 1000)) == (0.05, 1.0)
    assert (args.mask_rate("relaxed_topk", 10), args.mask_rate("hard_concrete", 10)) == (0.2, 1.0)
    assert make(mask_learning_rate=0.3).mask_rate("hard_concrete", 10) == 0.3
    assert make(mask_learning_rate=0.0).mask_rate("relaxed_topk", 10) == 0.0
    assert args.mask_schedule(50, "relaxed_topk").budget_warmup_steps == 0
    assert args.mask_schedule(50, "hard_concrete").budget_warmup_steps == 10
    assert make(budget_warmup_ratio=0.0).mask_schedule(50, "hard_concrete").budget_warmup_steps == 0


def test_the_schedule_is_in_shares_of_the_steps():
    args = make(
        budget_warmup_ratio=0.3, hardening_ratio=0.1, start_temperature=2.0, end_temperature=0.5, start_noise=0.7
    )
    schedule = args.mask_schedule(20, "relaxed_topk")
    assert (schedule.total_steps, schedule.budget_warmup_steps, schedule.hardening_steps) == (20, 6, 2)
    assert (schedule.start_temperature, schedule.end_temperature, schedule.start_noise) == (2.0, 0.5, 0.7)
    assert schedule.hardening_start == 18


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**9), st.integers(2, 4096), st.integers(1, 16), st.integers(1, 8))
def test_steps_are_as_few_as_see_all_tokens(num_tokens, length, batch_size, accumulated):
    args = make(per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated)
    per_step = batch_size * accumulated * length
    steps = args.steps_for_tokens(num_tokens, length)
    assert (steps - 1) * per_step < num_tokens <= steps * per_step
    assert args.samples_per_step() == batch_size * accumulated


def test_flags_and_json():
    (args,) = HfArgumentParser(ShearTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "unused", "--use_cpu", "true", "--mixture_weights", '{"a": 0.25, "b": 3}', "--num_tokens", "1000",
         "--reference_losses", '{"a": 1.5}', "--mask_learning_rate", "1e-2", "--dynamic_batches", "false"]
    )  # fmt: skip
    assert args.mixture_weights == {"a": 0.25, "b": 3}
    assert args.reference_losses == {"a": 1.5}
    assert (args.num_tokens, args.mask_learning_rate, args.dynamic_batches) == (1000, 0.01, False)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"auto_find_batch_size": True}, "`auto_find_batch_size=True` would change the number of steps"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "`lr_scheduler_type=.*reduce_lr_on_plateau.*` follows a metric",
        ),
        ({"budget_warmup_ratio": 1.5}, "`budget_warmup_ratio` must be between 0 and 1, but it is 1.5"),
        ({"hardening_ratio": -0.1}, "`hardening_ratio` must be between 0 and 1, but it is -0.1"),
        (
            {"eval_token_share": 0.0},
            "`eval_token_share` must be above 0 and at most 1, but it is 0.0.*`eval_strategy='no'` evaluates",
        ),
        ({"eval_token_share": 2.0}, "`eval_token_share` must be above 0 and at most 1, but it is 2.0"),
        (
            {"budget_warmup_ratio": 0.6, "hardening_ratio": 0.5},
            r"`budget_warmup_ratio` \(0.6\) and `hardening_ratio` \(0.5\) must not exceed 1 together.* Lower one of them",
        ),
        ({"mask_scheduler": "cosine"}, "`mask_scheduler` must be 'constant' or 'weights', but it is 'cosine'"),
        ({"num_tokens": 0}, "`num_tokens` must be at least 1, but it is 0"),
        ({"ignore_data_skip": False}, "`ignore_data_skip=False` would replay batches on resume.* Leave it at True"),
        (
            {"train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy='group_by_length'` has no effect.* Leave it at its default",
        ),
    ],
)
def test_what_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        make(**fields)


def test_shares_that_just_fit_are_accepted():
    make(budget_warmup_ratio=0.5, hardening_ratio=0.5).mask_schedule(10, "relaxed_topk")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 20))
@example(7, 10)
def test_shares_that_fit_together_fit_after_rounding(steps, twentieths):
    """Two halves of an odd number of steps both round up; the schedule must still fit."""
    warmup = twentieths / 20
    schedule = make(budget_warmup_ratio=warmup, hardening_ratio=1.0 - warmup).mask_schedule(steps, "relaxed_topk")
    assert schedule.budget_warmup_steps + schedule.hardening_steps <= steps


def test_dynamic_batches_have_evaluations_by_default():
    args = make()
    assert args.dynamic_batches and args.eval_strategy == "steps" and args.eval_steps is None


def test_a_token_is_never_part_of_the_arguments():
    """transformers pickles the arguments, token and all, into training_args.bin."""
    with pytest.raises(ValueError, match="`hub_token` would be written into `training_args.bin`.*HF_TOKEN"):
        ShearTrainingArguments("unused", hub_token="hf_secret", use_cpu=True)
