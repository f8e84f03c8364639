"""The model that a trainer is given, made ready: weights frozen or adapters added, as ``recovery_method`` says."""

from __future__ import annotations

import importlib.util

from torch import nn
from transformers import PreTrainedModel, set_seed

from ..core import UsageError
from ..modeling import ShearingMixin
from .arguments import ShearTrainingArguments
from .recovery_methods import recovery_method
from .trainer_options import check_mask_options

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_to_train(
    model: PreTrainedModel, args: ShearTrainingArguments, peft_config=None
) -> tuple[nn.Module, str | None]:
    """Freeze weights, or add adapters.

    Args:
        model: masked, or plain.
        args: of the training.
        peft_config: a config object of ``peft``; wins over the one in ``args``.

    Returns:
        The model to train; and with adapters the digest of the weights they stand on (``weights_digest``), else None.

    Raises:
        ValueError: a masked model is to be recovered or pushed; or as ``RecoveryMethod.prepare``.
    """
    if isinstance(model, ShearingMixin):
        _check_mask_learning(args, peft_config)
        return model, None
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise UsageError(
            "`use_liger_kernel=True` needs the package `liger-kernel`, which is not installed. Leave it out."
        )
    method = recovery_method(args.recovery_method, peft_config)
    digest = method.base_digest(model)
    set_seed(args.seed)  # as a Trainer does with a model of its own making: adapters start at random
    return method.prepare(model, method.peft_config(args, peft_config)), digest


def special_token_ids(model: PreTrainedModel) -> dict[str, tuple]:
    """By field: the ids in the config and in the generation config."""
    return {name: tuple(getattr(config, name, None) for config in _configs(model)) for name in SPECIAL_TOKENS}


def drop_unknown_tokens(model: PreTrainedModel, before: dict[str, tuple]) -> None:
    """Put back ids of special tokens that the model does not have.

    transformers takes them over from the tokenizer when training starts. No text holds such a token, and a model whose
    config names it as padding cannot be built.

    Args:
        before: as ``special_token_ids`` gave it.
    """
    for name, values in before.items():
        for config, value in zip(_configs(model), values, strict=True):
            token_id = getattr(config, name, None)
            if isinstance(token_id, int) and token_id >= model.config.vocab_size:
                setattr(config, name, value)


def _configs(model: PreTrainedModel) -> tuple:
    return model.config, getattr(model, "generation_config", None)


def _check_mask_learning(args: ShearTrainingArguments, peft_config) -> None:
    if not args.recovery.trains_all or peft_config is not None:
        given = "peft_config" if peft_config is not None else f"recovery_method={args.recovery_method!r}"
        raise UsageError(
            f"`{given}` is of recovery, but the model has masks, which are learned with all weights. Leave it out here;"
            " give it for the sliced model."
        )
    check_mask_options(args)
