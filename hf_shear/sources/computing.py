"""In which dtype a device computes. Processors without instructions for half precision emulate it, many times slower.

Sapphire Rapids and its successors multiply bfloat16 in matrix units (AMX), which many virtual machines hide. Without them
a linear layer of SmolLM2-135M ran at 81 GFLOP/s in bfloat16 and at 133 in float32, on one thread.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .whole_models import on_device

Model = TypeVar("Model", bound=nn.Module)

_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""Of x86 processors, by ``torch.cpu.get_capabilities``."""


def computing_dtype(stored: torch.dtype, device: torch.device | str) -> torch.dtype:
    """``stored``; or float32, where the device is an x86 processor that has no instructions for it, or slower ones."""
    names = _INSTRUCTIONS.get(stored)
    if names is None or torch.device(device).type != "cpu":
        return stored
    found = torch.cpu.get_capabilities()
    emulates = not any(found.get(name) for name in names)
    # Among those with bfloat16, only processors that are built with matrix units have instructions for float16.
    hides_units = stored == torch.bfloat16 and found.get("avx512_fp16") and not found.get("amx_bf16")
    return torch.float32 if found.get("architecture") == "x86_64" and (emulates or hides_units) else stored


def ready_to_compute(model: Model, device: torch.device | str, dtype: torch.dtype | None = None) -> Model:
    """The model on ``device``, in ``dtype`` or, by default, in what the device computes its own dtype in."""
    stored = next(model.parameters()).dtype
    chosen = computing_dtype(stored, device) if dtype is None else dtype
    return in_dtype(on_device(model, device), chosen)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """The model, its weights in ``dtype``: ``model.to(dtype)``, which transformers types as no method of the model."""
    nn.Module.to(model, dtype)
    return model


def dtype_note(stored: torch.dtype, computed: torch.dtype) -> str:
    """What a user is told where the two differ; "" where they do not."""
    if stored == computed:
        return ""
    names = [str(dtype).removeprefix("torch.") for dtype in (stored, computed)]
    return f"Weights are stored in {names[0]}, and computed with in {names[1]}."
