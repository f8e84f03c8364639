"""Learning rates over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from ..core import UsageError


def peak_share(args: TrainingArguments) -> Callable[[int], float]:
    """The schedule of the weights as a function: optimizer step -> share of the peak rate."""
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    options: Any = args.lr_scheduler_kwargs  # a dict by now, whatever it was read from
    scheduler: Any = get_scheduler(
        args.lr_scheduler_type,
        stand_in,
        num_warmup_steps=args.get_warmup_steps(args.max_steps),
        num_training_steps=args.max_steps,
        scheduler_specific_kwargs=options,
    )
    return scheduler.lr_lambdas[0]


def set_peak_rate(scheduler, optimizer, rate: float) -> None:
    """Give a resumed optimizer a new peak learning rate, at the same place of the schedule.

    Raises:
        ValueError: the scheduler is not of a kind whose rate can be changed.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
    for index, group in enumerate(optimizer.param_groups):
        before = group.get("initial_lr", group["lr"])
        if before == rate:
            continue
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise UsageError(
                f"The checkpoint learned at {before:g}, now {rate:g} is asked for, but a resumed"
                f" {type(scheduler).__name__} cannot change its rate. Resume with the same rate, or start again."
            )
        group["initial_lr"] = scheduler.base_lrs[index] = rate
        group["lr"] = scheduler._last_lr[index] = rate * scheduler.lr_lambdas[index](scheduler.last_epoch)
