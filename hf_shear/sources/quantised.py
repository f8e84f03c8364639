"""Quantised checkpoints: whole weights are made of them where transformers does so exactly, else they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from transformers import PretrainedConfig

from ..core import MissingExtraError, UsageError
from .weight_files import TensorHead

FP8, COMPRESSED_TENSORS = "fp8", "compressed-tensors"
DEQUANTISED = (FP8, COMPRESSED_TENSORS)
"""Methods whose weights transformers makes whole while it loads them, measured to be exact."""

_WITH = {
    "bitsandbytes": "bitsandbytes installed, `model.dequantize()` of transformers",
    "gptq": "GPTQModel",
    "awq": "AutoAWQ, GPTQModel or llm-compressor",
}
"""What makes whole weights of the others."""


def quantisation_method(config: PretrainedConfig) -> str | None:
    """The method that a config says its weights are quantised by; None for whole weights."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    fields = found if isinstance(found, Mapping) else found.to_dict()
    method = fields.get("quant_method")
    if method is None and (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        return "bitsandbytes"
    return "an unknown method" if method is None else str(getattr(method, "value", method))


def check_quantisation(argument: str, name: str, config: PretrainedConfig) -> str | None:
    """The method of a checkpoint that can be dequantised; None for whole weights.

    Raises:
        UsageError: it can not be; or a package is needed for it (``MissingExtraError``).
    """
    method = quantisation_method(config)
    quantised = f"`{argument}` {Path(name).name!r} is quantised by {method}"
    if method == COMPRESSED_TENSORS and find_spec("compressed_tensors") is None:
        raise MissingExtraError(
            f"{quantised}, and that package dequantises it: pip install 'hf-shear[compressed-tensors]'."
        )
    if method is None or method in DEQUANTISED:
        return method
    with_what = f" ({_WITH[method]})" if method in _WITH else ""
    raise UsageError(
        f"{quantised} (quantization_config of its config.json), and masks and cuts need whole weights. Give the checkpoint"
        f" that it was quantised from, or save a dequantised one first{with_what}."
    )


def to_dequantise(config: PretrainedConfig, fields: Mapping) -> PretrainedConfig:
    """``config`` with the ``fields`` of a quantization_config that ask transformers for whole weights."""
    config.quantization_config = {**fields, "dequantize": True}
    return config


def check_blocks(argument: str, name: str, fields: Mapping, tensors: Mapping[str, TensorHead]) -> None:
    """Refuse fp8 weights whose last block is cut off.

    transformers takes the block's size from the number of scales: it would multiply such weights by wrong ones.
    """
    block = fields.get("weight_block_size")
    if block is None:
        return
    for scale, head in tensors.items():
        weight = tensors.get(scale.removesuffix("_scale_inv"))
        if not scale.endswith("_scale_inv") or weight is None or len(head.shape) != 2 or len(weight.shape) != 2:
            continue
        whole = tuple(count * size for count, size in zip(head.shape, block, strict=True))
        if whole != weight.shape:
            raise UsageError(
                f"`{argument}` {name!r} is quantised by fp8 in blocks of {list(block)}, which do not divide"
                f" {scale.removesuffix('_scale_inv')} of shape {list(weight.shape)}: transformers dequantises such weights"
                " wrongly. Give the checkpoint that it was quantised from."
            )
