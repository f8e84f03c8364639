"""What a model weighs: shape, parameters, bytes of its weights, and bytes of its key/value cache per token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError
from ..shapes import NUM_EXPERTS, SHAPE_NAMES, ModelShape
from ..sources import weight_files


def config_shape(config: PretrainedConfig) -> ModelShape:
    """The shape of any model whose layers are alike and whose config gives the five sizes.

    Raises:
        ValueError: the config lacks a size, or it is malformed.
    """
    sizes: dict[str, Any] = {name: getattr(config, name, None) for name in SHAPE_NAMES}
    if sizes["num_key_value_heads"] is None:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise UsageError(f"The config (model_type {config.model_type!r}) must give {', '.join(missing)}.")
    head_dim = getattr(config, "head_dim", None) or sizes["hidden_size"] // sizes["num_attention_heads"]
    experts = getattr(config, NUM_EXPERTS, None)
    num_experts = experts if isinstance(experts, int) and experts > 0 else None
    return ModelShape(**sizes, head_dim=head_dim, num_experts=num_experts)


def size_record(model: PreTrainedModel, name: str | os.PathLike) -> dict[str, Any]:
    """The size of a loaded model, in the dtype it was loaded in.

    Args:
        model: the model.
        name: its folder, whose weight files are measured, or its name on the Hub.

    Returns:
        ``shape``, ``num_parameters`` (tied ones once), ``weight_bytes`` (in memory, without buffers), ``file_bytes`` (of
        the weights on disk; None if ``name`` is no folder), ``dtype``, ``kv_cache_bytes_per_token`` (one sequence).
    """
    shape = config_shape(model.config)
    parameters = list(model.parameters())  # names a tied parameter once
    path = Path(name)
    files = weight_files(path) if path.is_dir() else [path] if path.is_file() else []
    return {
        "shape": shape.to_dict(),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "weight_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "file_bytes": sum(file.stat().st_size for file in files) if files else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "kv_cache_bytes_per_token": shape.kv_cache_bytes_per_token(model.dtype.itemsize),
    }
