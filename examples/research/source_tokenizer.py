"""A SentencePiece tokenizer that gives every text back exactly, and the same one in Hugging Face's format.

Byte-pair pieces with byte fallback, as Llama's, but without anything that changes the text: no normalisation, no
space put in front, no run of spaces shortened. Digits are pieces of their own. ``tokenizer.model`` is for other
engines (llama.cpp), ``tokenizer.json`` for transformers; both give the same ids.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import DatasetDict
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
"""The pieces with the ids 0, 1 and 2. A document is followed by END and preceded by nothing, so that END is also what
a model has seen before one: the Hugging Face tokenizer names it as both BOS and EOS. START is never used."""

MAX_TRAINING_CHARACTERS = 2_000_000
"""Characters per domain from which the pieces are learned, spread over its documents."""

_SENTENCE_CHARACTERS = 1_000


def train_pieces(train: DatasetDict, vocab_size: int, character_coverage: float = 0.9995) -> bytes:
    """The serialized SentencePiece model, trained on an equal share of every domain.

    Args:
        train: domains with a column ``text``; only the training side.
        vocab_size: number of pieces, with 3 special ones and 256 bytes.
        character_coverage: share of the characters that get a piece; the others fall back to bytes.

    Raises:
        ValueError: `vocab_size` is too small for the bytes and the characters of the text.
    """
    import sentencepiece

    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(train),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=16 * _SENTENCE_CHARACTERS,
            num_threads=1,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(
            f"`vocab_size` ({vocab_size}) does not do for this text: it must exceed 3 special pieces, 256 bytes "
            f"and one piece per character that is kept. SentencePiece says: {error}"
        ) from error
    return buffer.getvalue()


def _sentences(train: DatasetDict) -> Iterator[str]:
    """Stretches of whole lines, about 1,000 characters each; of a large domain every n-th."""
    for texts in train.values():
        total = sum(map(len, texts["text"]))
        every = max(1, round(total / MAX_TRAINING_CHARACTERS))
        stretches = (stretch for text in texts["text"] for stretch in _stretches(text))
        yield from (stretch for number, stretch in enumerate(stretches) if number % every == 0)


def _stretches(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in text.replace("\0", "").splitlines(keepends=True):
        for start in range(0, len(line), _SENTENCE_CHARACTERS):
            lines.append(line[start : start + _SENTENCE_CHARACTERS])
            if sum(map(len, lines)) >= _SENTENCE_CHARACTERS:
                yield "".join(lines)
                lines = []
    if lines:
        yield "".join(lines)


def to_hugging_face(model: bytes, model_max_length: int) -> PreTrainedTokenizerFast:
    """The transformers tokenizer with the ids of the SentencePiece model.

    A piece's merges are all its splits into two pieces, in the order of the piece's score: SentencePiece joins
    the pair whose piece has the best score, `tokenizers` the pair whose merge stands first.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    learned = [
        index
        for index in range(len(vocabulary))
        if not (processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))
    ]
    learned.sort(key=lambda index: (-processor.get_score(index), index))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(_merges((processor.id_to_piece(index) for index in learned), vocabulary)),
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(decoding)
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in (UNKNOWN, START, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=END,
        eos_token=END,
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )


def _merges(pieces: Iterable[str], vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    for piece in pieces:
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        yield from sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def save_tokenizer(model: bytes, folder: Path, model_max_length: int) -> PreTrainedTokenizerFast:
    """Write ``tokenizer.model`` and the Hugging Face files into the folder; returns the tokenizer."""
    tokenizer = to_hugging_face(model, model_max_length)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model)
    return tokenizer
