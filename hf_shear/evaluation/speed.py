"""Tokens per second of two models, measured in turns in one run.

The machine's speed drifts (heat, other processes), so the models take turns, round by round, and the ratio is taken
within each round. Which one goes first alternates.
"""

from __future__ import annotations

import inspect
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError, check_ranges, evaluating, tracked

_PROMPT_SEED = 0


@dataclass(frozen=True)
class SpeedProtocol:
    """What is timed.

    Attributes:
        batch_size: sequences at once.
        prompt_length: tokens per sequence that prefill reads in one forward.
        new_tokens: decoding steps after it, one forward per token with the key/value cache.
        rounds: timed rounds, after an untimed one of each model.
    """

    batch_size: int = 1
    prompt_length: int = 256
    new_tokens: int = 64
    rounds: int = 7

    def __post_init__(self):
        check_ranges(self)

    def check_fits(self, config: PretrainedConfig) -> None:
        """Raises ValueError if prompt and new tokens exceed the positions of a model."""
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and self.prompt_length + self.new_tokens > positions:
            raise UsageError(
                f"`prompt_length` ({self.prompt_length}) and `new_tokens` ({self.new_tokens}) must fit the positions of"
                f" both models ({positions}). Lower one of them."
            )


@torch.inference_mode()
def measure_speed(
    source: PreTrainedModel,
    pruned: PreTrainedModel,
    protocol: SpeedProtocol | None = None,
) -> dict[str, Any]:
    """Prefill and decoding speed of both models, interleaved.

    Args:
        source, pruned: on the same device.
        protocol: what is timed.

    Returns:
        ``device``, ``dtype``, the protocol, ``source`` and ``pruned`` with the median ``prefill_tokens_per_second`` and
        ``decode_tokens_per_second``, and ``prefill_ratio`` and ``decode_ratio``, pruned over source: ``median``, ``low``
        and ``high`` over rounds.

    Raises:
        ValueError: the models are on different devices, or the protocol does not fit their positions.
    """
    protocol = protocol or SpeedProtocol()
    models = {"source": source, "pruned": pruned}
    if source.device != pruned.device:
        raise UsageError(f"Both models must be on one device, but they are on {source.device} and {pruned.device}.")
    for model in models.values():
        protocol.check_fits(model.config)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with evaluating(source, pruned):
        for model in models.values():
            _one_round(model, protocol)  # warm-up: allocations, kernels, caches
        for number in tracked(range(protocol.rounds), "Speed", unit="round"):
            for name in ("source", "pruned") if number % 2 == 0 else ("pruned", "source"):
                seconds[name].append(_one_round(models[name], protocol))
    return _record(models, protocol, seconds)


def _one_round(model: PreTrainedModel, protocol: SpeedProtocol) -> tuple[float, float]:
    """Seconds of one prefill and of ``new_tokens`` decoding steps."""
    shape = (protocol.batch_size, protocol.prompt_length)
    generator = torch.Generator().manual_seed(_PROMPT_SEED)
    prompt = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
    # What generate() does: only the last position's logits are needed.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    _wait_for(model.device)
    start = time.perf_counter()
    output = model(input_ids=prompt, use_cache=True, **last_only)
    token = output.logits[:, -1:].argmax(-1)
    _wait_for(model.device)
    prefilled = time.perf_counter()
    cache = "cache" if "cache" in output else "past_key_values"  # renamed in transformers 5.24
    for _ in range(protocol.new_tokens):
        output = model(input_ids=token, use_cache=True, **{cache: output[cache]})
        token = output.logits[:, -1:].argmax(-1)
    _wait_for(model.device)
    return prefilled - start, time.perf_counter() - prefilled


def _wait_for(device: torch.device) -> None:
    """Devices work asynchronously; a clock read before they are done measures nothing."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _record(
    models: dict[str, PreTrainedModel], protocol: SpeedProtocol, seconds: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    counts = (protocol.batch_size * protocol.prompt_length, protocol.batch_size * protocol.new_tokens)
    speeds = {}
    for name, rounds in seconds.items():
        columns = zip(*rounds, strict=True)
        speeds[name] = [[count / took for took in column] for count, column in zip(counts, columns, strict=True)]
    dtypes = dict.fromkeys(str(model.dtype).removeprefix("torch.") for model in models.values())
    device = models["source"].device
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": " and ".join(dtypes),
        "batch_size": protocol.batch_size,
        "prompt_length": protocol.prompt_length,
        "new_tokens": protocol.new_tokens,
        "rounds": protocol.rounds,
    }
    for name, (prefill, decode) in speeds.items():
        record[name] = {
            "prefill_tokens_per_second": statistics.median(prefill),
            "decode_tokens_per_second": statistics.median(decode),
        }
    for index, stage in enumerate(("prefill", "decode")):
        ratios = [ours / theirs for ours, theirs in zip(speeds["pruned"][index], speeds["source"][index], strict=True)]
        record[f"{stage}_ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return record
