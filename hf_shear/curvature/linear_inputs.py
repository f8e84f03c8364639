"""Second moments of the inputs of linear layers, from forward passes alone.

Legend: C inputs of a linear layer, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class InputMoments:
    """Sums over tokens, in float32 or wider.

    Attributes:
        second: [C, C], sum of a a^T.
        first: [C], sum of a.
        num_tokens: N.
    """

    second: Tensor
    first: Tensor
    num_tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        """Count the inputs [..., C] of a forward."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(self.second.dtype)
        self.second.addmm_(flat.t(), flat)
        self.first.add_(flat.sum(dim=0))
        self.num_tokens += len(flat)

    @property
    def gram(self) -> Tensor:
        """A = E[a a^T], [C, C]."""
        return self.second / self.num_tokens

    @property
    def mean(self) -> Tensor:
        """E[a], [C]."""
        return self.first / self.num_tokens


@torch.no_grad()
def input_moments(
    model: nn.Module, names: Iterable[str], batches: Iterable[dict[str, Tensor]], dtype: torch.dtype = torch.float32
) -> dict[str, InputMoments]:
    """Moments of the inputs of the linear layers ``names`` of ``model``, all held at once.

    Args:
        names: as in ``named_modules``.
        batches: keyword arguments of the model's forward, on its device.
    """
    moments, handles = {}, []
    for name in names:
        module = model.get_submodule(name)
        size, device = module.in_features, module.weight.device
        moments[name] = InputMoments(
            torch.zeros(size, size, dtype=dtype, device=device), torch.zeros(size, dtype=dtype, device=device)
        )
        handles.append(module.register_forward_pre_hook(lambda _, args, found=moments[name]: found.add(args[0])))
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return moments
