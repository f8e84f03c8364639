"""Optimizer groups and learning rates of weights, masks and multipliers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..modeling import ShearingMixin

WEIGHTS, MASKS, MULTIPLIERS = "weights", "masks", "multipliers"


def is_mask_parameter(name: str) -> bool:
    """Whether a parameter (by its name in the masked model) belongs to masks or multipliers."""
    return name.startswith("masks.")


def parameter_groups(
    model: nn.Module, decay_names: set[str], weight_decay: float, mask_learning_rate: float, multiplier_rate: float
) -> list[dict]:
    """Groups with a ``role`` each. Masks and multipliers have rates of their own and no weight decay.

    Empty groups are left out. Weights take the optimizer's own learning rate.
    """
    weights = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_mask_parameter(name)]
    groups = [
        {"params": [p for name, p in weights if name in decay_names], "weight_decay": weight_decay, "role": WEIGHTS},
        {"params": [p for name, p in weights if name not in decay_names], "weight_decay": 0.0, "role": WEIGHTS},
    ]
    if isinstance(model, ShearingMixin):
        rates = {MASKS: mask_learning_rate, MULTIPLIERS: multiplier_rate}
        members = {MASKS: list(model.masks.log_alpha.values()), MULTIPLIERS: model.masks.multipliers()}
        groups += [{"params": members[role], "lr": rates[role], "weight_decay": 0.0, "role": role} for role in rates]
    return [group for group in groups if group["params"]]


def set_group_schedule(
    scheduler: torch.optim.lr_scheduler.LambdaLR, roles: tuple[str, ...], factor: Callable[[int], float]
) -> None:
    """Let the learning rates of the groups with these roles follow ``factor`` of the optimizer step."""
    for index, group in enumerate(scheduler.optimizer.param_groups):
        if group.get("role") in roles:
            scheduler.lr_lambdas[index] = factor
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
            scheduler._last_lr[index] = group["lr"]


def set_group_rates(scheduler, optimizer, rates: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Give the groups of each role a new peak learning rate, at the same place of the schedule.

    Returns:
        (old, new) peak rate of the roles that changed.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
    changed = {}
    for index, group in enumerate(optimizer.param_groups):
        role = group.get("role")  # a user's own optimizer has none, and keeps its rates
        before = group.get("initial_lr", group["lr"])
        now = rates.get(role, before)
        if before == now:
            continue
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise ValueError(
                f"The checkpoint learned {role} at {before:g}, now {now:g} is asked for, but a resumed"
                f" {type(scheduler).__name__} cannot change its rate. Resume with the same rate, or start again."
            )
        group["initial_lr"] = scheduler.base_lrs[index] = now
        group["lr"] = scheduler._last_lr[index] = now * scheduler.lr_lambdas[index](scheduler.last_epoch)
        changed[role] = (before, now)
    return changed
