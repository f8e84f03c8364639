"""Slopes of the loss by the gates of all units, per sample or per token, from one backward pass per batch.

The gate z of a unit multiplies tensors on the way of the forward: a neuron's its input of down_proj, a head's the
inputs of o_proj, a hidden dimension's the embedding, the outputs of norms that read the residual stream, of o_proj and
of down_proj, a layer's the outputs of o_proj and down_proj, or of the norms behind them where a family has those; an
expert's the weight that its router gives it, and the output of a mixture stands for that of down_proj. So
dL/dz is the sum of a * dL/da over those tensors a, and a sum over the positions of one sample alone is the slope of
that sample's loss: samples do not see each other.

Legend: B samples, T length, L layers, KV key/value heads, g query heads per KV head, ff MLP width, d hidden size, E
experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from ..core import UsageError, sum_over_ranks
from ..masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from ..modeling import ShearingMixin
from .engine import Batch, Watcher, measuring, sample_losses, shown, watching

Magnitude = Callable[[Tensor], Tensor]


def mean_over_slopes(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    magnitude: Magnitude = torch.abs,
    per_token: bool = False,
) -> dict[str, Tensor]:
    """Mean over samples of ``magnitude`` of each unit's slope, weighted by the samples' predicted tokens.

    Args:
        model: a masked model; units closed in its gates in use have slope 0.
        batches: split as memory asks for; the result does not depend on it.
        magnitude: of slopes of a sample's mean loss, nats per token.
        per_token: sum the magnitudes of every position's part of the slope, in place of the magnitude of their sum.

    Returns:
        float32 [*rows, units] for all kinds.

    Raises:
        ValueError: no tokens to predict, or slopes that are not finite.
    """
    places = _Places(model, magnitude, per_token)
    num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
    with measuring(model, weights_require_grad=False), torch.enable_grad():
        for batch in shown(batches, model.device, "Gradients of gates"):
            with watching(batch, places.inputs, places.outputs):
                losses, counts = sample_losses(model, batch.inputs)
            num_tokens += counts.sum()
            places.weights = counts
            (gradient,) = torch.autograd.grad((losses / counts.clamp(min=1)).sum(), [places.embedded])
            places.add_residual(places.embedded.detach(), gradient)
            places.finish_batch()
    sum_over_ranks(num_tokens, places.sums.values())
    if num_tokens == 0:
        raise UsageError("`batches` is empty or predicts no token: Taylor scores need at least one calibration batch.")
    bad = [name for name, total in places.sums.items() if not bool(torch.isfinite(total).all())]
    if bad:
        raise UsageError(
            f"The gates' gradients are not finite for {bad}: the source gives NaN or infinite losses on the calibration"
            " text. Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return {name: (total / num_tokens).float() for name, total in places.sums.items()}


class _Places:
    """Hooks on the tensors that gates multiply. Gradients are used as they come, and none is kept."""

    def __init__(self, model: ShearingMixin, magnitude: Magnitude, per_token: bool):
        self.magnitude, self.per_token, self.shape = magnitude, per_token, model.masks.source
        self.sums = {
            kind.name: torch.zeros(kind.mask_shape, device=model.device) for kind in model.masks.kinds.values()
        }
        self.embedded: Tensor  # the graph of a batch begins here
        self.weights: Tensor  # [B]
        self.hidden: Tensor | float = 0.0  # [B, T or 1, d]
        self.layers: dict[int, Tensor] = {}  # [B, T or 1]
        self.inputs: dict[nn.Module, Watcher] = {}
        self.outputs: dict[nn.Module, Watcher] = {model.model.embed_tokens: self._begin}
        family, add = model.family, self.add_residual
        self.outputs[model.model.norm] = _with_gradient(add)
        for index, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn.o_proj, layer.mlp if family.has_experts else layer.mlp.down_proj
            for name in family.pre_norms:
                self.outputs[layer.get_submodule(name)] = _with_gradient(add)
            for module in (attention, mlp):
                self.outputs[module] = _with_gradient(partial(add, layer=None if family.post_norms else index))
            for name in family.post_norms:
                self.outputs[layer.get_submodule(name)] = _with_gradient(partial(add, of_hidden=False, layer=index))
            self.inputs[attention] = _with_gradient(partial(self._add_heads, index))
            if family.has_experts:
                self.outputs[layer.mlp.gate] = partial(self._watch_router, index)
            else:
                self.inputs[mlp] = _with_gradient(partial(self._add_neurons, index))

    def _begin(self, output: Tensor, batch: Batch) -> None:
        self.embedded = output.requires_grad_()

    def _part(self, value: Tensor, gradient: Tensor) -> Tensor:
        """a * dL/da, [B, T or 1, C]."""
        part = value.float() * gradient.float()
        return part if self.per_token else part.sum(dim=1, keepdim=True)

    def add_residual(self, value: Tensor, gradient: Tensor, of_hidden: bool = True, layer: int | None = None) -> None:
        """Of a tensor that gates of hidden dimensions multiply, that of a layer, or both."""
        part = self._part(value, gradient)
        if of_hidden:
            self.hidden = self.hidden + part
        if layer is not None:
            self.layers[layer] = self.layers.get(layer, 0.0) + part.sum(dim=-1)

    def _add_heads(self, layer: int, value: Tensor, gradient: Tensor) -> None:
        by_head = (self.shape.num_key_value_heads, -1, self.shape.head_dim)
        queries = self._part(value, gradient).unflatten(-1, by_head).sum(dim=-1)
        self.sums[QUERY_HEAD][layer] += self._mean(queries)
        self.sums[KEY_VALUE_HEAD][layer] += self._mean(queries.sum(dim=-1))

    def _add_neurons(self, layer: int, value: Tensor, gradient: Tensor) -> None:
        self.sums[INTERMEDIATE][layer] += self._mean(self._part(value, gradient))

    def _watch_router(self, layer: int, output: tuple[Tensor, Tensor, Tensor], batch: Batch) -> None:
        """Weights and indices [B * T, k] of the experts that tokens are routed to."""
        _, weights, indices = output
        _with_gradient(partial(self._add_experts, layer, indices))(weights, batch)

    def _add_experts(self, layer: int, indices: Tensor, value: Tensor, gradient: Tensor) -> None:
        slopes = torch.zeros(len(indices), self.sums[EXPERT].shape[-1], device=value.device)
        slopes.scatter_add_(1, indices, value.float() * gradient.float())
        slopes = slopes.unflatten(0, (len(self.weights), -1))  # [B, T, E]
        slopes = slopes if self.per_token else slopes.sum(dim=1, keepdim=True)
        self.sums[EXPERT][layer] += self._mean(slopes)

    def _mean(self, slopes: Tensor) -> Tensor:
        """Magnitudes [B, T or 1, *units], summed over positions, and over samples by their weight."""
        return torch.tensordot(self.weights, self.magnitude(slopes).sum(dim=1), dims=1)

    def finish_batch(self) -> None:
        assert isinstance(self.hidden, Tensor), "a batch has passed"
        self.sums[HIDDEN] += self._mean(self.hidden)
        layers = torch.stack([self.layers[index] for index in range(len(self.layers))], dim=-1)
        self.sums[LAYER] += self._mean(layers)
        self.hidden, self.layers = 0.0, {}
        del self.embedded


def _with_gradient(add: Callable[[Tensor, Tensor], None]) -> Watcher:
    """A watcher that calls ``add`` with a value and its gradient, once the backward pass has come there."""

    def watch(value: Tensor, batch: Batch) -> None:
        detached = value.detach()
        value.register_hook(lambda gradient: add(detached, gradient))

    return watch
