"""Which weights recovery trains: all, adapters, or norms and biases."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..core import UsageError
from .adapters import add_adapters

FULL, LORA, NORMS_AND_BIASES = "full", "lora", "norms_and_biases"
RECOVERY_METHODS = (FULL, LORA, NORMS_AND_BIASES)


def check_method(method: str, peft_config=None) -> None:
    """Raise ValueError for an unknown method, or a ``peft_config`` for another method than "lora"."""
    if method not in RECOVERY_METHODS:
        raise UsageError(f"`recovery_method` must be one of {', '.join(RECOVERY_METHODS)}, but it is {method!r}.")
    if peft_config is not None and method != LORA:
        raise UsageError(
            f"`peft_config` is given, but `recovery_method` is {method!r}. Set it to 'lora', or leave `peft_config` out."
        )


def prepare_recovery(model: PreTrainedModel, method: str, peft_config=None) -> nn.Module:
    """Freeze what the method does not train, and add what it trains.

    Args:
        model: a plain causal language model.
        method: "full" (continued pre-training), "lora" (adapters of ``peft``) or "norms_and_biases" (every parameter
            with one dimension, as in PERP, arXiv 2312.15230).
        peft_config: of the adapters; only for "lora".

    Returns:
        The model itself, or for "lora" the ``PeftModel`` around it.

    Raises:
        ValueError: an unknown method, a model without norms or biases, or a ``peft_config`` for another method.
        ImportError: "lora" without peft.
    """
    check_method(method, peft_config)
    if method == LORA:
        return add_adapters(model, peft_config)
    if method == NORMS_AND_BIASES:
        for parameter in model.parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3's partitions are all flat
            parameter.requires_grad_(len(shape) == 1 and parameter.is_floating_point())
        if not num_trainable(model):
            raise UsageError("`recovery_method='norms_and_biases'` finds no norms or biases in this model.")
    return model


def num_trainable(model: nn.Module) -> int:
    """Number of parameters that training changes."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)  # whole under ZeRO-3, too
