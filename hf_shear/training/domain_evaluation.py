"""Held-out loss per domain, in one pass over all of them, and how far chance may have moved it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import IGNORED_LABEL, UsageError, check_ranges, evaluating, tracked
from ..data import collate_domain_samples


@dataclass(frozen=True)
class SampleLosses:
    """What one domain's samples gave.

    Attributes:
        sums: [samples] token cross-entropies of each sample, summed, in nats.
        num_tokens: [samples] predicted tokens of each.
    """

    sums: list[float]
    num_tokens: list[int]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return math.fsum(self.sums) / sum(self.num_tokens)

    @property
    def standard_error(self) -> float:
        """Of the mean, for samples drawn at random: that of a ratio of two means; infinite for a single sample.

        Their number of tokens is part of the draw: ``sqrt(m / (m - 1) * sum((sums - mean * num_tokens)**2)) /
        sum(num_tokens)`` for m samples.
        """
        count, mean = len(self.sums), self.mean
        if count < 2:
            return math.inf
        squares = math.fsum((loss - mean * n) ** 2 for loss, n in zip(self.sums, self.num_tokens, strict=True))
        return math.sqrt(squares * count / (count - 1)) / sum(self.num_tokens)

    def above(self, reference: Sequence[float]) -> SampleLosses:
        """The difference to another model's ``sums`` on the same samples, which are its first if it has more."""
        pairs = zip(self.sums, reference[: len(self.sums)], strict=True)
        return SampleLosses([own - other for own, other in pairs], self.num_tokens)


def evaluate_domains(
    model: torch.nn.Module,
    datasets: Mapping[str, Any],
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[int], None] | None = None,
    context: Callable[[], Any] | None = None,
) -> tuple[dict[str, float], int]:
    """Mean token cross-entropy of each domain, over all its samples.

    Args:
        model: any causal language model; its mode is set to evaluation and put back.
        datasets: packed samples per domain.
        batch_size: samples per forward; a batch may span domains.
        rank, world_size: this process's share of the batches. Every process runs the same number of forwards, which
            sharded models need; surplus ones count nothing.
        reduce: sums a tensor over processes; needed if ``world_size`` > 1.
        on_batch: called after each forward with the number of forwards in all.
        context: makes the context manager to run each forward in (autocast).

    Returns:
        Loss per domain, nats per token (the sum of token losses over the number of tokens, both over all
        processes), and the number of tokens seen.

    Raises:
        ValueError: a domain has no samples.
    """
    found = evaluate_samples(
        model, datasets, batch_size, rank=rank, world_size=world_size, reduce=reduce, on_batch=on_batch, context=context
    )
    return {name: it.mean for name, it in found.items()}, sum(sum(it.num_tokens) for it in found.values())


@torch.no_grad()
def evaluate_samples(
    model: torch.nn.Module,
    datasets: Mapping[str, Any],
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[int], None] | None = None,
    context: Callable[[], Any] | None = None,
) -> dict[str, SampleLosses]:
    """As ``evaluate_domains``, the losses of each sample: all of them in every process, the same to the last bit."""
    check_ranges({"batch_size": batch_size, "world_size": world_size})
    names = list(datasets)
    for name in names:
        if len(datasets[name]) == 0:
            raise UsageError(f"`eval_dataset[{name!r}]` is empty: a domain without held-out samples has no loss.")
    order = [(index, sample) for index, name in enumerate(names) for sample in range(len(datasets[name]))]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_forwards = -(-len(batches) // world_size)
    device = next(model.parameters()).device
    totals = torch.zeros(2, len(order), dtype=torch.float64, device=device)  # one process writes each, the others add 0
    with evaluating(model):
        steps = range(num_forwards)
        for forward in steps if on_batch is not None else tracked(steps, "Held-out loss"):
            position = forward * world_size + rank
            batch, counts = (batches[position], True) if position < len(batches) else (batches[0], False)
            samples = [datasets[names[domain]][sample] for domain, sample in batch]
            losses, num_tokens = _sample_losses(model, samples, context)
            if counts:
                start = position * batch_size
                totals[0, start : start + len(batch)] = losses.double()
                totals[1, start : start + len(batch)] = num_tokens.double()
            if on_batch is not None:
                on_batch(num_forwards)
    if reduce is not None:
        totals = reduce(totals)
    sums, counts = totals.tolist()
    found, start = {}, 0
    for name in names:
        end = start + len(datasets[name])
        found[name] = SampleLosses(sums[start:end], [round(count) for count in counts[start:end]])
        start = end
    return found


def _sample_losses(model: torch.nn.Module, samples: list[dict], context) -> tuple[Tensor, Tensor]:
    """Sum of the token cross-entropies (float32) and number of tokens predicted, [samples] each."""
    batch = {
        name: tensor.to(next(model.parameters()).device) for name, tensor in collate_domain_samples(samples).items()
    }
    targets = batch.pop("labels")[:, 1:]
    with context() if context is not None else nullcontext():
        logits = model(**batch, use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED_LABEL
    )
    return losses.view(targets.shape).sum(dim=1), (targets != IGNORED_LABEL).sum(dim=1)
