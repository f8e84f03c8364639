"""What a resumed training must share with the one that it continues, and what may change on purpose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from transformers import PreTrainedModel

from ..core import UsageError
from ..data import samples_digest
from .arguments import ShearTrainingArguments
from .trainer_options import RESCUE, SPLIT, TRAINER_OPTIONS

_TOLD = [name for why in (RESCUE, SPLIT) for name, option in TRAINER_OPTIONS.items() if option.resume == why]
_PRECISION, _SAMPLES_PER_STEP = "precision", "samples per step"
_NOT_OF_THE_MODEL = {  # where it is from, and what a training sets
    "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures", "auto_map", "source_name_or_path",
    "source_revision", "mask_phase", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
_NOT_OF_THE_ADAPTER = {"base_model_name_or_path", "revision", "inference_mode"}
DIGEST = "sha256:"  # begins values that say nothing to a reader


def deciding_arguments(args: ShearTrainingArguments) -> dict:
    """JSON-ready values of the training arguments that decide the result, by name."""
    may_change = {name for name, option in TRAINER_OPTIONS.items() if option.resume is not None}
    values = {name: value for name, value in args.to_dict().items() if name not in may_change}
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
            " `hf-shear docs several_gpus` lists what may change."
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
