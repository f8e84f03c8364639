"""Carry AdamW's moments over the cut, so that recovery goes on where mask learning stopped.

A fresh optimizer would have to warm up again, and spend tokens on it. Measured in model_cards/shearing.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..slicing import KeptUnits, select_kept

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


def has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state of an optimizer is AdamW's, whole and in this process."""
    return isinstance(_inner(optimizer), (torch.optim.AdamW, torch.optim.Adam))


def save_kept_moments(
    path: str | Path, optimizer: torch.optim.Optimizer, model: nn.Module, kept: KeptUnits, head_dim: int
) -> None:
    """Write the moments of the weights that a slice keeps, under their names in the sliced model (safetensors).

    Args:
        path: the file.
        optimizer: one that ``has_moments``, as mask learning left it.
        model: the masked model it trained.
        kept: the units that the slice keeps.
        head_dim: channels per head.
    """
    state = _inner(optimizer).state
    trained = {name: state[p] for name, p in model.named_parameters() if p in state and not name.startswith("masks.")}
    saved = {_STEP: torch.tensor(max((float(entry["step"]) for entry in trained.values()), default=0.0))}
    for moment in _MOMENTS:
        kept_moments = select_kept({name: entry[moment] for name, entry in trained.items()}, kept, head_dim)
        saved |= {f"{moment}:{name}": tensor.contiguous().cpu() for name, tensor in kept_moments.items()}
    save_file(saved, path)


def load_moments(path: str | Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Start ``optimizer`` with the moments that ``save_kept_moments`` wrote for the weights of ``model``.

    Raises:
        ValueError: the optimizer is not AdamW, or the file is of another model.
    """
    inner = _inner(optimizer)
    if not has_moments(inner):
        raise ValueError(
            f"`start_moments` needs AdamW, but the optimizer is {type(inner).__name__}: leave it out to start afresh."
        )
    saved = load_file(path)
    step = saved.pop(_STEP)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted(
        {name for name, p in weights.items() for moment in _MOMENTS if _shape(saved, moment, name) != p.shape}
        | {key.split(":")[1] for key in saved if key.split(":")[1] not in weights}
    )
    if wrong:
        raise ValueError(
            f"`start_moments={str(path)!r}` is of another model: {len(wrong)} weights differ in name or shape, such as"
            f" {wrong[0]!r}. Give the file that was written when this model was cut, or none."
        )
    for name, parameter in weights.items():
        inner.state[parameter] = {
            # On the CPU, as torch has it, unless the optimizer is one whose kernels read the step on the device.
            "step": step.clone().to(parameter.device if _on_device(inner) else "cpu"),
            **{moment: saved[f"{moment}:{name}"].to(parameter) for moment in _MOMENTS},
        }


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
        optimizer = optimizer.optimizer
    return optimizer


def _shape(saved: dict[str, Tensor], moment: str, name: str) -> torch.Size | None:
    tensor = saved.get(f"{moment}:{name}")
    return None if tensor is None else tensor.shape


def _on_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
