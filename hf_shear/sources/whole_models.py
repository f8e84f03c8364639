"""Models that are whole on every process, also where DeepSpeed ZeRO-3 would build them in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers.integrations import deepspeed as integration

Model = TypeVar("Model", bound=torch.nn.Module)


def on_device(model: Model, device: torch.device | str) -> Model:
    """The model, moved to a device: ``model.to(device)``, which transformers types as no method of the model."""
    _move(model, device)
    return model


def _move(module: torch.nn.Module, device: torch.device | str) -> None:
    module.to(device)


@contextmanager
def whole_models() -> Iterator[None]:
    """Load models whole within: parts can run only in an engine, which calibration and evaluation do not need.

    Such a model has to fit one device, in the dtype it is loaded in, without gradients or optimizer.
    """
    reference = integration._hf_deepspeed_config_weak_ref  # what `from_pretrained` looks at; there is no public getter
    if reference is None or not integration.is_deepspeed_zero3_enabled():
        yield
        return
    config = reference()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration.set_hf_deepspeed_config(config)
