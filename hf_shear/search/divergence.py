"""How far a candidate's predictions are from the source's: the divergence of each token's distribution.

It tells shapes apart on less text than the loss does: what the text itself leaves to chance is the same in both models.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..core import IGNORED_LABEL, evaluating
from ..data import collate_domain_samples


class SourceDivergence:
    """KL(source || candidate) in nats per token, the mean over domains of the mean over predicted tokens.

    The source runs once: its log-probabilities are kept, tokens x vocabulary x 4 bytes.

    Args:
        source: stock.
        held_out: packed samples by domain.
        batch_size: samples of a forward.
    """

    def __init__(self, source: PreTrainedModel, held_out: Mapping[str, Dataset], batch_size: int):
        self._batches: dict[str, list[tuple[dict[str, Tensor], Tensor]]] = {}
        self._sizes = {name: len(samples) for name, samples in held_out.items()}
        with evaluating(source):
            for name, samples in held_out.items():
                starts = range(0, len(samples), batch_size)
                batches = [
                    collate_domain_samples(
                        [samples[row] for row in range(start, min(start + batch_size, len(samples)))]
                    )
                    for start in starts
                ]
                self._batches[name] = [(batch, _log_probabilities(source, batch)) for batch in batches]

    def __call__(self, candidate: PreTrainedModel, share: float = 1.0) -> float:
        """On the first share of each domain's samples, one at least."""
        with evaluating(candidate):
            return fmean(
                self._of_domain(candidate, name, max(round(share * self._sizes[name]), 1)) for name in self._sizes
            )

    def _of_domain(self, candidate: PreTrainedModel, name: str, number: int) -> float:
        total, tokens = 0.0, 0
        for batch, wanted in self._batches[name]:
            if number <= 0:
                break
            batch = {key: rows[:number] for key, rows in batch.items()}
            wanted, number = wanted[:number], number - len(wanted)
            counted = (batch["labels"][:, 1:] != IGNORED_LABEL).to(wanted.device)
            found = F.kl_div(_log_probabilities(candidate, batch), wanted, reduction="none", log_target=True).sum(
                dim=-1
            )
            total, tokens = total + float(found[counted].sum()), tokens + int(counted.sum())
        return total / tokens


@torch.no_grad()
def _log_probabilities(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Of the next token after each, [samples, tokens - 1, vocabulary]."""
    inputs = {name: rows.to(model.device) for name, rows in batch.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
