"""The config of a checkpoint, as transformers' own classes read it: no code that lies beside it is run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, LlamaConfig, MistralConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core import UsageError, read_json_object
from ..core.defaults import MASKED_PREFIX
from ..shapes import supported_model_types
from .gguf_file import gguf_fields
from .places import ADAPTER, Place, adapter_refusal

NEMOTRON_NAS = "nemotron-nas"
"""model_type of exports whose layers have shapes of their own."""

PAUSE_SECONDS = 1.0
"""Before the Hub is asked once more, where nobody answered."""

# Of the HTTP library that huggingface_hub uses, whichever that is, and OSError: what is raised when nobody answers.
NETWORK_ERRORS = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))

_OF_BROKEN_FILES = (
    StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, OSError,
)  # fmt: skip


def read_config(argument: str, place: Place, fields: dict, as_family: str | None, hub: dict) -> PretrainedConfig:
    """The config at a place.

    Args:
        fields: of ``config_fields``.
        as_family: "mistral" for a Llama that LlamaConfig refuses, since its heads do not divide its hidden size.
        hub: options such as ``revision``.

    Raises:
        UsageError: its class refuses it, or it needs code of its own.
    """
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError(
            f"`{argument}`: the config.json of {place.name!r} must have a `model_type`, but it has none. Get it anew."
        )
    _refuse_own_code(argument, place, fields)
    if model_type not in CONFIG_MAPPING:
        raise UsageError(
            f"`{argument}` {place.name!r} has model_type {model_type!r}, which transformers {transformers.__version__} does"
            f" not know. Give one of {', '.join(supported_model_types())}."
        )
    with readable(argument, f"{place.name}/config.json"):
        if _heads_do_not_divide(fields):
            return _as_mistral(argument, place, fields, as_family)
        config = AutoConfig.from_pretrained(place.name, trust_remote_code=False, **place.options, **hub)
    _check_sizes(argument, place.name, config)
    return config


def _check_sizes(argument: str, name: str, config: PretrainedConfig) -> None:
    """Refuse by name what transformers builds a model from, or fails at without one."""
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        size = getattr(config, field, 1)
        if not isinstance(size, int) or size < 1:
            raise UsageError(
                f"`{argument}`: `{field}` in the config.json of {name!r} must be a whole number of at least 1, but it is"
                f" {size!r}. Correct it, or get the checkpoint anew."
            )
    activation = getattr(config, "hidden_act", None)
    if isinstance(activation, str) and activation not in ACT2FN:
        raise UsageError(
            f"`{argument}`: `hidden_act` in the config.json of {name!r} is {activation!r}, which transformers does not"
            " know. Correct it, or get the checkpoint anew."
        )


@contextmanager
def readable(argument: str, name: str) -> Iterator[None]:
    """What transformers and tokenizers raise of a user's broken files, as one line. Nothing of ours runs within."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, _OF_BROKEN_FILES):  # tokenizers raises the bare class
            raise
        reason = " ".join(str(error.__cause__ or error).split())
        kind = f"{type(error).__name__}: " if isinstance(error, KeyError) else ""
        raise UsageError(
            f"`{argument}` {name!r} can not be read by transformers: {kind}{reason.rstrip('.')}. Correct it, or get it"
            " anew."
        ) from error


def largest_layer_config(fields: dict) -> PretrainedConfig:
    """The Llama whose layers are all as the largest of a nemotron-nas export of ours: enough to describe it."""
    known = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
    return LlamaConfig(**{name: value for name, value in fields.items() if name in known})


def config_fields(argument: str, place: Place, hub: dict) -> dict:
    """The fields of the config as they are written.

    Raises:
        UsageError: there are none, or they are broken.
    """
    if place.gguf_file is not None:
        return gguf_fields(argument, Path(place.name) / place.gguf_file)
    if place.folder is not None:
        path = place.folder / hub.get("subfolder", "") / "config.json"
        if not path.is_file():
            raise UsageError(
                f"`{argument}` must be the folder of a checkpoint, but {os.fspath(path.parent)!r} has no config.json."
                " Name one that `save_pretrained` wrote."
            )
        return read_json_object(path, f"`{argument}`: the config")
    _refuse_unreachable(argument, place.name, hub)
    try:
        fields, _ = PretrainedConfig.get_config_dict(place.name, **hub)
    except OSError as error:
        if _is_cached(place.name, ADAPTER, hub):
            raise UsageError(adapter_refusal(argument, place.name)) from error
        raise UsageError(
            f"`{argument}` {place.name!r} is no folder here, and it could not be loaded from the Hub:"
            f" {str(error).splitlines()[0].rstrip('. ')}. Give the path of a checkpoint, or a name on the Hub with"
            " a network."
        ) from error
    return fields


def _refuse_unreachable(argument: str, name: str, hub: dict) -> None:
    """Refuse a name where nobody answers; huggingface_hub itself would ask six times, for 25 seconds.

    Where an answer is only late, it is left to huggingface_hub, with its timeouts and its retries.

    Raises:
        UsageError: two requests found no network or no server, and nothing of the name is in the cache.
    """
    local = hub.get("local_files_only") or is_offline_mode()
    if local or hub.get("proxies") or _is_cached(name, "config.json", hub):
        return
    for pause in (PAUSE_SECONDS, None):
        try:
            url = hf_hub_url(name, "config.json", subfolder=hub.get("subfolder"), revision=hub.get("revision"))
            get_hf_file_metadata(url, token=hub.get("token"))
            return
        except (HfHubHTTPError, HFValidationError):  # somebody answered, or it is no name at all
            return
        except NETWORK_ERRORS as error:
            if "Timeout" in type(error).__name__:
                return
            if pause is None:
                raise UsageError(
                    f"`{argument}` {name!r} is no folder here, and the Hub, where it would be a name, can not be reached"
                    f" ({type(error).__name__}). Correct the path, or run the same command when there is a network."
                ) from error
            time.sleep(pause)


def _is_cached(name: str, file: str, hub: dict) -> bool:
    options = {key: hub[key] for key in ("cache_dir", "revision") if key in hub}
    try:
        return isinstance(try_to_load_from_cache(name, file, **options), str)
    except HFValidationError:  # it can be no name
        return False


def _refuse_own_code(argument: str, place: Place, fields: dict) -> None:
    """Refuse code that lies beside a checkpoint, except where transformers has the same class itself, or hf_shear.

    Families such as Phi-3 came with code before transformers had them, and their configs still name it.
    """
    code, model_type = fields.get("auto_map"), fields["model_type"]
    if not code or model_type.startswith(MASKED_PREFIX):
        return
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    named = code.get("AutoModelForCausalLM") if isinstance(code, dict) else None
    model_has_code = not isinstance(code, dict) or any(key.startswith("AutoModel") for key in code)
    if native is not None and isinstance(named, str) and named.rpartition(".")[2] == native:
        return
    if native is not None and not model_has_code:
        return
    raise UsageError(
        f"`{argument}` {place.name!r} computes by code of its own (auto_map in its config.json), which hf-shear never runs."
        f" Give a checkpoint of a family that transformers has itself: {', '.join(supported_model_types())}."
    )


def _heads_do_not_divide(fields: dict) -> bool:
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if type(hidden) is not int or type(heads) is not int or hidden <= 0 or heads <= 0:
        return False
    return fields["model_type"] == "llama" and hidden % heads != 0


def _as_mistral(argument: str, place: Place, fields: dict, as_family: str | None) -> PretrainedConfig:
    """A Llama that only its config's class refuses, as the Mistral without a window that it is."""
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    refused = f"`{argument}` {place.name!r} is a Llama whose {heads} heads do not divide its hidden size {hidden}"
    if fields.get("attention_bias") or fields.get("mlp_bias"):
        raise UsageError(f"{refused}, which transformers refuses. Without biases it could be read as a Mistral.")
    if as_family != "mistral":
        raise UsageError(
            f"{refused}, which transformers refuses. Read it as the Mistral that it is: `--as_family mistral`; where there"
            " is no such flag, set model_type to mistral and sliding_window to null in its config.json."
        )
    llama_only = {"model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp"}
    kept = {name: value for name, value in fields.items() if name not in llama_only}
    return MistralConfig(**kept | {"sliding_window": None, "name_or_path": place.name})
