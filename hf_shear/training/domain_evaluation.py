"""Held-out loss per domain, in one pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import IGNORED_LABEL, UsageError, check_ranges, evaluating
from ..data import collate_domain_samples


@torch.no_grad()
def evaluate_domains(
    model: torch.nn.Module,
    datasets: Mapping[str, Sequence],
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
        Loss per domain, nats per token (the sum of token losses over the number of tokens, both reduced over
        processes), and the number of tokens seen.

    Raises:
        ValueError: a domain has no samples.
    """
    check_ranges({"batch_size": batch_size, "world_size": world_size})
    names = list(datasets)
    for name in names:
        if len(datasets[name]) == 0:
            raise UsageError(f"`eval_dataset[{name!r}]` is empty: a domain without held-out samples has no loss.")
    order = [(index, sample) for index, name in enumerate(names) for sample in range(len(datasets[name]))]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_forwards = -(-len(batches) // world_size)
    device = next(model.parameters()).device
    totals = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    with evaluating(model):
        for forward in range(num_forwards):
            position = forward * world_size + rank
            batch, counts = (batches[position], True) if position < len(batches) else (batches[0], False)
            samples = [datasets[names[domain]][sample] for domain, sample in batch]
            losses, num_tokens = _sample_losses(model, samples, context)
            if counts:
                domains = torch.tensor([domain for domain, _ in batch], device=device)
                totals[0].index_add_(0, domains, losses.double())
                totals[1].index_add_(0, domains, num_tokens.double())
            if on_batch is not None:
                on_batch(num_forwards)
    if reduce is not None:
        totals = reduce(totals)
    sums, counts = totals.tolist()
    losses = {name: total / count for name, total, count in zip(names, sums, counts, strict=True)}
    return losses, round(sum(counts))


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
