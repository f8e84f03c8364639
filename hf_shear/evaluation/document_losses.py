"""Token losses of whole documents under a sliding window.

Shapes: N documents, T tokens of one document, B windows of a batch, W tokens that a window reads.

A document is encoded without special tokens, and what looks like one in it stays text. It gets one token in front: BOS, or
EOS where the tokenizer has no BOS (as lm-eval does). That token is read and never predicted, so all T tokens, which carry
all bytes of the text, are predicted exactly once. No EOS is put behind: it stands for no bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import IGNORED_LABEL, UsageError, check_ranges, evaluating, tracked
from ..data.documents import TOKENIZE_BATCH, check_token_id, encode_texts, vocabulary_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class DocumentLosses:
    """What a model thinks of each document.

    Attributes:
        nats: [N] float64, sum of the token losses.
        num_tokens: [N] int64, tokens predicted.
        num_bytes: [N] int64, UTF-8 bytes of the text.
        tokens_digest: of all token ids: equal for two models exactly if nats per token compare.
    """

    nats: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray
    tokens_digest: str


class _Window(NamedTuple):
    document: int
    start: int  # first position read
    stop: int  # behind the last position read
    first_target: int  # position of the first token predicted here; the last is `stop`


def check_window(window: int, stride: int) -> None:
    """Raises ValueError unless 1 <= stride <= window."""
    check_ranges({"window": window, "stride": stride})
    if not 1 <= stride <= window:
        raise UsageError(
            f"`stride` must be between 1 and `window` ({window}), but it is {stride}: a larger one would skip tokens."
            " Lower it, or leave it out for half a window."
        )


def document_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int,
    stride: int,
    batch_size: int = 8,
    parse_special_tokens: bool = False,
    what: str = "Loss",
) -> DocumentLosses:
    """Sum of token losses, tokens and bytes of each document.

    The first window reads positions 0 to ``window - 1`` and predicts each next token; every further one starts
    ``stride`` later and predicts what was not predicted yet, so those tokens see ``window - stride + 1`` to ``window``
    tokens. A document that fits one window gets one forward.

    Args:
        model: any causal language model; its mode is put back.
        tokenizer: with a BOS or an EOS token.
        texts: documents.
        window: tokens read at once; at most what the model was made for.
        stride: tokens that the window moves on; ``window`` for windows that do not overlap.
        batch_size: windows per forward.
        parse_special_tokens: let control tokens that are written in a document be such tokens, not text.
        what: to call it where progress is shown.

    Raises:
        ValueError: a stride outside 1..window, no documents, a tokenizer with neither BOS nor EOS, or an id that the model
            does not have.
    """
    check_window(window, stride)
    check_ranges({"batch_size": batch_size})
    if len(texts) == 0:
        raise UsageError("`texts` must hold at least one document, but it is empty.")
    prefix, vocab_size = prefix_token_id(tokenizer), model.config.vocab_size
    check_token_id("bos_token_id or eos_token_id", prefix, tokenizer, vocab_size)
    options = {"parse_special_tokens": parse_special_tokens, "vocab_size": vocabulary_limit(tokenizer, vocab_size)}
    encoded = []
    for start in range(0, len(texts), TOKENIZE_BATCH):
        encoded += encode_texts(texts[start : start + TOKENIZE_BATCH], tokenizer, **options)
    sequences = [np.array([prefix, *ids]) for ids in encoded]
    windows = [
        piece for number, ids in enumerate(sequences) for piece in _windows(number, len(ids) - 1, window, stride)
    ]
    windows.sort(key=lambda piece: piece.start - piece.stop)  # little padding; the longest, which needs most, first
    batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
    nats = np.zeros(len(texts))
    with evaluating(model):
        for batch in tracked(batches, what):
            losses = _window_losses(model, [sequences[piece.document] for piece in batch], batch)
            np.add.at(nats, [piece.document for piece in batch], losses)
    return DocumentLosses(
        nats=nats,
        num_tokens=np.array([len(ids) - 1 for ids in sequences]),
        num_bytes=np.array([len(text.encode()) for text in texts]),
        tokens_digest=_digest(sequences),
    )


def prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token in front of a document: BOS, or EOS where there is no BOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    raise UsageError(
        "`tokenizer` must have a BOS or an EOS token, from which the first token of a document is predicted, but it has"
        " neither. Set `tokenizer.eos_token` to a token of its vocabulary."
    )


def _windows(document: int, num_tokens: int, window: int, stride: int) -> list[_Window]:
    """The windows that predict positions 1 to ``num_tokens``, each once."""
    windows, predicted, start = [], 0, 0
    while predicted < num_tokens:
        stop = min(start + window, num_tokens)
        windows.append(_Window(document, start, stop, predicted + 1))
        predicted, start = stop, start + stride
    return windows


@torch.inference_mode()
def _window_losses(model: PreTrainedModel, sequences: list[np.ndarray], batch: list[_Window]) -> np.ndarray:
    """[B] sum of the losses that each window has to tell, nats.

    Padding is on the right, where causal attention lets no real token see it: no attention mask is needed.
    """
    longest = max(piece.stop - piece.start for piece in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full((len(batch), longest), IGNORED_LABEL)
    for row, (ids, piece) in enumerate(zip(sequences, batch, strict=True)):
        inputs[row, : piece.stop - piece.start] = torch.from_numpy(ids[piece.start : piece.stop])
        scored = slice(piece.first_target - 1 - piece.start, piece.stop - piece.start)
        targets[row, scored] = torch.from_numpy(ids[piece.first_target : piece.stop + 1])
    logits = model(input_ids=inputs.to(model.device), use_cache=False).logits
    targets = targets.to(logits.device)
    # Row by row: float32 logits of a whole batch would need several times the memory of the model's own.
    return np.array([_row_loss(*row) for row in zip(logits, targets, strict=True)])


def _row_loss(logits: Tensor, targets: Tensor) -> float:
    scored = targets != IGNORED_LABEL
    return F.cross_entropy(logits[scored].float(), targets[scored], reduction="none").double().sum().item()


def _digest(sequences: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids[1:].astype("<i8").tobytes())
    return digest.hexdigest()
