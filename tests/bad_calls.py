"""Rows of bad calls from Python: a function of the inputs, which are its attributes (files) and ``make`` (objects)."""

from __future__ import annotations

import copy

import datasets
import torch
from bad_inputs import Row
from training_helpers import TARGET, held_out_domains, make_args, make_trainer, train_domains
from transformers import LlamaForCausalLM

import hf_shear
from hf_shear import (
    AutoShearingModelForCausalLM,
    DynamicBatchSampler,
    MaskSettings,
    PruneConfig,
    ShearingLlamaForCausalLM,
    TargetShape,
    prune_one_shot,
    slice_model,
)
from hf_shear.core import check_results, read_results, write_results
from hf_shear.data import (
    Calibration,
    load_domains,
    pack_domains,
    reference_losses_by_size,
    split_domains,
    update_mixture_weights,
)
from hf_shear.distillation import DistillationSettings
from hf_shear.evaluation import PerplexityProtocol, SpeedProtocol, evaluate_checkpoint
from hf_shear.masks import MaskSchedule
from hf_shear.publishing import model_card, push_to_hub
from hf_shear.report import spread_table
from hf_shear.report.html_report import html_report
from hf_shear.scaling_law import Case, RecoveryRun, fit_law, read_runs
from hf_shear.shapes import preset_shape, shape_for_budget
from hf_shear.sparsity import SurgeonSettings, prune_to_zeros

NAN, INF = float("nan"), float("inf")
ABOVE_0, LEAST_1 = ("above 0", "positive"), ("at least 1", "above 0", "positive")
FINITE, SHARE = ("finite", "between"), ("between 0 and 1", "above 0", "at least 0", "finite")
NOT_NEGATIVE = ("at least 0", "between 0", "finite")
IDS = torch.arange(3, 19)[None]
BATCH = {"input_ids": IDS, "labels": IDS}
SIZES = {"a": 8, "b": 8}


def fields(make, *cases) -> list[Row]:
    """Rows of one argument each: its name, its value, and the rule that it breaks."""
    return [
        Row(lambda given, name=name, value=value: make(given, **{name: value}), (f"`{name}`", _shown(value), rule))
        for name, value, rule in cases
    ]


def _shown(value) -> str:
    return value if isinstance(value, str) else str(value)


def _source(given, **changes):
    return TargetShape.from_source(given.make.config, **{**TARGET, **changes})


def _arguments(given, **changes):
    return make_args(given.out, **changes)


def _sampler(given, sizes=None, batch_size=4, **changes):
    return DynamicBatchSampler(sizes or SIZES, batch_size, **changes)


def _state(**changes):
    """A sampler's state with some entries changed."""

    def load(given):
        sampler = DynamicBatchSampler(SIZES, 4)
        sampler.load_state_dict(sampler.state_dict() | changes)

    return load


def _prune(given, model=None, target=None, calibration=None, **changes):
    source = model or given.make.source
    return prune_one_shot(
        source, target or _source(given), [BATCH] if calibration is None else calibration, PruneConfig(**changes)
    )


def _masked(given):
    return copy.deepcopy(given.make.masks)


def _gates(given, **changes):
    return given.make.masks.masks.deterministic() | changes


def _nan_masks(given):
    masked = _masked(given)
    with torch.no_grad():
        for value in masked.masks.parameters():
            value.fill_(NAN)
    return slice_model(masked)


def _trainer(given, model=None, train=None, held_out=None, arguments=None, **changes):
    return make_trainer(model or _masked(given), make_args(given.out, **(arguments or {})), train, held_out, **changes)


def _case(given, **changes):
    return Case(**{"num_parameters": 1e9, "fraction_removed": 0.2, "source_loss": 2.0, **changes})


def _run(given, tokens=(1e6, 2e6), losses=(2.5, 2.4), **changes):
    return RecoveryRun("r", _case(given), tokens, losses, **changes)


def _documents(*texts) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)})


TRAINING = fields(
    _arguments,
    ("learning_rate", -1.0, NOT_NEGATIVE), ("learning_rate", NAN, FINITE), ("weight_decay", -1.0, NOT_NEGATIVE),
    ("adam_beta1", 1.0, ("below 1", "between")), ("adam_beta2", -0.1, ("below 1", "between")), ("adam_epsilon", -1.0, ABOVE_0 + NOT_NEGATIVE),
    ("max_grad_norm", NAN, FINITE), ("max_grad_norm", -1.0, NOT_NEGATIVE), ("label_smoothing_factor", 2.0, SHARE), ("seed", -1, NOT_NEGATIVE),
    ("start_noise", NAN, FINITE), ("start_temperature", 0.0, ABOVE_0), ("end_temperature", INF, FINITE), ("hardening_ratio", 2.0, SHARE),
    ("budget_warmup_ratio", NAN, SHARE), ("mask_learning_rate", INF, FINITE), ("multiplier_learning_rate", -1.0, NOT_NEGATIVE),
    ("shape_gap_tolerance", NAN, FINITE), ("mixture_floor", NAN, FINITE), ("mixture_ceiling", -1.0, SHARE), ("eval_token_share", 0.0, ABOVE_0),
    ("distillation_temperature", -1.0, ABOVE_0), ("num_tokens", 0, LEAST_1), ("per_device_train_batch_size", 0, LEAST_1),
    ("gradient_accumulation_steps", 0, LEAST_1), ("dataloader_num_workers", -1, NOT_NEGATIVE), ("mask_scheduler", "x", "constant"), ("mixture_update", "x", "damped"),
    ("recovery_method", "x", "lora"), ("distillation", "x", "forward_kl"), ("mixture_weights", "[", "JSON"), ("reference_losses", "3", "JSON"),
    ("report_to", "foo", "report_to"), ("hub_token", "hf_x", "HF_TOKEN"), ("learning_rate", "fast", "number"), ("seed", "x", "number"),
)  # fmt: skip
TRAINING = [row for row in TRAINING if "`hub_token`" not in row.needs] + [
    Row(lambda given: make_args(given.out, hub_token="hf_x"), ("`hub_token`", "HF_TOKEN")),
    Row(lambda given: make_args(given.out, hardening_ratio=0.7, budget_warmup_ratio=0.7), ("`hardening_ratio`", "0.7", "exceed 1")),
    Row(lambda given: make_args(given.out, ignore_data_skip=False), ("`ignore_data_skip`", "False")),
    Row(lambda given: make_args(given.out, auto_find_batch_size=True), ("`auto_find_batch_size`", "True")),
    Row(lambda given: make_args(given.out, lr_scheduler_type="reduce_lr_on_plateau"), ("lr_scheduler_type", "reduce_lr_on_plateau", "requires")),
    Row(lambda given: _trainer(given, train={}), ("domain", "empty")),
    Row(lambda given: _trainer(given, train=[1, 2]), ("`train_dataset`", "list")),
    Row(lambda given: _trainer(given, held_out={}), ("domain",)),
    Row(lambda given: _trainer(given, held_out={"books": held_out_domains()["books"]}), ("`eval_dataset`", "code")),
    Row(lambda given: _trainer(given, arguments={"mixture_weights": {"books": 1.0}}), ("`mixture_weights`", "code")),
    Row(lambda given: _trainer(given, arguments={"mixture_weights": {"books": NAN, "code": 1.0, "wiki": 1.0}}), ("`mixture_weights`", "nan")),
    Row(lambda given: _trainer(given, arguments={"reference_losses": {"books": 1.0}, "eval_strategy": "steps"}), ("`reference_losses`", "code")),
    Row(lambda given: _trainer(given, arguments={"mixture_floor": 0.5}), ("`mixture_floor`", "0.5", "domains")),
    Row(lambda given: _trainer(given, arguments={"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}), ("`load_best_model_at_end`", "True")),
    Row(lambda given: _trainer(given, model=torch.nn.Linear(2, 2)), ("`model`", "Linear")),
    Row(lambda given: _trainer(given, train=train_domains().rename_column("input_ids", "ids") if hasattr(train_domains(), "rename_column") else None), ("input_ids", "ids")),
    Row(lambda given: _trainer(given, model=given.make.source, arguments={"recovery_method": "lora", "peft_config": {"r": -2}}), ("peft_config", "r", "-2")),
]  # fmt: skip

SHAPES = fields(
    _source,
    ("hidden_size", 0, ("at least 1", "between 1")), ("hidden_size", 99, "between 1"), ("hidden_size", 12.5, ("whole number", "integer")),
    ("hidden_size", "12", ("whole number", "integer")), ("hidden_size", True, ("whole number", "integer")), ("num_hidden_layers", -1, ("at least 1", "between 1")),
    ("intermediate_size", 1000, "between 1"), ("num_key_value_heads", 7, "between 1"), ("num_experts", 2, "experts"), ("num_attention_heads", NAN, ("whole number", "integer")),
) + [
    Row(lambda given: TargetShape.from_dict(given.make.config, {"width": 3}), ("'width'", "hidden_size")),
    Row(lambda given: TargetShape.from_dict(given.make.config, {"head_dim": 3}), ("`head_dim`", "3", "4")),
    Row(lambda given: TargetShape.from_dict(given.make.config, [3]), ("list", "dict")),
    Row(lambda given: preset_shape("x", given.make.config), ("`preset`", "'x'", "sheared-llama-1.3b")),
    Row(lambda given: shape_for_budget(given.make.config, num_parameters=3), ("num_parameters", "3", "smallest")),
    Row(lambda given: shape_for_budget(given.make.config, fraction_kept=2.0), ("`fraction_kept`", "2.0")),
    Row(lambda given: shape_for_budget(given.make.config, fraction_kept=NAN), ("`fraction_kept`", "nan")),
    Row(lambda given: shape_for_budget(given.make.config), ("`num_parameters`", "`fraction_kept`")),
]  # fmt: skip

MASKS = fields(
    lambda given, **changes: MaskSettings(**changes),
    ("method", "l0", "relaxed_topk"), ("draw", "never", "per_step"), ("seed", -1, NOT_NEGATIVE), ("log_alpha_start", NAN, FINITE), ("log_alpha_jitter", -1.0, NOT_NEGATIVE),
    ("log_alpha_jitter", NAN, FINITE), ("log_alpha_bound", 0.0, ABOVE_0), ("log_alpha_bound", NAN, FINITE), ("seed", 1.5, ("whole", "integer")),
) + fields(
    lambda given, **changes: MaskSchedule(**{"total_steps": 8, **changes}),
    ("total_steps", 0, LEAST_1), ("budget_warmup_steps", -1, NOT_NEGATIVE), ("hardening_steps", -1, NOT_NEGATIVE), ("start_temperature", 0.0, ABOVE_0),
    ("end_temperature", NAN, FINITE), ("start_noise", -1.0, NOT_NEGATIVE), ("hardening_steps", 9, "total"),
)[:-1] + [
    Row(lambda given: MaskSchedule(8, 5, 5), ("`budget_warmup_steps`", "5", "8 steps")),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained(given.model, target_shape={"hidden_size": 99}), ("`hidden_size`", "99", "18")),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained(given.model, target_shape={"width": 9}), ("'width'", "hidden_size")),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained(given.model), ("`target_shape`",)),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained("/nowhere/x", target_shape=TARGET), ("/nowhere/x",)),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained(given.text, target_shape=TARGET), ("{text}", "config.json")),
    Row(lambda given: ShearingLlamaForCausalLM.from_pretrained(given.masked, target_shape={"hidden_size": 6}), ("`target_shape`", "masks")),
    Row(lambda given: AutoShearingModelForCausalLM.from_model(given.make.source, _source(given), as_family="gpt"), ("gpt", "mistral")),
    Row(lambda given: AutoShearingModelForCausalLM.from_model(torch.nn.Linear(2, 2), None), ("`model`", "Linear")),
    Row(lambda given: slice_model(given.make.source), ("`model`", "LlamaForCausalLM")),
    Row(_nan_masks, ("masks", ("finite", "NaN", "nan"))),
    Row(lambda given: slice_model(_masked(given), dtype=torch.int8), ("`dtype`", "int8")),
    Row(lambda given: slice_model(_masked(given), gates=_gates(given, hidden=torch.ones(18))), ("hidden", "18", "12")),
    Row(lambda given: slice_model(_masked(given), gates=_gates(given, hidden=torch.full((18,), NAN))), ("gates", "hidden", ("finite", "NaN", "nan"))),
    Row(lambda given: slice_model(_masked(given), gates=_gates(given, colour=torch.ones(3))), ("gates", "kinds of units", "'colour'")),
    Row(lambda given: slice_model(_masked(given), gates=_gates(given, hidden=torch.ones(3))), ("hidden", "3 of 18", "12")),
]  # fmt: skip

PRUNING = fields(
    _prune,
    ("num_shots", 0, LEAST_1), ("num_shots", 1.5, ("whole", "integer")), ("criterion", "best", "taylor"), ("compensation", "magic", "none, bias"),
    ("pruning_share", 0.5, "prune_interleaved"), ("pruning_share", NAN, FINITE),
    ("allocation", "best", "uniform"), ("form", "zip", "padded"), ("protect", "first:x", "first:N"), ("as_family", "gpt", "mistral"),
) + [
    Row(lambda given: _prune(given, target=5), ("budget", "5", "smallest")),
    Row(lambda given: _prune(given, target=2.0), ("`fraction_kept`", "2.0")),
    Row(lambda given: _prune(given, target=NAN), ("`fraction_kept`", "nan")),
    Row(lambda given: _prune(given, target="half"), ("`target`", "half")),
    Row(lambda given: _prune(given, calibration=[]), ("`calibration`", "empty")),
    Row(lambda given: _prune(given, calibration=[{}]), ("`calibration`", "input_ids")),
    Row(lambda given: _prune(given, calibration=[{"input_ids": IDS}]), ("`calibration`", "labels")),
    Row(lambda given: _prune(given, calibration=[{"input_ids": IDS + 99, "labels": IDS}]), ("`calibration`", "61")),
    Row(lambda given: _prune(given, model=torch.nn.Linear(2, 2)), ("`model`", "Linear")),
    Row(lambda given: _prune(given, units=["wings"]), ("`units`", "wings")),
    Row(lambda given: _prune(given, protect=[99]), ("`protect`", "99", "3")),
    Row(lambda given: _prune(given, protect=[0, 1, 2]), ("`protect`", "2")),
    Row(lambda given: prune_to_zeros(given.make.source, 2.0, [BATCH]), ("`size`", "2.0")),
    Row(lambda given: prune_to_zeros(given.make.source, NAN, [BATCH]), ("`size`", "nan")),
    Row(lambda given: prune_to_zeros(given.make.source, 0.5, [BATCH], num_shots=0), ("`num_shots`", "0")),
    Row(lambda given: SurgeonSettings(damping=-1.0), ("`damping`", "-1.0")),
    Row(lambda given: SurgeonSettings(damping=NAN), ("`damping`", "nan")),
]  # fmt: skip

DATA = fields(
    _sampler,
    ("batch_size", 0, LEAST_1), ("batch_size", 2.5, ("whole", "integer")), ("seed", -1, NOT_NEGATIVE), ("gradient_accumulation_steps", 0, LEAST_1), ("world_size", 0, LEAST_1),
    ("rank", 3, "world_size"),
) + [
    Row(lambda given: _sampler(given, {"a": 0}), ("domain_sizes['a']", "0")),
    Row(lambda given: _sampler(given, {"a": -4}), ("domain_sizes['a']", "-4")),
    Row(lambda given: DynamicBatchSampler({}, 4), ("domain", "empty")),
    Row(lambda given: _sampler(given, mixture_weights={"a": 1.0}), ("`mixture_weights`", "b")),
    Row(lambda given: _sampler(given, mixture_weights={"a": 0.0, "b": 0.0}), ("`mixture_weights`", "0")),
    Row(lambda given: _sampler(given, mixture_weights={"a": NAN, "b": 1.0}), ("`mixture_weights`", "nan")),
    Row(lambda given: _sampler(given, mixture_weights={"a": -1.0, "b": 2.0}), ("`mixture_weights`", "-1")),
    Row(lambda given: _sampler(given, mixture_weights={"a": "x", "b": 2.0}), ("`mixture_weights`", "'x'")),
    Row(lambda given: _sampler(given).set_mixture_weights({"c": 1.0}), ("`mixture_weights`", "c")),
    Row(_state(mixture_weights={"a": NAN, "b": 1.0}), ("mixture_weights", "nan")),
    Row(_state(global_batch_index=-1), ("`global_batch_index`", "-1")),
    Row(_state(global_batch_index=NAN), ("`global_batch_index`", "nan")),
    Row(_state(samples_consumed={"a": -1, "b": 0}), ("samples_consumed", "-1")),
    Row(_state(samples_consumed={"a": 1}), ("samples_consumed", "b")),
    Row(_state(domain_sizes={"a": 9, "b": 8}), ("domain_sizes", "9")),
    Row(_state(seed=4), ("seed", "4")),
    Row(lambda given: DynamicBatchSampler(SIZES, 4).load_state_dict({}), ("state", ("lack", "miss"))),
    Row(lambda given: update_mixture_weights({"a": 0.5, "b": 0.5}, {"a": NAN, "b": 1.0}, {"a": 1.0, "b": 1.0}), ("`losses`", "nan")),
    Row(lambda given: update_mixture_weights({"a": 0.5, "b": 0.5}, {"a": 1.0}, {"a": 1.0, "b": 1.0}), ("`losses`", "b")),
    Row(lambda given: update_mixture_weights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, smoothing=2.0), ("`smoothing`", "2.0")),
    Row(lambda given: update_mixture_weights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, floor=0.9), ("floor", "0.9")),
    Row(lambda given: load_domains("/nowhere"), ("`data_dir`", "/nowhere")),
    Row(lambda given: load_domains(given.file), ("`data_dir`", "{file}")),
    Row(lambda given: load_domains(given.empty), ("`data_dir`", "{empty}")),
    Row(lambda given: load_domains(given.text, text_field=""), ("`text_field`", "''")),
    Row(lambda given: split_domains({"a": _documents("x", "y")}, 2.0), ("`held_out_fraction`", "2.0")),
    Row(lambda given: split_domains({"a": _documents("x", "y")}, NAN), ("`held_out_fraction`", "nan")),
    Row(lambda given: split_domains({"a": _documents("x", "y")}, seed=-1), ("`seed`", "-1")),
    Row(lambda given: split_domains({}), ("`domains`", "empty")),
    Row(lambda given: pack_domains({"a": _documents("abc def")}, given.make.tokenizer, 0), ("`max_length`", "0")),
    Row(lambda given: pack_domains({"a": _documents("abc def")}, given.make.tokenizer, -8), ("`max_length`", "-8")),
    Row(lambda given: pack_domains({"a": _documents("abc def")}, given.make.tokenizer, 2.5), ("`max_length`", "2.5")),
    Row(lambda given: pack_domains({"a": _documents("abc")}, given.make.tokenizer, 64), ("'a'", "64")),
    Row(lambda given: pack_domains({"a": _documents("abc def")}, given.make.tokenizer, 4, num_proc=0), ("`num_proc`", "0")),
    Row(lambda given: pack_domains({"a": datasets.Dataset.from_dict({"words": ["a"]})}, given.make.tokenizer, 4), ("text", "words")),
    Row(lambda given: pack_domains({"a": _documents("zz")}, given.make.tokenizer, 2, vocab_size=8), ("29", "8")),
    Row(lambda given: reference_losses_by_size([1e6, 2e6], {"a": [2.0, 1.9]}, 3e6), ("`sizes`", "2")),
    Row(lambda given: reference_losses_by_size([1e6, 2e6, 3e6], {"a": [2.0, NAN, 1.8]}, 4e6), ("`losses`", "nan")),
    Row(lambda given: reference_losses_by_size([1e6, 2e6, 3e6], {"a": [2.0, 1.9, 1.8]}, -1.0), ("`target_size`", "-1")),
    Row(lambda given: Calibration([]), ("`calibration`", "empty")),
    Row(lambda given: Calibration([BATCH], seed=-1), ("`seed`", "-1")),
]  # fmt: skip

EVALUATION = [Row(lambda given: DistillationSettings("x"), ("`distillation`", "'x'", "forward_kl"))] + fields(
    lambda given, **changes: PerplexityProtocol(**changes),
    ("window", 0, LEAST_1), ("window", 1.5, ("whole", "integer")), ("stride", -1, LEAST_1), ("max_documents", 0, LEAST_1), ("batch_size", 0, LEAST_1),
) + fields(
    lambda given, **changes: SpeedProtocol(**changes),
    ("batch_size", 0, LEAST_1), ("prompt_length", 0, LEAST_1), ("new_tokens", -1, LEAST_1), ("rounds", 0, LEAST_1),
)  + fields(
    _case,
    ("num_parameters", -1.0, ABOVE_0), ("num_parameters", NAN, FINITE), ("num_parameters", "x", "number"), ("fraction_removed", 20.5, "0.205"), ("fraction_removed", "x", "number"),
    ("source_loss", 0.0, ABOVE_0), ("source_loss", None, "number"), ("num_pruned_parameters", 2e9, "below"), ("source_tokens", INF, FINITE),
)[:-2] + [
    Row(lambda given: _case(given, num_pruned_parameters=2e9), ("`num_pruned_parameters`", "2,000,000,000", "below")),
    Row(lambda given: _run(given, losses=(NAN, 2.0)), ("losses", "nan")),
    Row(lambda given: _run(given, tokens=(2e6, 1e6)), ("`tokens`", "rise")),
    Row(lambda given: _run(given, losses=(2.0,)), ("`losses`", "1")),
    Row(lambda given: fit_law([]), ("runs", "no")),
    Row(lambda given: fit_law([_run(given)]), ("'r'", "power_law")),
    Row(lambda given: fit_law([_run(given)], "best"), ("`form`", "best", "p2")),
    Row(lambda given: fit_law([_run(given)], "power_law", num_bootstrap=-1), ("`num_bootstrap`", "-1")),
    Row(lambda given: fit_law([_run(given)], "power_law", drop_start=1.0), ("`drop_start`", "1.0")),
    Row(lambda given: read_runs("/nowhere"), ("`runs`", "/nowhere")),
    Row(lambda given: evaluate_checkpoint("/nowhere/x"), ("/nowhere/x", "exist")),
    Row(lambda given: evaluate_checkpoint(given.masked), ("{masked}", "masks")),
]  # fmt: skip

REPORTING = [
    Row(lambda given: check_results([]), ("`results`", "dict")),
    Row(lambda given: write_results(given.out, {"a": NAN}), ("`a`", "nan", "finite")),
    Row(lambda given: write_results(given.out, {"a": torch.ones(1)}), ("`a`", "Tensor")),
    Row(lambda given: write_results(given.out, {3: 1}), ("3", "strings")),
    Row(lambda given: spread_table([]), ("`runs`", "empty")),
    Row(lambda given: spread_table([{"seed": 1}]), ("`runs`", "recovered")),
    Row(lambda given: html_report({"source": 3}), ("`results.source`", "3", "an object")),
    Row(lambda given: html_report([]), ("results", "[]")),
    Row(lambda given: read_results(given.file), ("{file}", "JSON")),
    Row(lambda given: model_card({}, provenance=None), ("results",)),
    Row(lambda given: model_card(read_results(given.run + "/results.json"), provenance=None, arm="best"), ("`arm`", "best", "recovered")),
    Row(lambda given: model_card(read_results(given.run + "/results.json"), provenance=None, repo_id="a/b/c"), ("`repo_id`", "a/b/c")),
    Row(lambda given: model_card(read_results(given.run + "/results.json"), provenance=[]), ("provenance", "[]")),
    Row(lambda given: push_to_hub(given.empty, "me/model"), ("{empty}", "nothing to publish")),
    Row(lambda given: push_to_hub(given.run, "a/b/c"), ("`repo_id`", "a/b/c")),
    Row(lambda given: hf_shear.ShearTrainer(None, make_args(given.out)), ("`model`", "None")),
    Row(lambda given: hf_shear.ShearTrainer(LlamaForCausalLM, make_args(given.out), train_domains()), ("`model`", "LlamaForCausalLM")),
]  # fmt: skip

ROWS = TRAINING + SHAPES + MASKS + PRUNING + DATA + EVALUATION + REPORTING
