"""What does not fit is refused before training, with the name, the value and the way out."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from training_helpers import (
    LENGTH,
    VOCAB_SIZE,
    held_out_domains,
    make_args,
    make_domains,
    masked_model,
    plain_model,
    train_domains,
)

from hf_shear import ShearTrainer
from hf_shear.training import check_domain_arguments, check_mask_options


@pytest.fixture(scope="module")
def model():
    return plain_model()


def samples(rows: list[list[int]]) -> dict[str, Dataset]:
    return {"books": Dataset.from_dict({"input_ids": rows})}


def check(model, tmp_path, train=None, held_out=None, **fields) -> None:
    train = train_domains() if train is None else train
    ShearTrainer(model, make_args(tmp_path, **fields), train, held_out)


def test_what_fits_is_accepted(model, tmp_path):
    check(model, tmp_path, held_out=held_out_domains())
    check(model, tmp_path, held_out={name: held_out_domains()[name] for name in reversed(train_domains())})
    check(model, tmp_path, samples([[VOCAB_SIZE - 1] * 32]))


def test_other_arguments_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`args` must be ShearTrainingArguments, but it is dict. Give ShearTraining"):
        ShearTrainer(model, {"output_dir": str(tmp_path)}, train_domains())
    with pytest.raises(ValueError, match="`args` must be ShearTrainingArguments, but it is NoneType"):
        ShearTrainer(model, train_dataset=train_domains())


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (
            [1, 2],
            r"`train_dataset` must be a data set, or a .* dict .* but it is list. Make it with hf_shear.data.pack_domains",
        ),
        ({}, "`train_dataset` must be a data set, or a non-empty dict .* but it is dict"),
        (
            samples([[1] * LENGTH]) | {"code": Dataset.from_dict({"input_ids": []})},
            "`train_dataset` has domains without samples: code. Give them text or leave them out",
        ),
        (
            {"books": Dataset.from_dict({"content": ["once"]})},
            r"`train_dataset\['books'\]` has columns \['content'\], but none of 'input_ids' .packed., 'text' or 'messages'",
        ),
        (
            samples([[3, VOCAB_SIZE]]),
            r"`train_dataset\['books'\]` holds token id 61, but the model's vocabulary has 61 entries. Tokenise with",
        ),
        (
            samples([[1] * 8]) | {"code": Dataset.from_dict({"input_ids": [[1] * 9]})},
            r"`train_dataset` has samples of different lengths \[8, 9\]; pack all with one `max_length`",
        ),
        (
            samples([[1] * 33]),
            "`train_dataset` has samples of 33 tokens, but the model has 32 positions. Pack with a smaller `max_length`",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(model, tmp_path, train, text):
    with pytest.raises(ValueError, match=text):
        check(model, tmp_path, train)


def test_held_out_data_are_checked_too(model, tmp_path):
    with pytest.raises(ValueError, match=r"`eval_dataset\['books'\]` holds token id 99"):
        check(model, tmp_path, held_out=samples([[99] * LENGTH]))
    with pytest.raises(ValueError, match=r"same domains, but they have \['books', 'code', 'wiki'\] and \['books'\]"):
        check(model, tmp_path, held_out=samples([[1] * LENGTH]))


def test_weights_and_references_must_name_the_domains(model, tmp_path):
    with pytest.raises(ValueError, match=r"`mixture_weights` must name domains of the data, but \['cc'\] are unknown"):
        check(model, tmp_path, mixture_weights={"books": 1, "code": 1, "wiki": 1, "cc": 1})
    with pytest.raises(ValueError, match=r"`reference_losses` must name the domains \['books', 'code', 'wiki'\], but it"
                       r" names \['books'\]"):  # fmt: skip
        check(model, tmp_path, reference_losses={"books": 2.0})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"mixture_floor": 0.34},
            r"`mixture_floor` must lie between 0 and 1 / 3 .* but it is 0.34. Lower it to 0.3333",
        ),
        ({"mixture_ceiling": 0.3}, r"`mixture_ceiling` must lie between 1 / 3 .* but it is 0.3. Raise it to 0.333"),
        (
            {"reference_losses": {"books": 2.0, "code": math.nan, "wiki": 2.0}},
            r"`reference_losses\['code'\]` must be a finite number, but it is nan",
        ),
        (
            {"reference_losses": {"books": 2.0, "code": "low", "wiki": 2.0}},
            r"`reference_losses\['code'\]` must be a finite number, but it is 'low'",
        ),
    ],
)
def test_what_the_domains_do_not_allow_is_refused_at_once(model, tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        check(model, tmp_path, **changes)
    with pytest.raises(ValueError, match=text):
        check_domain_arguments(make_args(tmp_path, **changes), ["books", "code", "wiki"])


def test_half_precision_weights(tmp_path):
    with pytest.raises(
        ValueError, match="weights are float16, .* Load the model with `dtype=torch.float32`, and compute"
    ):
        check(masked_model().half(), tmp_path)
    with pytest.warns(UserWarning, match="weights are bfloat16, .* few weights move at all. .*filter this warning"):
        check(plain_model().to(torch.bfloat16), tmp_path)


def test_metrics_that_would_never_be_computed_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`compute_metrics` has no effect"):
        ShearTrainer(model, make_args(tmp_path), train_domains(), compute_metrics=lambda prediction: {})


@pytest.mark.parametrize(("dynamic", "strategy", "warns"), [(True, "no", 1), (False, "no", 0), (True, "steps", 0)])
def test_domain_weights_that_can_not_change_are_told(tmp_path, monkeypatch, dynamic, strategy, warns):
    told = []
    monkeypatch.setattr("hf_shear.training.checks.logger.warning_once", told.append)
    check(plain_model(), tmp_path, held_out=held_out_domains(), dynamic_batches=dynamic, eval_strategy=strategy)
    assert len(told) == warns and all(
        "they change at evaluations, and `eval_strategy` is 'no'" in text for text in told
    )


def test_reentrant_checkpointing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'use_reentrant': True}` does not work with masks.* Set it to False"):
        check(masked_model(), tmp_path, activation_checkpointing=True,
              activation_checkpointing_kwargs={"use_reentrant": True})  # fmt: skip


def test_several_gpus_in_one_process_are_refused(model, tmp_path):
    args = make_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="One process sees 2 GPUs .* `accelerate launch`, or set CUDA_VISIBLE_DEVICES"):
        ShearTrainer(model, args, train_domains())


def test_later_samples_are_looked_at(model, tmp_path):
    with pytest.raises(ValueError, match=r"samples of different lengths \[8, 9\]"):
        check(model, tmp_path, samples([[1] * 8, [1] * 9]))
    with pytest.raises(ValueError, match=r"holds token id 99, but the model's vocabulary has 61 entries"):
        check(model, tmp_path, samples([[1] * 8, [99] * 8]))


def test_tensors_are_samples_too(model, tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1] * 8] * 4}).with_format("torch")
    assert isinstance(dataset[0]["input_ids"], torch.Tensor)
    check(model, tmp_path, {"books": dataset})


def test_domains_may_have_names_with_blanks_and_slashes(model, tmp_path):
    sizes = {"a b": 8, "c/d": 8}
    trainer = ShearTrainer(model, make_args(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1),
                           make_domains(sizes), make_domains(sizes, seed=1))  # fmt: skip
    trainer.train()
    assert set(trainer.stage_record("recovery")["history"][0]["loss"]) == set(sizes)


def test_fused_kernels_that_bypass_masks_are_refused(model, tmp_path):
    args = make_args(tmp_path, use_liger_kernel=True)
    with pytest.raises(ValueError, match="`use_liger_kernel=True` has no effect on a masked model.* Leave it out"):
        ShearTrainer(masked_model(), args, train_domains())
    with pytest.raises(ValueError, match="`use_liger_kernel=True` needs the package `liger-kernel`"):
        ShearTrainer(model, args, train_domains())  # a plain Llama, which it knows
    check_mask_options(make_args(tmp_path))
