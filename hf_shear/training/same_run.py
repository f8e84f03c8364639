"""What a resumed training must share with the one that it continues, and what may change on purpose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from transformers import PreTrainedModel

from ..core import UsageError
from ..data import samples_digest
from .arguments import ShearTrainingArguments

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

MAY_CHANGE = {
    **dict.fromkeys(("learning_rate", "mask_learning_rate", "multiplier_learning_rate", "max_grad_norm"), RESCUE),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), SPLIT),
    **dict.fromkeys(("max_steps", "num_tokens"), BUDGET),
    **dict.fromkeys(("bf16", "fp16"), ELSEWHERE + "as the precision; fp16 may change for another, which may rescue a run"),
    "peft_config": ELSEWHERE + "by what it says, whether as a file or as text",
    **dict.fromkeys(
        (
            "output_dir", "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
            "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
            "hub_always_push", "hub_revision", "resume_from_checkpoint", "trust_checkpoint",
            "restore_callback_states_from_checkpoint",
        ),
        SAVING,
    ),
    **dict.fromkeys(
        (
            "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
            "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
            "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug",
            "skip_memory_metrics", "shape_gap_tolerance",
        ),
        LOGGING,
    ),
    **dict.fromkeys(
        (
            "use_cpu", "local_rank", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
            "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "accelerator_config",
            "parallelism_config", "distributed_config",
        ),
        LAUNCH,
    ),
    **dict.fromkeys(
        (
            "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
            "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
        ),
        LOADING,
    ),
    **dict.fromkeys(
        (
            "num_train_epochs", "do_train", "do_eval", "do_predict", "use_cache", "prediction_loss_only",
            "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
            "batch_eval_metrics", "dataloader_drop_last",
        ),
        NO_EFFECT,
    ),
    **dict.fromkeys(
        (
            "per_device_eval_batch_size", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
            "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
            "torch_compile_mode", "torch_empty_cache_steps", "use_liger_kernel", "liger_kernel_config",
        ),
        ROUNDING,
    ),
}  # fmt: skip
"""Training arguments that a resumed run may be given another value of, and why. All others decide the result."""

_TOLD = [name for name, reason in MAY_CHANGE.items() if reason in (RESCUE, SPLIT)]
_PRECISION, _SAMPLES_PER_STEP = "precision", "samples per step"
_NOT_OF_THE_MODEL = {  # where it is from, and what a training sets
    "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures", "source_name_or_path",
    "source_revision", "mask_phase",
}  # fmt: skip
_NOT_OF_THE_ADAPTER = {"base_model_name_or_path", "revision", "inference_mode"}
DIGEST = "sha256:"  # begins values that say nothing to a reader


def deciding_arguments(args: ShearTrainingArguments) -> dict:
    """JSON-ready values of the training arguments that decide the result, by name."""
    values = {name: value for name, value in args.to_dict().items() if name not in MAY_CHANGE}
    values |= {_PRECISION: _precision(args), _SAMPLES_PER_STEP: args.samples_per_step()}
    return _json_ready(values | args.recovery.compared_on_resume(args))


def deciding_values(
    args: ShearTrainingArguments, model: PreTrainedModel, base_digest: str | None, teacher_digest: str | None
) -> dict:
    """JSON-ready values, by name, that decide the result beside the samples.

    Args:
        model: that is trained.
        base_digest: of the weights that adapters stand on.
        teacher_digest: of the teacher of a distillation.
    """
    values = deciding_arguments(args) | deciding_model(model) | {"optimizer steps": args.max_steps}
    digests = {"the base's weights": base_digest, "the teacher": teacher_digest}
    return values | {name: DIGEST + digest for name, digest in digests.items() if digest is not None}


def changing_arguments(args: ShearTrainingArguments) -> dict:
    """Values of the arguments that may change on purpose, and of which it is told when they do."""
    return {name: getattr(args, name) for name in _TOLD} | {"number of processes": args.world_size}


def deciding_model(model: PreTrainedModel) -> dict:
    """What of a model decides the result and is no weight: its config, with masks and target, its dtype, its adapters."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    values = {f"the model's {name}": value for name, value in config.items() if not name.startswith("_")}
    values["the weights' dtype"] = str(model.dtype)
    for name, adapter in getattr(model, "peft_config", {}).items():
        fields = {field: value for field, value in adapter.to_dict().items() if field not in _NOT_OF_THE_ADAPTER}
        values[f"the adapter {name!r}"] = fields
    return _json_ready(values)


def deciding_samples(train: Mapping, held_out: Mapping | None) -> dict:
    """Names of the domains, and digests of the samples of each (``samples_digest``)."""
    values = {"domains": list(train)}
    for kind, domains in (("text", train), ("held-out text", held_out or {})):
        values |= {f"the {kind} of domain {name!r}": DIGEST + samples_digest(data) for name, data in domains.items()}
    return values


def differences(before: Mapping, now: Mapping) -> list[str]:
    """A phrase for each value that is not what it was.

    Names that only one of the two has are left out: another version of transformers has other arguments.
    """
    phrases = []
    for name in (name for name in now if name in before and before[name] != now[name]):
        was, now_is = before[name], now[name]
        if str(now_is).startswith(DIGEST):
            phrases.append(f"{name} has changed")
            continue
        if isinstance(was, dict) and isinstance(now_is, dict):  # only the entries that differ
            fields = [field for field in (was | now_is) if was.get(field) != now_is.get(field)]
            was, now_is = ({field: value.get(field) for field in fields} for value in (was, now_is))
        phrases.append(f"{name} was {was!r} and is now {now_is!r}")
    return phrases


def check_same_run(before: Mapping, now: Mapping, what: str) -> list[str]:
    """Refuse to continue a run with other values of what decides its result.

    Args:
        before, now: JSON-ready values by name.
        what: the start of the message, which says what would be continued.

    Returns:
        Phrases for what has changed and may.

    Raises:
        ValueError: names what has changed and may not.
    """
    may = {_PRECISION} if before.get(_PRECISION) == "fp16" else set()
    told, changed = (
        differences(before, {name: value for name, value in now.items() if (name in may) == allowed})
        for allowed in (True, False)
    )
    if changed:
        raise UsageError(
            f"{what} with other arguments: {', '.join(changed)}. Give the same ones, or start a run in another folder."
            " examples/docs/several_gpus.md lists what may change."
        )
    return told


def _precision(args: ShearTrainingArguments) -> str:
    if args.bf16 or args.fp16:
        return "bf16" if args.bf16 else "fp16"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # of `accelerate launch`


def _json_ready(values: dict) -> dict:
    """As they are when they were written to JSON and read again."""
    return json.loads(
        json.dumps(values, default=lambda value: repr(sorted(value) if isinstance(value, set) else value))
    )
