"""Held-out loss per domain, in one pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    names = list(datasets)
    for name in names:
        if len(datasets[name]) == 0:
            raise ValueError(f"`eval_dataset[{name!r}]` is empty: a domain without held-out samples has no loss.")
    order = [(index, sample) for index, name in enumerate(names) for sample in range(len(datasets[name]))]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_forwards = -(-len(batches) // world_size)
    device = next(model.parameters()).device
    totals = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        for forward in range(num_forwards):
            position = forward * world_size + rank
            batch, counts = (batches[position], True) if position < len(batches) else (batches[0], False)
            losses = _sample_losses(model, [datasets[names[domain]][sample] for domain, sample in batch], context)
            if counts:
                domains = torch.tensor([domain for domain, _ in batch], device=device)
                totals[0].index_add_(0, domains, losses.sum(dim=1).double())
                totals[1].index_add_(0, domains, torch.full_like(losses[:, 0], losses.shape[1]).double())
            if on_batch is not None:
                on_batch(num_forwards)
    finally:
        model.train(was_training)
    if reduce is not None:
        totals = reduce(totals)
    sums, counts = totals.tolist()
    losses = {name: total / count for name, total, count in zip(names, sums, counts, strict=True)}
    return losses, round(sum(counts))


def _sample_losses(model: torch.nn.Module, samples: list[dict], context) -> Tensor:
    """Token cross-entropies [samples, length - 1] in float32."""
    inputs = {name: tensor.to(next(model.parameters()).device) for name, tensor in
              collate_domain_samples(samples).items() if name != "labels"}  # fmt: skip
    if context is None:
        logits = model(**inputs, use_cache=False).logits
    else:
        with context():
            logits = model(**inputs, use_cache=False).logits
    targets = inputs["input_ids"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
