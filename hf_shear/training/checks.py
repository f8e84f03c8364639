"""What is checked before training starts: that model, arguments and data fit each other."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..core import UsageError
from ..data import check_mixture_bounds, check_mixture_weights, first_sample, is_stream
from .arguments import ShearTrainingArguments

logger = logging.get_logger(__name__)

SAMPLES_LOOKED_AT = 16  # of each domain, evenly spaced: a data set of billions of tokens is not read to be checked


def check_datasets(
    model: PreTrainedModel, args: ShearTrainingArguments, train_dataset: Mapping | None, eval_dataset: Mapping | None
) -> None:
    """Raise ValueError for whatever would fail, or silently go wrong, hours later."""
    for name, datasets in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        if datasets is None:
            continue
        streams = [domain for domain in datasets if is_stream(datasets[domain])]
        if streams and name == "eval_dataset":
            raise UsageError(
                f"`eval_dataset` must be packed data sets, which are the same at every evaluation, but {', '.join(streams)}"
                " are streams. Take some documents, `Dataset.from_list(list(stream.take(1000)))`, from a part that is not"
                " trained on, and pack them with hf_shear.data.pack_domains."
            )
        empty = [domain for domain in datasets if domain not in streams and len(datasets[domain]) == 0]
        if empty:
            raise UsageError(
                f"`{name}` has domains without samples: {', '.join(empty)}. Give them text or leave them out."
            )
        _check_samples(name, datasets, model)
    if train_dataset is not None and eval_dataset is not None and set(train_dataset) != set(eval_dataset):
        raise UsageError(
            f"`train_dataset` and `eval_dataset` must have the same domains, but they have {sorted(train_dataset)} and"
            f" {sorted(eval_dataset)}. Give both the same."
        )
    if train_dataset is not None:
        check_domain_arguments(args, list(train_dataset))
        _check_weights(args, model)
    if args.dynamic_batches and len(train_dataset or ()) > 1 and args.eval_strategy == IntervalStrategy.NO:
        logger.warning_once(
            "Domain weights stay as they are: they change at evaluations, and `eval_strategy` is 'no'."
            " `dynamic_batches=False` says that this is meant, and silences this."
        )
    if getattr(args, "n_gpu", 0) > 1:
        raise UsageError(
            f"One process sees {args.n_gpu} GPUs and would use torch.nn.DataParallel, which copies modules without their"
            " masks. Start one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )


def check_domain_arguments(args: ShearTrainingArguments, domain_names: Collection[str]) -> None:
    """Raise ValueError for arguments that do not fit the domains, or masks; needs neither model nor data.

    ``ShearTrainer`` calls it. Call it yourself before anything dear, such as tokenising.
    """
    weights: Any = args.mixture_weights  # a dict by now, whatever it was read from
    check_mixture_weights(weights, domain_names)
    check_mixture_bounds(args.mixture_floor, args.mixture_ceiling, len(domain_names))
    references = args.reference_losses
    if references and set(references) != set(domain_names):
        raise UsageError(
            f"`reference_losses` must name the domains {sorted(domain_names)}, but it names {sorted(references)}."
            " Give each a loss, or leave them out to measure them."
        )
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    metrics = ["loss", *(f"{name}_loss" for name in domain_names)]
    if metric not in metrics:
        raise UsageError(
            f"`metric_for_best_model` must be one of {', '.join(metrics)}, but it is {args.metric_for_best_model!r}."
        )
    checkpointing: Any = args.activation_checkpointing_kwargs or {}
    if args.activation_checkpointing and checkpointing.get("use_reentrant"):
        raise UsageError(
            "`activation_checkpointing_kwargs={'use_reentrant': True}` does not work with masks: re-entrant checkpointing"
            " computes no gradient for tensors that reach a layer other than through its arguments. Set it to False."
        )


def _check_weights(args: ShearTrainingArguments, model: PreTrainedModel) -> None:
    """Half-precision weights lose what AdamW adds to them; DeepSpeed keeps float32 copies of its own."""
    if args.deepspeed or getattr(args, "deepspeed_plugin", None) is not None:  # the latter by `accelerate launch`
        return
    if args.recovery.adapts:  # the base is frozen, and peft makes adapters in float32
        return
    fix = "Load the model with `dtype=torch.float32`, and compute in half precision with `bf16=True`"
    if model.dtype == torch.float16:
        raise UsageError(
            f"The model's weights are float16, in which AdamW's second moments underflow and steps explode. {fix}."
        )
    if model.dtype == torch.bfloat16:
        warnings.warn(
            "The model's weights are bfloat16, which rounds away AdamW's steps below about 1/256 of a weight: at small"
            f" learning rates few weights move at all. {fix}; save in the source's dtype at the end. To go on so all the"
            " same, filter this warning.",
            UserWarning,
            stacklevel=3,
        )


def _first_sample(name: str, domain: str, dataset) -> Mapping:
    """The first sample, whatever a stream's reader raises said with the domain's name."""
    try:
        return first_sample(dataset)
    except Exception as error:
        if not is_stream(dataset):
            raise
        raise UsageError(f"`{name}[{domain!r}]`, a stream, gives no sample. {error}") from error


def _check_all_are_learned(name: str, samples: Sequence[Mapping], ids: Sequence[torch.Tensor]) -> None:
    """Refuse labels and attention masks that say that a token is not to be learned: they would not be obeyed."""
    for sample, tokens in zip(samples, ids, strict=True):
        for column, plain in (("labels", tokens), ("attention_mask", torch.ones_like(tokens))):
            if column in sample and not torch.equal(torch.as_tensor(sample[column]).to(tokens), plain):
                raise UsageError(
                    f"`{name}` has `{column}` that leave tokens out, but samples are full and the loss is of all their"
                    " tokens. Remove the column; to train on parts of a text, tune the finished model with TRL's"
                    " SFTTrainer."
                )


def _check_samples(name: str, datasets: Mapping, model: PreTrainedModel) -> None:
    lengths = set()
    for domain, dataset in datasets.items():
        first = _first_sample(name, domain, dataset)
        if "input_ids" not in first:
            raise UsageError(
                f"`{name}[{domain!r}]` has columns {sorted(first)}, but none of 'input_ids' (packed), 'text' or 'messages'."
                " Rename the one with the text (`rename_column`)."
            )
        # Of a stream, only the first: reading on would be a replay.
        later = []
        if not is_stream(dataset):
            step = -(-len(dataset) // SAMPLES_LOOKED_AT)
            later = [dataset[index] for index in range(step, len(dataset), step)]
        ids = [torch.as_tensor(sample["input_ids"]) for sample in (first, *later)]
        _check_all_are_learned(f"{name}[{domain!r}]", (first, *later), ids)
        lengths |= {len(sample) for sample in ids}
        largest = max(int(sample.max()) for sample in ids)
        if largest >= model.config.vocab_size:
            raise UsageError(
                f"`{name}[{domain!r}]` holds token id {largest}, but the model's vocabulary has"
                f" {model.config.vocab_size} entries. Tokenise with the model's own tokenizer."
            )
    if len(lengths) > 1:
        raise UsageError(
            f"`{name}` has samples of different lengths {sorted(lengths)}; pack all with one `max_length`."
        )
    if max(lengths) > model.config.max_position_embeddings:
        raise UsageError(
            f"`{name}` has samples of {max(lengths)} tokens, but the model has {model.config.max_position_embeddings}"
            " positions. Pack with a smaller `max_length`."
        )
