"""How far the loss rises without several layers: they are removed one after another, each where the loss is lowest.

Rises of single layers do not add up: of two that do the same, each is cheap and both together are dear. So a layer is
chosen with the ones before it gone. What compensation will make up for is told by the mean of what a layer adds, which
stands in its place: losses are then close to those after least squares, and order layers as these do
(examples/docs/criteria.md).

Few losses are measured. Candidates are the layers that turn the residual stream least (ShortGPT, arXiv 2403.03853). A rise
hardly ever falls as more layers go, so that the last one known is a lower bound, and only the lowest is measured anew until
it stays lowest (lazy greedy search, Minoux 1978). And only what comes behind the first change runs again: hidden states in
front of every layer are kept, of ``num_tokens`` tokens, and once more without the layer that was measured last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calibration import LayerRunner, measuring, shown
from ..calibration.engine import split_samples
from ..core import UsageError, sum_over_ranks, tracked
from ..data import Calibration
from ..masks import LAYER
from ..modeling import ShearingMixin
from .criterion import Scores, criterion

NUM_TOKENS = 4096
"""Of the calibration text: enough to rank layers (examples/docs/criteria.md)."""
SHORTLIST = 1.5
"""Candidates for each layer that goes."""
LEAST_CANDIDATES = 8


@criterion(ranks=(LAYER,), comparable_across_layers=True, presumes_compensation=True, scores_the_cut=True)
def joint_rise(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    num_tokens: int = NUM_TOKENS,
    shortlist: float = SHORTLIST,
    mean: bool = True,
    protected: str = "",
) -> Scores:
    """Rise of the mean loss per token once a layer is gone, with all layers that go before it.

    Without a target (an allocation to a budget), each layer's alone.

    Args:
        num_tokens: of the first samples of the calibration text, which are read; 0: all.
        shortlist: candidates for each layer that goes, at least ``LEAST_CANDIDATES`` in all; 0: all layers.
        mean: whether the mean of what a layer adds stands in its place, as compensation can do. False: nothing does.
        protected: indices of layers that no search removes, separated by blanks, such as "0 7". Pruning sets them by its
            ``protect``.

    Returns:
        float32 [layers], nats per token; of layers that stay, lower bounds. Those that were no candidates follow above all
        others, by their influence. 0 for a layer that is closed.

    Raises:
        ValueError: `protected` names no layer, or too many; no tokens to predict, or a loss that is not finite.
    """
    batches, _ = split_samples(calibration.batches, calibration.num_samples_of(num_tokens))
    kind = model.masks.kinds[LAYER]
    stays = _layers(protected, kind.num_units, kind.num_kept)
    with measuring(model):
        search = _Search(model, batches, mean)
        num_removed = max(len(search.open) - kind.num_kept, 0)
        candidates = sorted(set(search.open) - stays, key=lambda layer: (search.influence[layer], layer))
        if num_removed and shortlist:
            candidates = candidates[: max(math.ceil(shortlist * num_removed), LEAST_CANDIDATES)]
        rises = {
            layer: search.rise(layer) for layer in tracked(candidates[::-1], "Loss without each layer", unit="layer")
        }
        scores, fresh, before = dict(rises), set(candidates), 0.0
        for place in tracked(range(num_removed), "Loss without more layers", unit="layer"):
            while (best := min(rises, key=lambda layer: (rises[layer], layer))) not in fresh:
                rises[best] = search.rise(best) - search.total
                fresh.add(best)
            before = max(before, search.total + rises[best])
            scores |= {layer: max(before, search.total + rise) for layer, rise in rises.items()} | {best: before}
            rise = rises.pop(best)
            fresh.clear()
            if place + 1 < num_removed:
                search.remove(best, rise)
    found, highest = torch.zeros(kind.num_units, device=model.device), max(scores.values(), default=0.0)
    for layer in search.open:
        found[layer] = scores[layer] if layer in scores else highest + search.influence[layer]
    return {LAYER: found}


def _layers(protected: str, num_layers: int, num_kept: int) -> set[int]:
    names = protected.split()
    if not all(name.isdecimal() and int(name) < num_layers for name in names) or len(set(names)) > num_kept:
        raise UsageError(
            f"`protected` of joint_rise must name at most {num_kept} of the layers 0 to {num_layers - 1}, separated by"
            f" blanks, but it is {protected!r}. To protect layers from pruning, say `protect`."
        )
    return {int(name) for name in names}


class _Search:
    """The loss of a model from which layers go.

    Attributes:
        open: layers that are open in the gates in use.
        influence: of each, 1 - cosine of its input and output.
        total: rise of the loss by the layers that were removed.
    """

    @torch.no_grad()
    def __init__(self, model: ShearingMixin, batches: list[dict[str, Tensor]], mean: bool):
        gate = model.gates_in_use.get(LAYER)
        self.open = (
            list(range(model.masks.source.num_hidden_layers)) if gate is None else gate.nonzero().flatten().tolist()
        )
        self.runner, self.total, self._removed = LayerRunner(model), 0.0, set()
        self._waiting = [self.runner.in_front_of_layers(batch) for batch in shown(batches, model.device)]
        self._hidden = {self.open[0]: [batch.hidden for batch in self._waiting]}  # by the layer that they wait for
        self._num_predicted = torch.tensor(
            [sum(batch.num_predicted for batch in self._waiting)], dtype=torch.float64, device=model.device
        )
        sum_over_ranks(self._num_predicted)
        if not bool(self._num_predicted):
            raise UsageError(
                "`batches` predicts no token: the loss rise of layers needs at least one calibration batch that does."
            )
        # The layer that was measured last, and what waits behind it without it.
        self._without: tuple[int, dict[int, list[Tensor]]] = -1, {}
        self.influence: dict[int, float] = {}
        self._means: dict[int, Tensor] = {}
        outputs = self._hidden[self.open[0]]
        for layer in tracked(self.open, "Influence of layers", unit="layer"):
            self._hidden[layer], inputs = outputs, outputs
            outputs = [self.runner.run(layer, *pair) for pair in zip(inputs, self._waiting, strict=True)]
            self._note(layer, inputs, outputs, mean)
        self._whole = self._loss(outputs)

    def _note(self, layer: int, inputs: list[Tensor], outputs: list[Tensor], mean: bool) -> None:
        added = torch.zeros(inputs[0].shape[-1], dtype=torch.float64, device=inputs[0].device)
        sums = torch.zeros(2, dtype=torch.float64, device=inputs[0].device)  # of 1 - cosine, and tokens
        for batch, before, after in zip(self._waiting, inputs, outputs, strict=True):
            x, y = batch.rows(before).float(), batch.rows(after).float()
            added += (y - x).sum(dim=0)
            sums += torch.stack([(1 - F.cosine_similarity(x, y, dim=-1)).sum(), sums.new_tensor(batch.num_tokens)])
        sum_over_ranks(added, sums)
        self.influence[layer] = float(sums[0] / sums[1])
        self._means[layer] = (added / sums[1] if mean else torch.zeros_like(added)).to(inputs[0].dtype)

    @torch.no_grad()
    def rise(self, layer: int) -> float:
        """Of the loss without ``layer`` and those that were removed, over that with all."""
        self._without = layer, {}  # the one before is let go first
        hidden = [hidden + self._means[layer] for hidden in self._hidden[layer]]
        for index in self.open[self.open.index(layer) + 1 :]:
            self._without[1][index] = hidden
            if index in self._removed:
                hidden = [one + self._means[index] for one in hidden]
            else:
                hidden = [self.runner.run(index, *pair) for pair in zip(hidden, self._waiting, strict=True)]
        return self._loss(hidden) - self._whole

    def remove(self, layer: int, rise: float) -> None:
        """Remove a layer for good, from ``total`` on by ``rise``, which is that of now."""
        if self._without[0] != layer:
            self.rise(layer)
        self._hidden |= self._without[1]
        self.total += rise
        self._removed.add(layer)

    @torch.no_grad()
    def _loss(self, hidden: list[Tensor]) -> float:
        """Mean loss per token."""
        losses = [self.runner.summed_loss(*pair).double() for pair in zip(hidden, self._waiting, strict=True)]
        total = torch.stack(losses).sum()
        sum_over_ranks(total)
        mean = float(total / self._num_predicted)
        if not mean < float("inf"):
            raise UsageError(
                "The loss without a layer, or with all, is not finite on the calibration text: check the checkpoint and its"
                " dtype (float16 often overflows; bfloat16 or float32 does not)."
            )
        return mean
