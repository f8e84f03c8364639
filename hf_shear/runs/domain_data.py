"""From text by domain to packed samples: to train on, to hold out, to judge by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..core import UsageError, check_ranges
from ..data import check_max_length, pack_domains, split_domains

SPLIT_SEED = 0  # one split for every run and seed, so that their held-out losses compare


@dataclass(frozen=True)
class DomainData:
    """Packed samples per domain.

    Attributes:
        train, held_out: the two sides of the split.
        judged: the first samples of each held-out domain; every model of a run is evaluated on these.
    """

    train: Mapping[Any, Dataset]
    held_out: Mapping[Any, Dataset]
    judged: dict[str, Dataset]

    @property
    def domains(self) -> list[str]:
        """Names of the domains."""
        return list(self.train)

    def first_held_out(self, num_samples: int) -> dict[str, Dataset]:
        """The first samples of each held-out domain."""
        return {name: dataset.select(range(min(num_samples, len(dataset)))) for name, dataset in self.held_out.items()}


def check_judged_tokens(eval_tokens: int, max_length: int) -> None:
    """Raise UsageError unless one sample at least is judged."""
    check_ranges({"eval_tokens": eval_tokens, "max_length": max_length})
    if eval_tokens < max_length:
        raise UsageError(
            f"`eval_tokens` ({eval_tokens}) must be at least one sample of `max_length` ({max_length}) tokens. Raise it,"
            " or lower `max_length`."
        )


def prepare_domain_data(
    domains: Mapping[Any, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    *,
    max_length: int,
    held_out_fraction: float,
    eval_tokens: int,
    block_diagonal: bool = False,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
) -> DomainData:
    """Split by document, tokenise, pack.

    Args:
        domains: text per domain (``load_domains``).
        tokenizer, config: of the source. A text that gives an id beyond the model's vocabulary is refused.
        max_length: tokens per sample; at most the model's positions.
        held_out_fraction: share of each domain's documents that no training sees.
        eval_tokens: held-out tokens per domain to judge by; a domain with fewer gives all it has, with a warning.
        block_diagonal: no attention across documents.
        num_proc: processes that tokenise.
        parse_special_tokens: let control tokens that are written in the text be such tokens.
    """
    check_max_length(max_length, config.max_position_embeddings)
    check_judged_tokens(eval_tokens, max_length)
    options: dict[str, Any] = {"block_diagonal": block_diagonal, "num_proc": num_proc}
    options |= {"parse_special_tokens": parse_special_tokens, "vocab_size": config.vocab_size}
    train_text, held_out_text = split_domains(domains, held_out_fraction, seed=SPLIT_SEED)
    train = pack_domains(train_text, tokenizer, max_length, **options)
    held_out = pack_domains(held_out_text, tokenizer, max_length, **options)
    wanted = eval_tokens // max_length
    short = {name: len(dataset) * max_length for name, dataset in held_out.items() if len(dataset) < wanted}
    if short:
        warnings.warn(
            f"These domains have fewer held-out tokens than `eval_tokens` ({eval_tokens:,}) and are judged by what they"
            f" have: {short}. Their losses are less certain. Lower `eval_tokens` to silence this.",
            UserWarning,
            stacklevel=2,
        )
    judged = {str(name): dataset.select(range(min(wanted, len(dataset)))) for name, dataset in held_out.items()}
    return DomainData(train, held_out, judged)
