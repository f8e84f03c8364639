"""The optimizer of masks and multipliers, apart from the one of the weights and from what wraps the model.

DDP, DeepSpeed and FSDP never see the masks: those clip all parameters by one norm, cast, shard or offload them. Masks
are a few thousand numbers, so every process keeps all of them in float32, with gradients that are averaged over
processes once per optimizer step. They are then the same on every backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from ..core import UsageError, num_processes
from ..masks import ShearingMasks

MASKS, MULTIPLIERS = "masks", "multipliers"
MASK_STATE_NAME = "mask_optimizer.safetensors"
_START = "kept_at_start."
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class MaskOptimizer:
    """AdamW over log_alpha and the multipliers, without weight decay.

    Its state is a function of the steps taken; there is no scheduler to save, since rates are functions of the step.

    Args:
        masks: of the masked model; on their device already.
        rates: peak learning rate by role (``MASKS``, ``MULTIPLIERS``).
        factor: optimizer step -> share of the peak rate.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        masks: ShearingMasks,
        rates: dict[str, float],
        factor: Callable[[int], float],
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        self.masks, self.rates, self.factor = masks, rates, factor
        members = {MASKS: list(masks.log_alpha.values()), MULTIPLIERS: masks.multipliers()}
        groups = [{"params": members[role], "lr": rates[role], "role": role} for role in members if members[role]]
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=0.0) if groups else None
        self._named = dict(masks.named_parameters())

    @torch.no_grad()
    def share(self) -> None:
        """Give every process the masks of the first one."""
        if num_processes() == 1 or not self._named:
            return
        flat = _flatten(list(self._named.values()))
        dist.broadcast(flat, src=0)
        _unflatten(flat, list(self._named.values()))

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average the gradients over processes, in one call."""
        if num_processes() == 1 or not self._named:
            return
        gradients = self._gradients()
        flat = _flatten(gradients)
        dist.all_reduce(flat)
        _unflatten(flat / dist.get_world_size(), gradients)

    def gradient_norm(self) -> Tensor:
        """L2 norm over all gradients of masks and multipliers: a scalar, 0 without any."""
        return torch.nn.utils.get_total_norm(self._gradients()) if self._named else torch.zeros(())

    def scale_gradients(self, scale: Tensor) -> None:
        """Multiply all gradients, to clip them together with those of the weights."""
        for gradient in self._gradients():
            gradient.mul_(scale)

    def step(self, step: int) -> None:
        """Take optimizer step number ``step`` (0 is the first), clamp log_alpha, and drop the gradients."""
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["role"]] * self.factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masks.clamp_log_alpha()

    def drifted(self) -> bool:
        """Whether any process holds other masks than the first one, bit for bit. All processes must ask."""
        if num_processes() == 1 or not self._named:
            return False
        mine = _flatten(list(self._named.values())).view(torch.int32)
        first = mine.clone()
        dist.broadcast(first, src=0)
        differs = (mine != first).any().int()
        dist.all_reduce(differs)
        return bool(differs.item())

    def save(self, folder: str | os.PathLike, kept_at_start: dict[str, Tensor]) -> None:
        """Write masks, multipliers, moments, and the units that the start keeps, to ``mask_optimizer.safetensors``."""
        tensors = {name: parameter.detach() for name, parameter in self._named.items()}
        for name, parameter in self._named.items():
            assert self.optimizer is not None
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{name}.{moment}": state[moment] for moment in _MOMENTS if moment in state}
        tensors |= {f"{_START}{kind}": kept for kind, kept in kept_at_start.items()}
        path = os.path.join(folder, MASK_STATE_NAME)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)

    @torch.no_grad()
    def load(self, folder: str | os.PathLike) -> dict[str, Tensor]:
        """Read what ``save`` wrote; returns the units that the start keeps.

        Raises:
            ValueError: the file is not there, or is of other masks.
        """
        path = os.path.join(folder, MASK_STATE_NAME)
        if not os.path.isfile(path):
            raise UsageError(
                f"The checkpoint {str(folder)!r} has no {MASK_STATE_NAME}: it is of recovery, or incomplete. Resume mask"
                " learning from a checkpoint of mask learning."
            )
        tensors = load_file(path)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if "." not in name}
        own = {name: tuple(parameter.shape) for name, parameter in self._named.items()}
        if found != own:
            raise UsageError(
                f"The checkpoint {str(folder)!r} is of other masks: it has {found}, the model has {own}. Resume with"
                " the same source, target and mask method."
            )
        for name, parameter in self._named.items():
            parameter.copy_(tensors[name])
            state = {moment: tensors[f"{name}.{moment}"] for moment in _MOMENTS if f"{name}.{moment}" in tensors}
            if state:
                assert self.optimizer is not None
                self.optimizer.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter.device) for moment, value in state.items()
                }

        return {name.removeprefix(_START): kept for name, kept in tensors.items() if name.startswith(_START)}

    def _gradients(self) -> list[Tensor]:
        """Gradients of all parameters; those that no loss reached are zero, as every process must send the same."""
        gradients = []
        for parameter in self._named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _unflatten(flat: Tensor, into: list[Tensor]) -> None:
    for part, tensor in zip(flat.split([tensor.numel() for tensor in into]), into, strict=True):
        tensor.copy_(part.view_as(tensor))
