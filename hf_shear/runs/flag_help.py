"""``--help``: the flags of a command by what they are for, the usual ones alone; ``--help-all``: all of them."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any

from .flags import Flag, flags_of
from .source_fields import UNKNOWN, TrainingFlags

HELP, ALL = ("-h", "--help"), "--help-all"
MAX_WIDTH = 100  # characters

GROUPS: dict[str, tuple[str, str]] = {
    "What is sheared": (
        "model_name_or_path pruned preset hidden_size num_hidden_layers num_attention_heads num_key_value_heads"
        " intermediate_size target_num_parameters from_search sizes criterion compensation num_stages",
        "num_experts as_family target_balance search_rank size_teacher num_shots pruning_share calibration_batches methods"
        " mask_rates learning_rates seeds",
    ),
    "The run": (
        "output_dir num_tokens resume overwrite stop_after dry_run",
        "live_page num_train_epochs seed data_seed full_determinism trust_checkpoint",
    ),
    "Data": (
        "data_dir text_field max_length eval_tokens dynamic_batches",
        "skip_unreadable skip_null_text parse_special_tokens held_out_fraction block_diagonal num_proc"
        " mixture_weights reference_losses clamp_excess mixture_update mixture_floor mixture_ceiling",
    ),
    "Masks": (
        "mask_tokens mask_learning_rate paper",
        "mask_method mask_draw mask_start mask_start_spread multiplier_learning_rate mask_scheduler budget_warmup_ratio"
        " hardening_ratio start_temperature end_temperature start_noise clip_masks shape_gap_tolerance min_swapped_units",
    ),
    "Recovery": (
        "recovery_tokens recovery_method baselines",
        "peft_config keep_adapter quantize baseline_learning_rates",
    ),
    "Teacher": (
        "distillation teacher_name_or_path teacher_placement",
        "distillation_weight distillation_temperature distillation_top_k",
    ),
    "Optimisation": (
        "learning_rate lr_scheduler_type warmup_steps per_device_train_batch_size gradient_accumulation_steps",
        "lr_scheduler_kwargs weight_decay max_grad_norm optim optim_args optim_target_modules adam_beta1 adam_beta2"
        " adam_epsilon label_smoothing_factor neftune_noise_alpha",
    ),
    "Logging and checkpoints": (
        "logging_steps save_steps report_to",
        "eval_token_share eval_strategy eval_steps eval_delay per_device_eval_batch_size logging_strategy"
        " logging_first_step logging_nan_inf_filter save_strategy save_total_limit load_best_model_at_end"
        " metric_for_best_model greater_is_better run_name project disable_tqdm",
    ),
    "Hardware": (
        "bf16 activation_checkpointing use_cpu",
        "fp16 tf32 activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs use_liger_kernel"
        " liger_kernel_config torch_compile torch_compile_backend torch_compile_mode deepspeed fsdp fsdp_config"
        " ddp_find_unused_parameters ddp_bucket_cap_mb ddp_backend ddp_timeout dataloader_num_workers"
        " dataloader_prefetch_factor",
    ),
}
"""Names of flags by what they are for: those of the short help, and more. Flags of transformers' that no group names come
last in the long help."""
OTHERS = "Other arguments of transformers.TrainingArguments"


def help_asked(words: Sequence[str]) -> bool | None:
    """Whether the whole help is asked for, or the short one; None if neither is."""
    return True if ALL in words else False if any(word in HELP for word in words) else None


def grouped_help(types: Sequence[type], whole: bool, refused: Sequence[str] = ()) -> list[str]:
    """Lines of help: one group after the other.

    Args:
        types: the dataclasses of the flags.
        whole: whether the flags that are seldom needed are among them.
        refused: names of flags that the command does not take.
    """
    fields = {field.name: field for cls in types for field in dataclasses.fields(_read(cls)) if field.init}
    fields = {name: field for name, field in fields.items() if name not in refused}
    groups = {title: (usual + " " + more if whole else usual).split() for title, (usual, more) in GROUPS.items()}
    shown = {title: [fields[name] for name in names if name in fields] for title, names in groups.items()}
    if whole:
        grouped = {name for usual, more in GROUPS.values() for name in (usual + " " + more).split()}
        shown[OTHERS] = [field for name, field in fields.items() if name not in grouped]
    column = _column([field for found in shown.values() for field in found])
    lines = []
    for title, found in shown.items():
        if found:
            lines += [f"{title}:", *flag_lines(found, column, whole), ""]
    if not whole:
        hidden = len(fields) - sum(map(len, shown.values()))
        lines.append(f"{ALL} shows {hidden} more, among them every argument of transformers.TrainingArguments.")
    return lines[:-1] if whole else lines


def flag_lines(fields: Sequence[dataclasses.Field], column: int | None = None, whole: bool = True) -> list[str]:
    """A flag and what it does on a line, or on several if it does not fit; of long texts the first sentence."""
    column = column or _column(fields)
    width = help_width() - column
    lines = []
    for field in fields:
        text = " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
        if not whole and len(text) > width:
            text = text.partition(". ")[0] + "." * (". " in text)
        wrapped = textwrap.wrap(text + _default(field), width, break_on_hyphens=False) or [""]
        lines.append(f"  --{field.name}".ljust(column) + wrapped[0])
        lines += [" " * column + line for line in wrapped[1:]]
    return lines


def help_width() -> int:
    """Characters of a line of help."""
    return min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)


def flags_read(types: Sequence[type]) -> list[Flag]:
    """The flags of a command; those of training as they stand in the source."""
    return [flag for cls in types for flag in flags_of(_read(cls))]


def _read(cls: type) -> type:
    return cls.as_read() if cls is TrainingFlags else cls


def _column(fields: Sequence[dataclasses.Field]) -> int:
    return max(len(field.name) for field in fields) + 5


def _default(field: dataclasses.Field) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return " (required)"
    value: Any = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    return "" if value in (None, "", UNKNOWN) else f" ({value})"
