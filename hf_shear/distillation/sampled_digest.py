"""A digest of a model that tells other weights without reading all of them."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

VALUES = 64  # of each tensor, evenly spaced: training changes all of them


@torch.no_grad()
def sampled_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and up to 64 values in float32 of each tensor; the same in whatever dtype holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        values = values[:: max(len(values) // VALUES, 1)][:VALUES]
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
