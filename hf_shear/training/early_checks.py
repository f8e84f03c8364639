"""What transformers and torch would refuse late, in words of their own: tried at the start, and said with the argument."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from enum import Enum

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from ..core import UsageError, json_object, read_json_object

_CHOICES: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
_PACKAGES = {
    "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "galore": "galore_torch", "apollo": "apollo_torch",
    "grokadamw": "grokadamw", "stable_adamw": "optimi", "anyprecision": "torchdistx", "xla": "torch_xla",
    "npu": "torch_npu", "bnb": "bitsandbytes", "8bit": "bitsandbytes", "paged": "bitsandbytes", "lion": "bitsandbytes",
    "ademamix": "bitsandbytes",
}  # fmt: skip
"""By a part of the optimizer's name; the first that fits."""
_DDP_BACKENDS = ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl")  # those that transformers names
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_INLINE = ("mixture_weights", "reference_losses", "lr_scheduler_kwargs")  # JSON, never the path of a file
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
    compilers = [backend.value.lower() for backend in DynamoBackend]
    if args.torch_compile_backend is not None and args.torch_compile_backend.lower() not in compilers:
        raise UsageError(
            f"`torch_compile_backend` must be one of {', '.join(compilers)}, but it is {args.torch_compile_backend!r}."
        )
    if args.torch_compile_mode not in (None, *_COMPILE_MODES):
        raise UsageError(
            f"`torch_compile_mode` must be one of {', '.join(_COMPILE_MODES)}, but it is {args.torch_compile_mode!r}."
        )
    if args.liger_kernel_config is not None and not args.use_liger_kernel:
        raise UsageError("`liger_kernel_config` has no effect without `use_liger_kernel`. Give both, or leave it out.")
    registered = torch.distributed.Backend.backend_list if torch.distributed.is_available() else []
    if args.ddp_backend is not None and args.ddp_backend not in (*_DDP_BACKENDS, *registered):
        raise UsageError(f"`ddp_backend` must be one of {', '.join(_DDP_BACKENDS)}, but it is {args.ddp_backend!r}.")
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
        if name == "accelerator_config" and isinstance(value, dict):
            _check_accelerator_fields(value)
        if value is None or not isinstance(value, str):
            continue
        if value.startswith("{"):
            content = json_object(value, f"`{name}`")
        elif name in _INLINE:
            raise UsageError(f"`{name}` must be a JSON object such as '{{\"name\": 0.5}}', but it is {value!r}.")
        else:
            content = read_json_object(value, f"`{name}`")
        if name == "accelerator_config":
            _check_accelerator_fields(content)


def _check_accelerator_fields(content: dict) -> None:
    known = [field.name for field in dataclasses.fields(AcceleratorConfig)]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise UsageError(f"`accelerator_config` must hold some of {', '.join(known)}, but it has {unknown[0]!r}.")


def check_optimizer_arguments(args) -> None:
    """Make optimizer and schedule for one number, so that what they refuse is said now.

    Raises:
        UsageError: a package is missing, or one of ``optim_args``, ``lr_scheduler_kwargs`` is not known or out of range.
    """
    optim = args.optim.value
    package = next((package for part, package in _PACKAGES.items() if part in optim), None)
    if package is not None and importlib.util.find_spec(package) is None:
        how = "pip install 'hf-shear[bitsandbytes]'" if package == "bitsandbytes" else "Install it"
        raise UsageError(
            f"`optim={optim!r}` needs the package `{package}`, which is not installed. {how}, or use 'adamw_torch'."
        )
    of_modules = any(part in optim for part in _MODEL_OF_ITS_OWN)
    if args.optim_target_modules is not None and not of_modules:
        raise UsageError(f"`optim_target_modules` has no effect on `optim={optim!r}`. Leave it out.")
    if of_modules:
        return
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([nn.Parameter(torch.zeros(1))], **options)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        reason = str(error).rstrip(".")
        raise UsageError(
            f"`optim={optim!r}` with `optim_args={args.optim_args!r}` can not be made: {reason}. Correct `optim_args`,"
            " which reads NAME=VALUE,NAME=VALUE."
        ) from error
    if args.optim_args:
        plain = copy.copy(args)
        plain.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(plain)[1] == options:
            raise UsageError(f"`optim_args={args.optim_args!r}` has no effect on `optim={optim!r}`. Leave it out.")
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"`lr_scheduler_type={args.lr_scheduler_type.value!r}` with `lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}`"
            f" can not be made: {str(error).rstrip('.')}. Correct `lr_scheduler_kwargs`, a JSON object."
        ) from error
