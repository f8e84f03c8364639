"""Conversations as documents: the column `messages` through the chat template of a tokenizer.

What stands in a message stays text. A message that holds a control token of the tokenizer (`<|im_start|>`) is refused: it
would end the message, or take a role.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core import UsageError
from .documents import control_tokens

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

TEXT, MESSAGES = "text", "messages"
"""Columns that hold a document: as a string, and as a list of messages with `role` and `content`."""


def column_names(dataset: Any) -> list[str]:
    """Names of the columns of a data set or of a stream, of which nothing is consumed; [] for anything else."""
    datasets = sys.modules.get("datasets")  # if nobody imported it, nothing is of its classes
    if datasets is None or not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        return []
    return dataset.column_names or list(next(iter(dataset), {}))


def chat_documents(
    name: str, dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase
) -> Dataset | IterableDataset:
    """The documents of a domain of conversations, in the column `text`, which holds control tokens of the template.

    Args:
        name: of the domain, for messages.
        dataset: has the column `messages`.
        tokenizer: has a chat template. The end-of-text token at a conversation's end is left to packing.

    Raises:
        UsageError: there is no template; or, when a conversation is read, it does not fit the template or holds a control
            token.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"Domain {name!r} has conversations (the column '{MESSAGES}'), but the tokenizer has no chat template to make"
            f" text of them. Set `tokenizer.chat_template`, or give a column '{TEXT}'."
        )
    columns = column_names(dataset)
    return dataset.map(_document, remove_columns=columns, fn_kwargs={"name": name, "tokenizer": tokenizer})


def _document(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    messages = row[MESSAGES]
    for token in control_tokens(tokenizer):
        if any(token in text for text in _texts(messages)):
            raise UsageError(
                f"Domain {name!r}: a message holds {token!r}, which the tokenizer reads as a control token: it would end"
                " the message, or take a role. Remove it from the text."
            )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template raises what it likes
        raise UsageError(
            f"Domain {name!r}: the chat template does not take a conversation ({type(error).__name__}: {error}). Give"
            f" '{MESSAGES}' as a list of {{'role': ..., 'content': ...}}."
        ) from error
    assert isinstance(text, str)
    return {TEXT: text.rstrip().removesuffix(str(tokenizer.eos_token))}


def _texts(value: Any) -> Iterator[str]:
    """Every string in a message, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
