"""Every argument of transformers' Trainer is treated by a table: what the table says of it is so."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from packaging.version import Version
from torch.nn import functional as F
from training_helpers import NO_DROPOUT, make_args, make_trainer, masked_model, plain_model, train_domains, trained
from transformers import TrainingArguments

from hf_shear import ShearTrainer, ShearTrainingArguments
from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.training.trainer_options import CHANGED_DEFAULT, REFUSED, REFUSED_WITH_MASKS, TRAINER_OPTIONS, WORKS

REFUSED_VALUES = {
    "auto_find_batch_size": True, "lr_scheduler_type": "reduce_lr_on_plateau", "optim": "lomo",
    "use_cache": True, "bf16_full_eval": True, "fp16_full_eval": True, "eval_on_start": True,
    "prediction_loss_only": True, "eval_do_concat_batches": False, "eval_use_gather_object": True,
    "eval_accumulation_steps": 2, "include_for_metrics": ["loss"], "batch_eval_metrics": True,
    "label_names": ["labels"], "enable_jit_checkpoint": True, "resume_from_checkpoint": "checkpoint-3",
    "ignore_data_skip": False, "hub_token": "hf_secret", "dataloader_drop_last": True,
    "dataloader_multiprocessing_context": "fork", "dataloader_in_order": False, "remove_unused_columns": True,
    "train_sampling_strategy": "group_by_length", "length_column_name": "size",
    "accelerator_config": {"split_batches": True}, "do_predict": True,
}  # fmt: skip
REFUSED_VALUES_WITH_MASKS = {
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "use_liger_kernel": {"use_liger_kernel": True},
    "load_best_model_at_end": {"load_best_model_at_end": True},
    "save_strategy": {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps"},
    "push_to_hub": {"push_to_hub": True},
}


def test_the_table_is_the_class():
    fields = {field.name for field in dataclasses.fields(ShearTrainingArguments)}
    installed = Version(transformers.__version__)
    later = {n for n, option in TRAINER_OPTIONS.items() if option.since and Version(option.since) > installed}
    new, gone = fields - set(TRAINER_OPTIONS), set(TRAINER_OPTIONS) - fields - later
    assert not new, f"transformers has new options: say in trainer_options.py what becomes of {sorted(new)}"
    assert not gone, f"transformers has no longer {sorted(gone)}: remove them from trainer_options.py"


def test_the_table_says_what_defaults_are_changed():
    ours = {field.name: field.default for field in dataclasses.fields(ShearTrainingArguments)}
    theirs = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    changed = {name for name in theirs if name in ours and ours[name] != theirs[name]}
    said = {name for name, option in TRAINER_OPTIONS.items() if option.treatment == CHANGED_DEFAULT}
    assert changed - {"ignore_data_skip", "remove_unused_columns"} == said  # of these two any other value is refused
    assert changed - said <= {name for name, option in TRAINER_OPTIONS.items() if option.treatment == REFUSED}


def test_every_refusal_is_tried_here():
    refused = {name for name, option in TRAINER_OPTIONS.items() if option.treatment == REFUSED}
    with_masks = {name for name, option in TRAINER_OPTIONS.items() if option.treatment == REFUSED_WITH_MASKS}
    assert refused == set(REFUSED_VALUES) and with_masks == set(REFUSED_VALUES_WITH_MASKS)
    assert {option.treatment for option in TRAINER_OPTIONS.values()} == {
        WORKS, CHANGED_DEFAULT, REFUSED, REFUSED_WITH_MASKS,
    }  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_VALUES)
def test_what_no_model_can_be_trained_with(tmp_path, name):
    with pytest.raises(UsageError, match=f"^`{name}.*` .*[a-z].*\\.") as caught:
        make_args(tmp_path, eval_strategy="steps", **{name: REFUSED_VALUES[name]})
    assert TRAINER_OPTIONS[name].note in str(caught.value) and "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED_VALUES_WITH_MASKS)
def test_what_masks_can_not_be_learned_with(tmp_path, name):
    args = make_args(tmp_path, **REFUSED_VALUES_WITH_MASKS[name])
    with pytest.raises(UsageError, match=f"^`{name}=.*` ") as caught:
        ShearTrainer(masked_model(), args, train_domains())
    assert TRAINER_OPTIONS[name].note in str(caught.value)


@pytest.mark.parametrize("verb", ["learn", "interleave"])
def test_verbs_refuse_before_they_read_the_source(tmp_path, capsys, verb):
    words = [verb, str(tmp_path / "no_such_model"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert main([*words, "--load_best_model_at_end", "true", "--eval_steps", "4", "--save_steps", "4"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "`load_best_model_at_end=True` would choose by the held-out loss" in line
    assert not (tmp_path / "run").exists()


# ---- what works for a plain model ---------------------------------------------------------------------------------


def test_label_smoothing_is_of_the_next_token(tmp_path):
    model = plain_model(**NO_DROPOUT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trained(tmp_path, model, max_steps=1, label_smoothing_factor=0.3)
    ids = torch.tensor(trainer.records[0]["input_ids"])
    model.load_state_dict(before)
    with torch.no_grad():
        log_probs = F.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1), dim=-1)
    right = -log_probs.gather(1, ids[:, 1:].reshape(-1, 1)).mean()
    expected = 0.7 * right - 0.3 * log_probs.mean()
    assert trainer.records[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_the_best_checkpoint_of_a_plain_model_is_loaded(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = trained(tmp_path, plain_model(), **best, **steps)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[0] > losses[1] and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    saved = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_noise_on_embeddings_reaches_a_plain_model(tmp_path):
    quiet = trained(tmp_path / "a", plain_model(**NO_DROPOUT), max_steps=1).records[0]["loss"]
    noisy = trained(tmp_path / "b", plain_model(**NO_DROPOUT), max_steps=1, neftune_noise_alpha=5.0).records[0]["loss"]
    assert quiet != noisy


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "rmsprop"])
def test_other_optimizers_train_weights_and_leave_masks_to_their_own(tmp_path, optim):
    model = masked_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, make_args(tmp_path, max_steps=2, optim=optim))
    trainer.train()
    assert {type(trainer.mask_learning.optimizer.optimizer).__name__} == {"AdamW"}
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert not [name for name in same if "log_alpha" in name or "mlp" in name]


# ---- what transformers or torch would refuse late -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"report_to": "foo"}, "`report_to` must be one of none, all, .*wandb.*, but it is 'foo'"),
        ({"report_to": ["none", "foo"]}, "`report_to` must be one of"),
        ({"eval_strategy": "foo"}, "`eval_strategy` must be one of no, steps, epoch, but it is 'foo'"),
        ({"lr_scheduler_type": "foo"}, "`lr_scheduler_type` must be one of linear, .*, but it is 'foo'"),
        ({"optim": "foo"}, "`optim` must be one of adamw_torch, .*, but it is 'foo'"),
        ({"log_level": "foo"}, "`log_level` must be one of .*, but it is 'foo'"),
        ({"ddp_backend": "foo"}, "`ddp_backend` must be one of .*gloo.*, but it is 'foo'"),
        ({"torch_compile_backend": "foo"}, "`torch_compile_backend` must be one of .*inductor.*, but it is 'foo'"),
        ({"torch_compile_mode": "foo"}, "`torch_compile_mode` must be one of default, .*, but it is 'foo'"),
        ({"optim": "grokadamw"}, "`optim='grokadamw'` needs the package `grokadamw`, which is not installed"),
        ({"optim_args": "x"}, "`optim_args='x'` can not be made: .* NAME=VALUE"),
        ({"optim_args": "momentum=0.9"}, "`optim_args='momentum=0.9'` has no effect on `optim='adamw_torch_fused'`"),
        ({"optim_target_modules": "all-linear"}, "`optim_target_modules` has no effect on `optim='adamw_torch_fused'`"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "with `lr_scheduler_kwargs={'foo': 1}` can not be made: .*'foo'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "`lr_scheduler_kwargs=None` can not be made: .*min_lr"),
        ({"lr_scheduler_kwargs": "min_lr"}, "`lr_scheduler_kwargs` must be a JSON object such as"),
        ({"mixture_weights": '{"a": 1'}, "`mixture_weights` is not valid JSON: line 1"),
        ({"mixture_weights": '{"a": 1, "a": 2}'}, "`mixture_weights` has the key 'a' twice"),
        ({"mixture_weights": '{"a": NaN}'}, "`mixture_weights` is not valid JSON: it holds NaN, which is not a finite"),
        ({"reference_losses": {"a": "low"}}, r"`reference_losses\['a'\]` must be a finite number, but it is 'low'"),
        ({"deepspeed": "no_such.json"}, "`deepspeed` 'no_such.json' is not a file"),
        ({"accelerator_config": {"foo": 1}}, "`accelerator_config` must hold some of split_batches, .* has 'foo'"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, "`gradient_accumulation_steps`"),
        ({"fsdp": "full_shard"}, "FSDP was asked for, but this process has no accelerator"),
        ({"liger_kernel_config": {"rope": True}}, "`liger_kernel_config` has no effect without `use_liger_kernel`"),
        ({"save_strategy": "best"}, "`save_strategy='best'` needs `metric_for_best_model`"),
        ({"label_smoothing_factor": 0.1, "distillation": "forward_kl"}, "`label_smoothing_factor=0.1` has no effect"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_told_at_the_start(tmp_path, fields, text):
    with pytest.raises(UsageError, match=text):
        make_args(tmp_path, **fields)


def test_a_metric_that_no_evaluation_has_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`metric_for_best_model` must be one of loss, books_loss, .* it is 'bleu'"):
        make_trainer(plain_model(), make_args(tmp_path, metric_for_best_model="bleu"))
