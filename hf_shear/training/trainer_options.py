"""Every argument of a training: what ShearTrainer does with it, and whether a resumed run may change it.

An option that would go wrong with dynamic batches, domains or masks, or would do nothing, is refused with the reason.
``tests/test_trainer_options.py`` holds the table against the fields of the installed transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..core import UsageError

# Why a resumed run may be given another value.
RESCUE = "another value may rescue a run that diverged; what changed is told"
ELSEWHERE = "compared in another form: "
SPLIT = ELSEWHERE + "as samples of an optimizer step over all processes; how they are split is told"
BUDGET = ELSEWHERE + "as optimizer steps"
SAVING = "what is saved, where, and for whom"
LOGGING = "what is told, where, and how often"
LAUNCH = "on what, and how, it is computed; the backend's name is compared by itself"
LOADING = "who reads the samples, and when; not which (streams compare their number of shares themselves)"
NO_EFFECT = "without effect here: evaluation keeps losses alone, and training ends by steps"
ROUNDING = "the same numbers up to rounding, for other memory or time"
PRECISION = ELSEWHERE + "as the precision; fp16 may change for another, which may rescue a run"

WORKS, CHANGED_DEFAULT = "works", "works, with another default"
REFUSED, REFUSED_WITH_MASKS = "refused", "refused with masks"


@dataclass(frozen=True)
class Option:
    """How one argument is treated.

    Attributes:
        treatment: ``WORKS`` (as in ``Trainer``), ``CHANGED_DEFAULT``, ``REFUSED`` or ``REFUSED_WITH_MASKS`` (by a model
            that has masks; a plain one is trained as by ``Trainer``).
        note: why, and what to do in its place.
        refuses: of values; by default all but the default.
        resume: why a resumed run may be given another value; None where it decides the result, and must be the same.
        since: the release of transformers that brought it, if later than the oldest one supported.
    """

    treatment: str
    note: str = ""
    refuses: Callable[[Any], bool] | None = None
    resume: str | None = None
    since: str | None = None


_works, _refused, _refused_with_masks = (partial(Option, kind) for kind in (WORKS, REFUSED, REFUSED_WITH_MASKS))

_EPOCH = "'epoch' is the whole run: once, at its end."
_OWN_EVALUATION = _refused(
    "has no effect: evaluation keeps token losses per domain, and no logits. Leave it out.", resume=NO_EFFECT
)
_OWN_LOADER = _refused(
    "has no effect: ShearTrainer has a loader of its own, whose batches are never short. Leave it out.",
    resume=NO_EFFECT,
)
_STEPS_OF_BACKWARD = ("layerwise", "lomo")
_BEST = (
    "would choose by the held-out loss, which is lowest while many units are still open: the weights of one step would be"
    " sliced by the masks of another. Leave it out here; set it for the sliced model, in `hf-shear recover`."
)

TRAINER_OPTIONS: dict[str, Option] = {
    # ---- lengths and batches
    "output_dir": Option(CHANGED_DEFAULT, "'trainer_output', as transformers sets it later.", resume=SAVING),
    "per_device_train_batch_size": _works(resume=SPLIT),
    "per_device_eval_batch_size": _works(resume=ROUNDING),
    "gradient_accumulation_steps": _works(resume=SPLIT),
    "auto_find_batch_size": _refused(
        "would change the number of steps and every batch in the middle of a run. Choose `per_device_train_batch_size`"
        " yourself; `gradient_accumulation_steps` keeps a step's size."
    ),
    "max_steps": _works("`num_tokens` sets it.", resume=BUDGET),
    "num_train_epochs": Option(
        CHANGED_DEFAULT,
        "None. An epoch is as many samples as all domains hold; their weights say how often each is read.",
        resume=BUDGET,
    ),
    # ---- optimizers and schedules
    "learning_rate": _works("Of the weights; 0 freezes them.", resume=RESCUE),
    "mask_learning_rate": _works(resume=RESCUE),
    "multiplier_learning_rate": _works(resume=RESCUE),
    "lr_scheduler_type": _refused(
        "follows a metric, but masks and weights need schedules that follow the steps: use 'cosine', 'linear',"
        " 'constant_with_warmup' or another of those.",
        lambda value: getattr(value, "value", value) in ("reduce_lr_on_plateau", "greedy"),
    ),
    "lr_scheduler_kwargs": _works("A schedule is made of them at once, so that what it refuses is told at the start."),
    "warmup_steps": _works(),
    "optim": _refused(
        "takes its steps inside the backward pass, or evaluates other weights than it trains: gradients are neither"
        " clipped nor looked at for NaN, and losses would be of other weights. Use 'adamw_torch' or 'adafactor'.",
        lambda value: any(part in getattr(value, "value", value) for part in (*_STEPS_OF_BACKWARD, "schedule_free")),
    ),
    "optim_args": _works("An optimizer is made of them at once, so that what it refuses is told at the start."),
    "optim_target_modules": _works(),
    "weight_decay": _works("Of the weights, not of masks."),
    "adam_beta1": _works("Of the masks' AdamW too."),
    "adam_beta2": Option(CHANGED_DEFAULT, "0.95, the paper's. Of the masks' AdamW too."),
    "adam_epsilon": _works("Of the masks' AdamW too."),
    "max_grad_norm": _works("Of the weights; of masks too with `clip_masks`.", resume=RESCUE),
    # ---- loss
    "label_smoothing_factor": _refused_with_masks(
        "does not know a masked model: the loss would be that of the token that is read, not of the next. Set it for the"
        " sliced model, without distillation."
    ),
    "average_tokens_across_devices": _works(),
    "neftune_noise_alpha": _refused_with_masks(
        "would add noise behind the masks, to hidden dimensions that they have closed. Set it for the sliced model."
    ),
    "use_liger_kernel": _refused_with_masks(
        # Read in the sources of liger-kernel 0.8.5: it finds its kernels by config.model_type. As a Llama, its RMSNorm
        # takes the place of the forward of every norm, and its fused cross-entropy that of the model's forward. Its
        # rotary embedding and SwiGLU gave the same losses and gradients beside masks in Triton's interpreter.
        "has no effect on a masked model, whose model_type liger-kernel does not know, and its RMSNorm and fused"
        " cross-entropy would bypass the masks. Leave it out. Kernels that go with masks can be put in by hand:"
        " `liger_kernel.transformers.apply_liger_kernel_to_llama(model=model, rope=True, swiglu=True, rms_norm=False,"
        " fused_linear_cross_entropy=False)`.",
        resume=ROUNDING,
    ),
    "liger_kernel_config": _works("With `use_liger_kernel`.", resume=ROUNDING),
    "use_cache": _refused(
        "would keep keys and values of training samples, and let tokens attend across packed documents. Leave it out.",
        resume=NO_EFFECT,
    ),
    # ---- precision, memory, compilation
    "bf16": _works("Masks and their optimizer stay float32.", resume=PRECISION),
    "fp16": _works("Refused with masks: loss scaling would scale their gradients (backends.py).", resume=PRECISION),
    "bf16_full_eval": _refused("has no effect: evaluation computes as training does. Use `bf16`."),
    "fp16_full_eval": _refused("has no effect: evaluation computes as training does. Use `bf16`."),
    "tf32": _works(resume=ROUNDING),
    "gradient_checkpointing": _works("Re-entrant checkpointing is refused with masks.", resume=ROUNDING),
    "gradient_checkpointing_kwargs": _works(resume=ROUNDING),
    "activation_checkpointing": _works("Re-entrant checkpointing is refused with masks.", since="5.23", resume=ROUNDING),
    "activation_checkpointing_kwargs": _works(since="5.23", resume=ROUNDING),
    "torch_compile": _works("The draw of masks is not compiled.", resume=ROUNDING),
    "torch_compile_backend": _works(resume=ROUNDING),
    "torch_compile_mode": _works(resume=ROUNDING),
    "torch_empty_cache_steps": _works(resume=ROUNDING),
    # ---- logging
    "logging_strategy": _works(_EPOCH, resume=LOGGING),
    "logging_steps": _works(resume=LOGGING),
    "logging_first_step": _works(resume=LOGGING),
    "log_on_each_node": _works(resume=LOGGING),
    "logging_nan_inf_filter": Option(
        CHANGED_DEFAULT, "False: the filter waits for the device in every step, and hides NaN; ours looks when logging.",
        resume=LOGGING,
    ),
    "include_num_input_tokens_seen": _works(resume=LOGGING),
    "log_level": _works(resume=LOGGING),
    "log_level_replica": _works(resume=LOGGING),
    "disable_tqdm": _works(resume=LOGGING),
    "report_to": _works("A name that is no installed integration is refused at the start.", resume=LOGGING),
    "run_name": _works(resume=LOGGING),
    "project": _works(resume=LOGGING),
    "trackio_space_id": _works(resume=LOGGING),
    "trackio_bucket_id": _works(resume=LOGGING),
    "trackio_static_space_id": _works(resume=LOGGING),
    "debug": _works(resume=LOGGING),
    "skip_memory_metrics": _works(resume=LOGGING),
    # ---- evaluation
    "eval_strategy": Option(CHANGED_DEFAULT, f"'steps'. {_EPOCH}"),
    "eval_steps": _works("Default: as many as `eval_token_share` pays for; domain weights change then."),
    "eval_delay": _works("Domain weights change from then on."),
    "eval_on_start": _refused(
        "would change the domain weights before the first step, and once more at every resume. Leave it out: the losses"
        " before training are measured in any case, as reference losses."
    ),
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "label_names": _refused("has no effect: labels are the tokens themselves. Leave it out."),
    "load_best_model_at_end": _refused_with_masks(_BEST),
    "metric_for_best_model": _works("'loss', or DOMAIN_loss of a domain."),
    "greater_is_better": _works(),
    # ---- saving and resuming
    "save_strategy": Option(
        REFUSED_WITH_MASKS, _BEST, lambda value: getattr(value, "value", value) == "best",
        resume=SAVING,
    ),
    "save_steps": _works(resume=SAVING),
    "save_total_limit": _works(resume=SAVING),
    "save_only_model": _works("A resume from such a checkpoint is refused by name.", resume=SAVING),
    "save_on_each_node": _works(resume=SAVING),
    "enable_jit_checkpoint": _refused(
        "is in the way of ShearTrainer's own checkpoint on SIGTERM. Leave it out.", resume=SAVING
    ),
    "restore_callback_states_from_checkpoint": _works(resume=SAVING),
    "resume_from_checkpoint": _refused(
        "is not read by the Trainer. Use `--resume` of the command, or `trainer.train(resume_from_checkpoint=...)`.",
        resume=SAVING,
    ),
    "ignore_data_skip": Option(
        REFUSED, "would replay batches on resume, but the sampler restores its own state. Leave it at True."
    ),
    # ---- the Hub
    "push_to_hub": _refused_with_masks(
        "would publish masked checkpoints, which plain transformers can not use. Leave it out in mask learning, and push"
        " the sliced model: `hf-shear push`.",
        resume=SAVING,
    ),
    "hub_token": _refused(
        "would be written into `training_args.bin` beside every checkpoint, and uploaded with it. Leave it out: set the"
        " environment variable HF_TOKEN, or log in with `hf auth login`.",
        resume=SAVING,
    ),
    "hub_private_repo": _works("With `push_to_hub`.", resume=SAVING),
    "hub_model_id": _works("With `push_to_hub`.", resume=SAVING),
    "hub_strategy": _works("With `push_to_hub`.", resume=SAVING),
    "hub_always_push": _works("With `push_to_hub`.", resume=SAVING),
    "hub_revision": _works("With `push_to_hub`.", resume=SAVING),
    # ---- randomness
    "seed": _works("Of draws of masks, batches and dropout."),
    "data_seed": _works("Of the batches, in place of `seed`."),
    "full_determinism": _works(),
    # ---- data
    "dataloader_num_workers": _works(resume=LOADING),
    "dataloader_prefetch_factor": _works(resume=LOADING),
    "dataloader_pin_memory": _works(resume=LOADING),
    "dataloader_persistent_workers": _works("Workers persist in any case.", resume=LOADING),
    "dataloader_drop_last": _OWN_LOADER,
    "dataloader_multiprocessing_context": replace(_OWN_LOADER, resume=LOADING),
    "dataloader_in_order": replace(_OWN_LOADER, resume=LOADING),
    "remove_unused_columns": Option(REFUSED, "has no effect: all columns of packed samples are used. Leave it at False."),
    "train_sampling_strategy": _refused(
        "has no effect: DynamicBatchSampler draws the batches. Leave it at its default."
    ),
    "length_column_name": _refused("has no effect: packed samples have one length. Leave it out."),
    # ---- machines
    "use_cpu": _works(resume=LAUNCH),
    "accelerator_config": _refused(
        "changes how a loader is prepared, or the steps of accumulation: ShearTrainer has a loader of its own, on which"
        " split_batches, dispatch_batches, even_batches and use_seedable_sampler have no effect, and counts tokens by"
        " `gradient_accumulation_steps`. Leave them at their defaults.",
        lambda config: config.split_batches or config.dispatch_batches or not config.even_batches
        or not config.use_seedable_sampler or "num_steps" in (config.gradient_accumulation_kwargs or {}),
        resume=LAUNCH,
    ),
    "parallelism_config": _works("A split of one model over processes is refused (backends.py).", resume=LAUNCH),
    "ddp_find_unused_parameters": Option(CHANGED_DEFAULT, "False: every weight has a gradient.", resume=LAUNCH),
    "ddp_bucket_cap_mb": _works(resume=LAUNCH),
    "ddp_broadcast_buffers": _works(resume=LAUNCH),
    "ddp_static_graph": _works(resume=LAUNCH),
    "ddp_backend": _works(resume=LAUNCH),
    "ddp_timeout": _works(resume=LAUNCH),
    "fsdp": _works("Version 2 on GPUs; without one it is refused at the start (backends.py).", resume=LAUNCH),
    "fsdp_config": _works(resume=LAUNCH),
    "deepspeed": _works("Without optimizer and scheduler sections (backends.py).", resume=LAUNCH),
    "local_rank": _works(resume=LAUNCH),
    # ---- flags of scripts
    "do_train": _works("A note for scripts.", resume=NO_EFFECT),
    "do_eval": _works("A note for scripts.", resume=NO_EFFECT),
    "do_predict": _refused("has no effect: ShearTrainer gives no predictions. Leave it out.", resume=NO_EFFECT),
    # ---- our own
    "num_tokens": _works(resume=BUDGET),
    "mask_scheduler": _works(),
    "budget_warmup_ratio": _works(),
    "hardening_ratio": _works(),
    "start_temperature": _works(),
    "end_temperature": _works(),
    "start_noise": _works(),
    "clip_masks": _works("Refused under DeepSpeed (backends.py)."),
    "shape_gap_tolerance": _works(resume=LOGGING),
    "min_swapped_units": _works(resume=LOGGING),
    "recovery_method": _works("Masks are learned with all weights."),
    "peft_config": _works(resume=ELSEWHERE + "by what it says, whether as a file or as text"),
    "distillation": _works(),
    "distillation_temperature": _works(),
    "distillation_weight": _works(),
    "dynamic_batches": _works(),
    "mixture_weights": _works(),
    "reference_losses": _works(),
    "clamp_excess": _works(),
    "mixture_update": _works(),
    "mixture_floor": _works(),
    "mixture_ceiling": _works(),
    "eval_token_share": _works(),
    "trust_checkpoint": _works(resume=SAVING),
}  # fmt: skip


def check_options(args) -> None:
    """Raise UsageError for the first option that no model can be trained with.

    Args:
        args: ``ShearTrainingArguments`` after transformers' own checks.
    """
    _refuse(args, REFUSED)


def check_mask_options(args) -> None:
    """Raise UsageError for the first option that a model with masks can not be trained with."""
    _refuse(args, REFUSED_WITH_MASKS)


def _refuse(args, treatment: str) -> None:
    fields = type(args).__dataclass_fields__
    for name, option in TRAINER_OPTIONS.items():
        if name not in fields or option.treatment != treatment:
            continue
        value = getattr(args, name)
        default = fields[name].default if fields[name].default_factory is not list else []
        if option.refuses(value) if option.refuses is not None else value != default:
            shown = getattr(value, "value", value)
            given = (
                f"`{name}={shown!r}`" if isinstance(shown, (str, int, float)) and name != "hub_token" else f"`{name}`"
            )
            raise UsageError(f"{given} {option.note}")
