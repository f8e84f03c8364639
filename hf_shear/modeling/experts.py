"""Masks of experts: a closed one is not routed to, an open one's output is scaled by its gate.

Softmax and top-k then run over the open experts, which is exactly what the router of the sliced model does. The weights
of the experts that a token is routed to are small [tokens, k], so gates scale those, not the experts' weights, of which
slicing scales ``down_proj``.

Mixed into the classes of existing modules, as the classes of ``folding``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedRouter(nn.Module):
    """Mixed into a router that takes the top k of a softmax: ``output_mask`` [E], the gates of its experts.

    Attributes:
        weights_sum_to_one: the weights of the experts that a token is routed to are divided by their sum.
    """

    top_k: int
    output_mask: Tensor | None = None
    weights_sum_to_one: bool = False

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [tokens, E], and weights and indices [tokens, k] of the experts that tokens are routed to."""
        logits, weights, indices = super().forward(hidden_states)
        if self.output_mask is None:
            return logits, weights, indices
        # The lowest number, not -inf: a softmax gives 0 for both, but a row without any open expert, which a draw of
        # gates may have, must not become NaN.
        closed = self.output_mask == 0
        logits = logits.masked_fill(closed, torch.finfo(logits.dtype).min)
        probabilities = torch.softmax(logits.float(), dim=-1)
        chosen, indices = torch.topk(probabilities, self.top_k, dim=-1)
        if self.weights_sum_to_one:
            chosen = chosen / chosen.sum(dim=-1, keepdim=True)
        # Fewer open experts than k: closed ones fill the places, with gates of 0.
        return logits, chosen.to(weights.dtype) * self.output_mask[indices].to(weights.dtype), indices


class MaskedExperts(nn.Module):
    """Mixed into the experts of a layer: ``output_mask`` [d] or [1] scales what they write."""

    output_mask: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """As the stock method."""
        written = super().forward(hidden_states, *args, **kwargs)
        return written if self.output_mask is None else written * self.output_mask.to(written.dtype)
