"""Adapters of ``peft`` on a pruned model: added, recorded, and merged into a plain checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..core import MissingExtraError, UsageError, read_json_object
from ..sources import open_source

ADAPTER_RECORD_NAME = "shear_adapter.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

DEFAULT_RANK = 16
DEFAULT_ALPHA = 32
"""LoRA's rank and alpha where no ``peft_config`` is given, on all linear layers but the head."""


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("Adapters need peft: pip install 'hf-shear[lora]'.") from error
    return peft


@contextmanager
def _own_deprecations_silenced():
    """peft asks transformers by an attribute that is deprecated since 5.23, which no user can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def default_peft_config():
    """LoRA of rank 16 on every linear layer of the blocks."""
    return _peft().LoraConfig(
        r=DEFAULT_RANK, lora_alpha=DEFAULT_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def peft_config_from(description: dict | str | os.PathLike | None):
    """A peft config from a dict, or a JSON file, with ``peft_type`` and the fields of that type; None is the default.

    Raises:
        ValueError: the file does not exist or is not a JSON object, the type is unknown, or a field is.
    """
    if description is None:
        return default_peft_config()
    if isinstance(description, (str, os.PathLike)):
        description = read_json_object(description, "`peft_config`")
    if not isinstance(description, dict):
        raise UsageError(f"`peft_config` must be a JSON object, but it is {description!r}.")
    peft = _peft()
    fields = {"task_type": "CAUSAL_LM"} | description
    kind = fields.pop("peft_type", "LORA")
    known = {str(name.value): config for name, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise UsageError(
            f"`peft_config` has the peft_type {kind!r}, which peft does not know; it knows {', '.join(sorted(known))}."
        )
    rank = fields.get("r", 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"`peft_config['r']` must be a whole number of at least 1, but it is {rank!r}. Give a rank such as 16."
        )
    try:
        return known[kind](**fields)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"`peft_config` does not fit {kind}: {str(error).rstrip('.')}. Correct its fields, {fields}."
        ) from error


def add_adapters(model: PreTrainedModel, peft_config: Any = None) -> Any:
    """The ``PeftModel`` around a plain model; only adapters are trained.

    Args:
        model: plain, or quantised where peft allows it (``quantization_config``).
        peft_config: any peft config that adapts weights; LoRA of rank 16 on all linear layers by default.

    Raises:
        ValueError: the model has adapters already, the config is none of peft's, does not fit the model, or puts
            prompts before the samples.
    """
    peft = _peft()
    peft_config = default_peft_config() if peft_config is None else peft_config
    if not isinstance(peft_config, peft.PeftConfig):
        raise UsageError(f"`peft_config` must be a config of peft, but it is {type(peft_config).__name__}.")
    if isinstance(model, peft.PeftModel):
        raise UsageError("The model has adapters already. Merge them (`merge_and_unload`) or train it as it is.")
    if peft_config.is_prompt_learning:
        raise UsageError(
            f"`peft_config` of type {peft_config.peft_type.value} puts prompts before every sample, which makes it longer"
            " and can not be merged. Use a type that adapts weights, such as LORA."
        )
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with _own_deprecations_silenced():
        return peft.get_peft_model(model, peft_config)


def adapter_width(model: Any) -> int:
    """Ranks of one layer's adapters, added up; a mean over layers that differ, 0 for adapters without a rank."""
    ranks = [rank for module in model.modules() for rank in _ranks(module)]
    return sum(ranks) // model.config.num_hidden_layers


def _ranks(module: Any) -> list[int]:
    tuned = isinstance(module, _peft().tuners.tuners_utils.BaseTunerLayer)
    return list(module.r.values()) if tuned and isinstance(getattr(module, "r", None), dict) else []


def quantisation(config: PretrainedConfig) -> str:
    """ "8bit" or "4bit" for frozen weights that bitsandbytes has quantised, else "none"."""
    found = getattr(config, "quantization_config", None)
    if getattr(found, "load_in_8bit", False):
        return "8bit"
    return "4bit" if getattr(found, "load_in_4bit", False) else "none"


def check_mergeable(config: PretrainedConfig, peft_config) -> None:
    """Refuse, before training, adapters that could not be merged into a plain checkpoint at its end.

    They are added to a model without storage (torch's meta device) and merged there, which takes a second.

    Args:
        config: of the model that is trained.
        peft_config: a config object of peft.

    Raises:
        ValueError: says why; ``peft_config`` may also not fit the model at all.
    """
    with torch.device("meta"):
        model = add_adapters(AutoModelForCausalLM.from_config(config), copy.deepcopy(peft_config))
        kind = peft_config.peft_type.value
        try:
            merged = model.merge_and_unload()
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise UsageError(_not_mergeable(kind, error)) from error
    if not isinstance(merged, PreTrainedModel):
        raise UsageError(_not_mergeable(kind, f"peft gives a {type(merged).__name__} back"))


def _not_mergeable(kind: str, reason) -> str:
    return f"Adapters of type {kind} can not be merged into weights ({reason}). Keep the adapter, or use LORA."


def weights_digest(model: nn.Module) -> str | None:
    """A digest of all weights in float32, the same for a model and for what was saved of it in that dtype.

    None where weights are not there to be read as numbers: quantised, or partitioned by ZeRO-3.
    """
    if getattr(model, "is_quantized", False) or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def save_adapter_record(adapter: str | os.PathLike, base: PreTrainedModel | str | None, **facts) -> None:
    """Note beside an adapter which weights it was trained on, so that it is never merged into others.

    Args:
        adapter: its folder.
        base: the plain model, or its ``weights_digest`` where adapters are on it by now.
        facts: JSON-ready values to note as well.
    """
    digest = weights_digest(base) if isinstance(base, nn.Module) else base
    record = {"base_digest": digest, **facts}
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
        ValueError: the folder holds no adapter, a damaged one, or one of another base.
    """
    peft = _peft()
    adapter = Path(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise UsageError(f"{str(adapter)!r} holds no adapter: there is no adapter_config.json.")
    read_json_object(adapter / "adapter_config.json", fix="Save the adapter again.", needs=["peft_type"])
    if not any((adapter / name).is_file() for name in _ADAPTER_WEIGHTS):  # peft would ask the Hub for them
        raise UsageError(
            f"{str(adapter)!r} lacks the adapter's weights ({_ADAPTER_WEIGHTS[0]}). Save the adapter again."
        )
    if not isinstance(base, nn.Module):
        base = open_source("base", base).load_model(dtype or torch.float32)
    record_path = adapter / ADAPTER_RECORD_NAME
    if record_path.is_file():
        fix = "Save the adapter again; or delete this file, and nothing checks that the base is the adapter's."
        record = read_json_object(record_path, fix=fix, needs=["base_digest"])
        if record["base_digest"] not in (None, weights_digest(base)):
            raise UsageError(
                f"The adapter {str(adapter)!r} was trained on other weights than those of the base"
                f" ({base.config.name_or_path or 'in memory'}). Give the checkpoint that it was trained on."
            )
    fits = f"The adapter {str(adapter)!r} does not fit the base ({base.config.name_or_path or 'in memory'})"
    try:
        with _own_deprecations_silenced(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # else left at their start values
            model = peft.PeftModel.from_pretrained(base, str(adapter))
    except (RuntimeError, ValueError, UserWarning) as error:
        raise UsageError(f"{fits}: {error}") from error
    except SafetensorError as error:
        raise UsageError(f"The weights of the adapter {str(adapter)!r} are damaged: {error}. Save it again.") from error
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise UsageError(_not_mergeable(model.peft_type, error)) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # a plain model again: transformers would save it as one with adapters
    return merged
