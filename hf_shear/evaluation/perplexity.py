"""Perplexity and bits per byte of each domain, with the protocol that they depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from ..core import UsageError, check_ranges
from .document_losses import DocumentLosses, check_window, document_losses, prefix_token_id
from .intervals import describe_interval, paired_difference

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_DEFAULT_WINDOW = 2048  # tokens


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token; exp overflows above 709."""
    return math.exp(min(loss, 700.0))


@dataclass(frozen=True)
class PerplexityProtocol:
    """What the numbers depend on besides model and text.

    Attributes:
        window: tokens that the model reads at once; None for its positions, at most 2048 (of two models the fewer).
        stride: tokens that the window moves on; None for half a window.
        max_documents: first documents of each domain; None for all.
        batch_size: windows per forward; changes nothing but time and memory.
        documents: which ones they are, in words, for the reader of the result.
        parse_special_tokens: let control tokens that are written in a document be such tokens, not text.
    """

    window: int | None = None
    stride: int | None = None
    max_documents: int | None = None
    batch_size: int = 8
    documents: str = "as given"
    parse_special_tokens: bool = False

    def __post_init__(self):
        check_ranges(self)
        if self.window is not None and self.stride is not None:
            check_window(self.window, self.stride)

    def resolved(self, *configs: PretrainedConfig) -> PerplexityProtocol:
        """With a window and a stride that fit all models.

        Raises:
            ValueError: the window is larger than the positions of a model, or smaller than the stride.
        """
        known = [getattr(config, "max_position_embeddings", None) for config in configs]
        positions = min([count for count in known if count is not None], default=None)
        window = self.window
        if window is None:
            window = MAX_DEFAULT_WINDOW if positions is None else min(MAX_DEFAULT_WINDOW, positions)
        if positions is not None and window > positions:
            raise UsageError(
                f"`window` must be at most the models' `max_position_embeddings` ({positions}), but it is {window}."
                " Lower it, or leave it out."
            )
        stride = max(1, window // 2) if self.stride is None else self.stride
        check_window(window, stride)
        return replace(self, window=window, stride=stride)


def domain_texts(domains: Mapping[Any, Dataset | Sequence[str]], max_documents: int | None) -> dict[str, list[str]]:
    """The first documents of each domain.

    Raises:
        ValueError: there is no domain, or one has no documents.
    """
    if not domains:
        raise UsageError("`domains` must hold at least one domain, but it is empty.")
    texts = {}
    for name, documents in domains.items():
        if isinstance(documents, Sequence):
            texts[name] = list(documents[:max_documents])
        else:
            count = len(documents) if max_documents is None else min(max_documents, len(documents))
            texts[name] = list(documents.with_format(None)[:count]["text"])
        if not texts[name]:
            raise UsageError(f"Every domain must hold at least one document, but {name!r} has none. Remove it.")
    return texts


def domain_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Sequence[str]],
    protocol: PerplexityProtocol,
) -> dict[str, DocumentLosses]:
    """Losses of every document of every domain."""
    assert protocol.window is not None and protocol.stride is not None, "the protocol is resolved"
    losses = {}
    for name, documents in texts.items():
        losses[name] = document_losses(
            model,
            tokenizer,
            documents,
            window=protocol.window,
            stride=protocol.stride,
            batch_size=protocol.batch_size,
            parse_special_tokens=protocol.parse_special_tokens,
            what=f"Loss on {name}",
        )
    return losses


def perplexity_record(
    losses: Mapping[str, DocumentLosses], tokenizer: PreTrainedTokenizerBase, protocol: PerplexityProtocol
) -> dict[str, Any]:
    """What the losses amount to, by domain, and the protocol.

    Raises:
        ImportError: `evaluate` is not installed.
    """
    from .metrics import BitsPerByte, Perplexity

    domains = {}
    for name, loss in losses.items():
        of_tokens: Any = Perplexity().compute(nats=loss.nats, num_tokens=loss.num_tokens)
        of_bytes: Any = BitsPerByte().compute(nats=loss.nats, num_bytes=loss.num_bytes)
        domains[name] = {**of_tokens, **of_bytes}
    return {
        "protocol": {
            "window": protocol.window,
            "stride": protocol.stride,
            "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens",
            "prefix_token": tokenizer.convert_ids_to_tokens(prefix_token_id(tokenizer)),
            "documents": protocol.documents,
            "max_documents": protocol.max_documents,
            "parse_special_tokens": protocol.parse_special_tokens,
            "interval": describe_interval(),
        },
        "domains": domains,
        "mean_loss": math.fsum(domain["loss"] for domain in domains.values()) / len(domains),
        "mean_bits_per_byte": math.fsum(domain["bits_per_byte"] for domain in domains.values()) / len(domains),
    }


def domain_differences(
    source: Mapping[str, DocumentLosses], pruned: Mapping[str, DocumentLosses]
) -> dict[str, dict[str, Any]]:
    """Pruned minus source on the same documents, with paired intervals (None for a single document).

    By domain: ``bits_per_byte`` and ``bits_per_byte_interval``; and, where both models read the very same tokens,
    ``loss`` and ``interval`` in nats per token. With different tokens those do not compare, and are left out.
    """
    differences = {}
    for name, before in source.items():
        after = pruned[name]
        record: dict[str, Any] = {}
        if before.tokens_digest == after.tokens_digest:
            difference = paired_difference((before.nats, before.num_tokens), (after.nats, after.num_tokens))
            record["loss"], record["interval"] = difference.value, difference.interval
        bits_before, bits_after = before.nats / math.log(2), after.nats / math.log(2)
        difference = paired_difference((bits_before, before.num_bytes), (bits_after, after.num_bytes))
        record["bits_per_byte"], record["bits_per_byte_interval"] = difference.value, difference.interval
        differences[name] = record
    return differences
