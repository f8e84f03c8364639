"""What transformers and torch would refuse late, in words of their own: tried at the start, and said with the argument."""

from __future__ import annotations

import importlib.util
import json
from enum import Enum
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from ..core import UsageError

_CHOICES: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
_PACKAGES = {
    "bnb": "bitsandbytes", "8bit": "bitsandbytes", "paged": "bitsandbytes", "lion": "bitsandbytes",
    "ademamix": "bitsandbytes", "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "galore": "galore_torch",
    "apollo": "apollo_torch", "grokadamw": "grokadamw", "stable_adamw": "optimi", "anyprecision": "torchdistx",
    "xla": "torch_xla", "npu": "torch_npu", "apex": "apex",
}  # fmt: skip
_MODEL_OF_ITS_OWN = ("galore", "apollo")  # these optimizers are made for a model's modules by name


def check_choices(args) -> None:
    """Raise UsageError for a name that is none of an argument's."""
    for name, choices in _CHOICES.items():
        value = getattr(args, name)
        allowed = [choice.value for choice in choices]
        if getattr(value, "value", value) not in allowed:
            raise UsageError(f"`{name}` must be one of {', '.join(allowed)}, but it is {value!r}.")
    for name in ("log_level", "log_level_replica"):
        if getattr(args, name) not in trainer_log_levels:
            raise UsageError(
                f"`{name}` must be one of {', '.join(trainer_log_levels)}, but it is {getattr(args, name)!r}."
            )
    if args.ddp_backend is not None and args.ddp_backend not in torch.distributed.Backend.backend_list:
        known = ", ".join(torch.distributed.Backend.backend_list)
        raise UsageError(f"`ddp_backend` must be one of {known}, but it is {args.ddp_backend!r}.")
    _check_report_to(args.report_to)


def _check_report_to(report_to) -> None:
    names = report_to if isinstance(report_to, (list, tuple)) else [report_to]
    for name in names:
        if name in ("none", "all", None):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(["none", "all", *INTEGRATION_TO_CALLBACK])
            raise UsageError(f"`report_to` must be one of {known}, but it is {name!r}.")
        installed = get_available_reporting_integrations()
        if name not in (*installed, "flyte"):
            raise UsageError(
                f"`report_to` names {name!r}, which is not installed here. Install its package, or report to"
                f" {' or '.join(map(repr, ['none', *installed]))}."
            )


def check_json_arguments(args, names) -> None:
    """Raise UsageError for arguments that are neither JSON objects nor files that hold one.

    Args:
        names: of arguments that are a dict; or its JSON; or, but for those of domains, the path of a JSON file.
    """
    for name in names:
        value = getattr(args, name, None)
        if value is None or not isinstance(value, str):
            continue
        if value.lstrip().startswith("{"):
            text, where = value, f"`{name}`"
        elif name in ("mixture_weights", "reference_losses", "lr_scheduler_kwargs"):
            raise UsageError(f"`{name}` must be a JSON object such as '{{\"name\": 0.5}}', but it is {value!r}.")
        elif not Path(value).is_file():
            raise UsageError(f"`{name}` must be JSON or the path of a JSON file, but there is no file {value!r}.")
        else:
            text, where = read_text(value, name), f"`{name}` {value!r}"
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{where} must hold valid JSON: {error}. Mend it.") from error
        if not isinstance(content, dict):
            raise UsageError(f"{where} must hold a JSON object, but it holds a {type(content).__name__}.")


def read_text(path: str, name: str) -> str:
    """The text of a user's file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{name}` {path!r} is no text in UTF-8: {error}. Save it as UTF-8.") from error


def check_optimizer_arguments(args) -> None:
    """Make optimizer and schedule for one number, so that what they refuse is said now.

    Raises:
        UsageError: a package is missing, or one of ``optim_args``, ``lr_scheduler_kwargs`` is not known or out of range.
    """
    optim = args.optim.value
    package = next(
        (package for part, package in _PACKAGES.items() if part in optim and package != "bitsandbytes"), None
    )
    package = package or next((package for part, package in _PACKAGES.items() if part in optim), None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UsageError(
            f"`optim={optim!r}` needs the package `{package}`, which is not installed. Install it, or use 'adamw_torch'."
        )
    optimizer = None
    if not any(part in optim for part in _MODEL_OF_ITS_OWN):
        parameter = nn.Parameter(torch.zeros(1))
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = kind([parameter], **options)
        except (ValueError, TypeError, KeyError, ImportError) as error:
            raise UsageError(
                f"`optim={optim!r}` with `optim_args={args.optim_args!r}` can not be made: {error}. Correct `optim_args`,"
                " which reads NAME=VALUE,NAME=VALUE."
            ) from error
    if optimizer is None or getattr(args.lr_scheduler_type, "value", "") in ("reduce_lr_on_plateau", "greedy"):
        return
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"`lr_scheduler_type={args.lr_scheduler_type.value!r}` with `lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}`"
            f" can not be made: {error}. Correct `lr_scheduler_kwargs`, a JSON object."
        ) from error
