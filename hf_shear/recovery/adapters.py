"""Adapters of ``peft`` on a pruned model: added, recorded, and merged into a plain checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

ADAPTER_RECORD_NAME = "shear_adapter.json"

DEFAULT_RANK = 16
DEFAULT_ALPHA = 32
"""LoRA's rank and alpha where no ``peft_config`` is given, on all linear layers but the head."""


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'hf-shear[lora]'.") from error
    return peft


def default_peft_config():
    """LoRA of rank 16 on every linear layer of the blocks."""
    return _peft().LoraConfig(
        r=DEFAULT_RANK, lora_alpha=DEFAULT_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def peft_config_from(description: dict | str | os.PathLike | None):
    """A peft config from a dict, or a JSON file, with ``peft_type`` and the fields of that type; None is the default.

    Raises:
        ValueError: the file does not exist, the type is unknown, or a field is.
    """
    if description is None:
        return default_peft_config()
    if isinstance(description, (str, os.PathLike)):
        path = Path(description)
        if not path.is_file():
            raise ValueError(f"`peft_config` {str(description)!r} is neither JSON nor a file that exists.")
        description = json.loads(path.read_text(encoding="utf-8"))
    peft = _peft()
    fields = {"task_type": "CAUSAL_LM"} | dict(description)
    kind = fields.pop("peft_type", "LORA")
    known = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    if kind not in known:
        raise ValueError(
            f"`peft_config` has the peft_type {kind!r}, which peft does not know; it knows {sorted(known)}."
        )
    try:
        return known[kind](**fields)
    except TypeError as error:
        raise ValueError(f"`peft_config` does not fit {kind}: {error}.") from error


def add_adapters(model: PreTrainedModel, peft_config=None) -> nn.Module:
    """The ``PeftModel`` around a plain model; only adapters are trained.

    Args:
        model: plain, or quantised where peft allows it (``quantization_config``).
        peft_config: any peft config; LoRA of rank 16 on all linear layers by default.
    """
    peft = _peft()
    if isinstance(model, peft.PeftModel):
        raise ValueError("The model has adapters already. Merge them (`merge_and_unload`) or train it as it is.")
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, default_peft_config() if peft_config is None else peft_config)


def weights_digest(model: nn.Module) -> str:
    """A digest of all weights in float32, the same for a model and for what was saved of it in that dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_adapter_record(adapter: str | os.PathLike, base: PreTrainedModel, **facts) -> None:
    """Note beside an adapter which weights it was trained on, so that it is never merged into others."""
    record = {"base_digest": weights_digest(base), **facts}
    (Path(adapter) / ADAPTER_RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")


def merge_adapter(
    base: PreTrainedModel | str | os.PathLike, adapter: str | os.PathLike, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The plain model that computes what base and adapter compute together.

    Args:
        base: the plain checkpoint that the adapter was trained on, or that model itself (which is changed). A base that
            was quantised for training is given as it was before: its rounding is not merged.
        adapter: folder with ``adapter_config.json``.
        dtype: of the loaded base; by default float32, so that nothing is rounded while merging.

    Raises:
        ValueError: the folder holds no adapter, or one of another base.
    """
    peft = _peft()
    adapter = Path(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{str(adapter)!r} holds no adapter: there is no adapter_config.json.")
    if not isinstance(base, nn.Module):
        base = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or torch.float32)
    record_path = adapter / ADAPTER_RECORD_NAME
    if record_path.is_file():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record["base_digest"] != weights_digest(base):
            raise ValueError(
                f"The adapter {str(adapter)!r} was trained on other weights than those of the base"
                f" ({base.config.name_or_path or 'in memory'}). Give the checkpoint that it was trained on."
            )
    try:
        model = peft.PeftModel.from_pretrained(base, str(adapter))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The adapter {str(adapter)!r} does not fit the base ({base.config.name_or_path or 'in memory'}): {error}"
        ) from error
    if not hasattr(model, "merge_and_unload"):
        raise ValueError(f"Adapters of type {model.peft_type} can not be merged into weights; keep the adapter.")
    return model.merge_and_unload()
