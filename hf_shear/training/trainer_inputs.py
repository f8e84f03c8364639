"""What ShearTrainer is given, as it trains with it: also as users of Trainer, TRL and PEFT are used to give it.

A model may be a name, arguments may be transformers' own, and data may be one data set, or text that is not packed yet.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..core import UsageError
from ..data import MESSAGES, TEXT, column_names, is_stream, pack_domains
from ..modeling import AutoShearingModelForCausalLM, check_model
from ..sources import open_source
from .arguments import ShearTrainingArguments

ONE_DOMAIN = "text"
"""Name of the only domain, where a data set is given in place of a dict of them."""

DEFAULT_LENGTH = 256
"""Tokens of a sample where text is packed here and no length is given, as of the commands."""

SPLITS = {"train", "validation", "valid", "val", "dev", "eval", "test"}
"""Names of the parts of a data set; what is named so is hardly a domain."""

_NO_LOGITS = "has no effect: evaluation keeps token losses per domain, and no logits. Leave it out"
_REFUSED = {
    "compute_metrics": f"{_NO_LOGITS}; compute other metrics from the saved checkpoint.",
    "preprocess_logits_for_metrics": f"{_NO_LOGITS}.",
    "data_collator": "has no use: all samples are packed to one length, and the loss is of all tokens. Leave it out; to"
    " train on parts of a text, tune the finished model with TRL's SFTTrainer.",
    "model_init": "is not offered, nor the search that needs it. Give `model`, and make a ShearTrainer for each trial.",
    "tokenizer": "is now called `processing_class`, as in `Trainer`.",
}
"""Arguments of ``Trainer`` that ShearTrainer does not take, and why."""


def check_keywords(given: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of ``Trainer`` that has no use here."""
    for name, why in _REFUSED.items():
        if given.get(name) is not None:
            raise UsageError(f"`{name}` {why}")


def load_named(model: PreTrainedModel | str | os.PathLike, tokenizer: Any) -> tuple[PreTrainedModel, Any]:
    """The model and the tokenizer of a folder or of a name on the Hub, in float32; a model and its tokenizer as they are.

    Raises:
        UsageError: there is no checkpoint of that name, it does not fit together, or ``model`` is none.
    """
    if isinstance(tokenizer, str | os.PathLike):
        raise UsageError(
            f"`processing_class` must be a tokenizer, but it is {os.fspath(tokenizer)!r}. Give"
            f" AutoTokenizer.from_pretrained({os.fspath(tokenizer)!r})."
        )
    if not isinstance(model, str | os.PathLike):
        check_model(model)
        if not hasattr(model, "generate"):
            raise UsageError(
                f"`model` must be a causal language model, but {type(model).__name__} has no head for it. Load one with"
                " AutoModelForCausalLM."
            )
        return model, tokenizer
    source = open_source("model", model, masked=None)
    if tokenizer is None and source.has_tokenizer:
        tokenizer = source.load_tokenizer()
    if source.has_masks:
        return AutoShearingModelForCausalLM.from_pretrained(source, dtype=torch.float32), tokenizer
    return source.load_model(dtype=torch.float32), tokenizer


def shear_arguments(args: TrainingArguments | None) -> ShearTrainingArguments:
    """``ShearTrainingArguments`` of ``TrainingArguments``.

    What was given is passed on. What was left at its default has ours, but for the length of the training, and for
    evaluations: where there are none, domain weights stay as they are.

    Raises:
        UsageError: a value of theirs does not work here, a class of another library has settings of its own, or they are
            no arguments.
    """
    if isinstance(args, ShearTrainingArguments):
        return args
    if not isinstance(args, TrainingArguments):
        raise UsageError(
            f"`args` must be ShearTrainingArguments, but it is {type(args).__name__}. Give"
            " ShearTrainingArguments(output_dir, num_train_epochs=1)."
        )
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    of_others = [field for field in dataclasses.fields(args) if field.name not in (*names, "max_length")]
    changed = [
        field.name
        for field in of_others
        if field.default_factory is dataclasses.MISSING and getattr(args, field.name) != field.default
    ]
    if changed:
        raise UsageError(
            f"`args` is a {type(args).__name__} with `{changed[0]}={getattr(args, changed[0])!r}`, which ShearTrainer does"
            " not know. Leave it out, or make ShearTrainingArguments."
        )
    untouched = TrainingArguments(output_dir=str(args.output_dir), use_cpu=args.use_cpu)
    given = {name: getattr(args, name) for name in names if getattr(args, name) != getattr(untouched, name)}
    always = ("output_dir", "use_cpu", "dataloader_pin_memory", "num_train_epochs", "report_to")
    given |= {name: getattr(args, name) for name in always}  # the others' defaults follow from these
    if args.eval_strategy == IntervalStrategy.NO:
        given |= {"eval_strategy": "no", "dynamic_batches": False}
    return ShearTrainingArguments(**given)


def packed_domains(
    argument: str, data: Any, tokenizer: Any, max_length: int | None, model: PreTrainedModel
) -> Mapping[str, Any] | None:
    """Packed samples per domain, of one data set or of a dict; what is text, or conversations, is packed.

    Args:
        argument: what the user called it, for messages.
        data: a dict of data sets or one of them; each packed, or with a column `text` or `messages`.
        tokenizer: to pack with; None where there is none.
        max_length: tokens of a sample; None: ``DEFAULT_LENGTH``, or the model's positions where these are fewer.
        model: whose vocabulary ids must be of.

    Returns:
        name -> samples; None where there are no data.

    Raises:
        UsageError: it is no data set, there is text, but no tokenizer; or as ``pack_domains``.
    """
    if data is None:
        return None
    if isinstance(data, torch.utils.data.Dataset) or is_stream(data) or column_names(data):
        data = {ONE_DOMAIN: data}
    if not isinstance(data, Mapping) or not data:
        raise UsageError(
            f"`{argument}` must be a data set, or a non-empty dict (or DatasetDict) of packed samples per domain, but it is"
            f" {type(data).__name__}. Make it with hf_shear.data.pack_domains, or give text as a data set"
            " (`datasets.load_dataset`, or `Dataset.from_list`) with the tokenizer."
        )
    if len(data) > 1 and set(data) <= SPLITS:
        raise UsageError(
            f"`{argument}` would take the splits {', '.join(data)} for domains, and train on them all. Give"
            " train_dataset=data['train'], and another split as `eval_dataset`."
        )
    columns = {domain: column_names(dataset) for domain, dataset in data.items()}
    unpacked = [name for name, found in columns.items() if "input_ids" not in found and {TEXT, MESSAGES} & set(found)]
    if not unpacked:
        return data
    if tokenizer is None:
        raise UsageError(
            f"`{argument}` holds text that is not packed yet ({', '.join(map(str, unpacked))}), which needs the model's"
            " tokenizer. Give it as `processing_class`, or pack the text with hf_shear.data.pack_domains."
        )
    positions = model.config.max_position_embeddings
    length = min(DEFAULT_LENGTH, positions) if max_length is None else max_length
    text = {name: data[name] for name in unpacked}
    packed = pack_domains(text, tokenizer, length, vocab_size=model.config.vocab_size)
    return {name: packed.get(name, dataset) for name, dataset in data.items()}
