"""Size of activations (Minitron, arXiv 2407.14679, section 2.2).

How large are outputs of norms (hidden dimensions), inputs of down_proj (neurons) and inputs of o_proj (heads)?

Legend: B samples, T length, L layers, KV key/value heads, g query heads per KV head, ff MLP width, d hidden size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..calibration import Batch, observe
from ..core import UsageError, sum_over_ranks
from ..data import Calibration
from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from ..modeling import ShearingMixin
from .coupled_weights import by_head, open_units
from .criterion import Scores, criterion

AGGREGATIONS = ("l2", "mean_abs")


@criterion(ranks=(HIDDEN, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE))
def activation(model: ShearingMixin, calibration: Calibration, *, aggregation: str = "l2") -> Scores:
    """Sizes of activations over the counted tokens, from one forward per batch.

    The size of a head (or group) at a token is the Euclidean norm of its outputs. Hidden dimensions sum over all norms
    that read the residual stream (of a family without such norms in its layers, over those that write to it).

    Args:
        aggregation: "l2", the mean over samples of the Euclidean norm over a sample's tokens; or "mean_abs", the mean
            over all tokens of absolute values.

    Returns:
        float32 [*rows, units] for all kinds but layers.

    Raises:
        ValueError: an unknown aggregation, or no token counts.
    """
    if aggregation not in AGGREGATIONS:
        raise UsageError(f"`aggregation` must be one of {', '.join(AGGREGATIONS)}, but it is {aggregation!r}.")
    gates, sizes = open_units(model), _Sizes(model, aggregation == "l2")
    inputs, outputs = {}, {model.model.norm: partial(sizes.add_hidden, 1.0)}
    for index, layer in enumerate(model.model.layers):
        inputs[layer.mlp.down_proj] = partial(sizes.add_neurons, index)
        inputs[layer.self_attn.o_proj] = partial(sizes.add_heads, index, gates[QUERY_HEAD][index])
        for name in model.family.pre_norms or model.family.post_norms:
            outputs[layer.get_submodule(name)] = partial(sizes.add_hidden, gates[LAYER][index])
    observe(model, calibration.batches, inputs, outputs)
    return sizes.means()


class _Sizes:
    def __init__(self, model: ShearingMixin, l2: bool):
        self.l2, self.shape = l2, model.masks.source
        self.sums = {
            kind.name: torch.zeros(kind.mask_shape, device=model.device)
            for kind in model.masks.kinds.values()
            if kind.name != LAYER
        }
        self.count = torch.zeros((), dtype=torch.float64, device=model.device)

    def add_hidden(self, share: Tensor | float, values: Tensor, batch: Batch) -> None:
        self.sums[HIDDEN] += share * self._over_tokens(values.float().square(), batch.counted)

    def add_neurons(self, layer: int, values: Tensor, batch: Batch) -> None:
        if layer == 0:  # each batch is counted once
            self.count += batch.counted.any(dim=1).sum() if self.l2 else batch.num_tokens
        self.sums[INTERMEDIATE][layer] += self._over_tokens(values.float().square(), batch.counted)

    def add_heads(self, layer: int, queries_open: Tensor, values: Tensor, batch: Batch) -> None:
        squares = by_head(values.float().square(), self.shape).sum(dim=-1) * queries_open
        self.sums[QUERY_HEAD][layer] += self._over_tokens(squares, batch.counted)
        self.sums[KEY_VALUE_HEAD][layer] += self._over_tokens(squares.sum(dim=-1), batch.counted)

    def _over_tokens(self, squares: Tensor, counted: Tensor) -> Tensor:
        """Of squared sizes [B, T, *units]: summed sizes of samples, or of tokens."""
        weights = counted.to(squares.dtype)
        if self.l2:
            return torch.einsum("bt,bt...->b...", weights, squares).sqrt().sum(dim=0)
        return torch.einsum("bt,bt...->...", weights, squares.sqrt())

    def means(self) -> Scores:
        sum_over_ranks(self.count, self.sums.values())
        return {name: (total / self.count).float() for name, total in self.sums.items()}
