"""One checkpoint judged, or two side by side: size, loss by domain, tasks, speed.

The record (`evaluation.json`), where `perplexity`, `tasks`, `differences` and `speed` are there if they were asked for:

    source | pruned   `name`, size (see `size_record`), `computed_in` (if not the `dtype` of the size), `perplexity` (see
                      `perplexity_record`), `tasks` (see `evaluate_tasks`)
    differences       pruned minus source by domain (see `domain_differences`)
    speed             see `measure_speed`
    versions

An interval is `[low, high]`, or None for a domain with a single document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..core import UsageError, collect_versions
from ..sources import Source, open_source, ready_to_compute
from .document_losses import DocumentLosses, prefix_token_id
from .perplexity import PerplexityProtocol, domain_differences, domain_losses, domain_texts, perplexity_record
from .size import config_shape, size_record
from .speed import SpeedProtocol, measure_speed
from .tasks import LoadedTasks, check_limit, evaluate_tasks

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

_EVALUATION_PACKAGES = ("evaluate", "lm_eval")


class _Comparison(NamedTuple):
    """What is asked of each model."""

    sources: dict[str, Source]
    texts: Mapping[str, Sequence[str]] | None
    protocol: PerplexityProtocol
    tasks: LoadedTasks | None
    limit: int | None
    device: torch.device
    dtype: torch.dtype | None


def evaluate_checkpoint(
    name: str | os.PathLike,
    *,
    domains: Mapping[str, Dataset | Sequence[str]] | None = None,
    perplexity: PerplexityProtocol | None = None,
    tasks: LoadedTasks | None = None,
    limit: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    argument: str = "source",
) -> dict[str, Any]:
    """One plain checkpoint: its size, and what was asked for.

    Args:
        name: a folder, or a name on the Hub.
        domains: documents by domain (data sets with a column `text`, or lists of texts), for the loss.
        perplexity: protocol of the loss.
        tasks: from ``load_tasks``.
        limit: first items of each task only.
        device: default the accelerator, or the CPU where there is none.
        dtype: default the checkpoint's own, where the device computes in it (``hf_shear.sources.computing``).
        argument: what messages call the checkpoint.

    Returns:
        The record of one model, as at the head of this file.

    Raises:
        UsageError: the checkpoint does not exist, can not be reached, does not fit together, or has masks; or a setting
            does not fit it. Before any weight is loaded.
        ImportError: `evaluate` or `lm-eval` is needed and not installed.
    """
    plan = _plan({argument: name}, domains, perplexity, tasks, limit, device, dtype)
    return _judge(_load(plan, argument), argument, plan)[0]


def compare_checkpoints(
    source: str | os.PathLike,
    pruned: str | os.PathLike,
    *,
    domains: Mapping[str, Dataset | Sequence[str]] | None = None,
    perplexity: PerplexityProtocol | None = None,
    tasks: LoadedTasks | None = None,
    limit: int | None = None,
    speed: SpeedProtocol | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    on_part: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Two plain checkpoints on the same documents, tasks and machine.

    Args:
        source, pruned: folders, or names on the Hub. Any two will do; "pruned" is the one that is compared to the other.
        speed: None for no timing. With it, both models are in memory at once, else one after the other.
        on_part: called with the record so far after each finished part, so that it can be saved.
        domains, perplexity, tasks, limit, device, dtype: as for ``evaluate_checkpoint``.

    Returns:
        The record, as at the head of this file.

    Raises:
        UsageError, ImportError: as ``evaluate_checkpoint``.
    """
    names = {"source": source, "pruned": pruned}
    plan = _plan(names, domains, perplexity, tasks, limit, device, dtype, speed)
    record: dict[str, Any] = {}
    losses: dict[str, dict[str, DocumentLosses]] = {}
    models: dict[str, PreTrainedModel] = {}
    for role in names:
        model = _load(plan, role)
        record[role], losses[role] = _judge(model, role, plan)
        if speed is not None:
            models[role] = model
        del model
        _tell(on_part, record)
    if plan.texts is not None:
        record["differences"] = domain_differences(losses["source"], losses["pruned"])
    if speed is not None:
        record["speed"] = measure_speed(models["source"], models["pruned"], speed)
    _tell(on_part, record)
    return record | {"versions": evaluation_versions()}


def evaluation_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return collect_versions(*_EVALUATION_PACKAGES)


def _plan(names, domains, perplexity, tasks, limit, device, dtype, speed: SpeedProtocol | None = None) -> _Comparison:
    """All that can be refused without weights is refused here."""
    check_limit(limit)
    sources = {argument: open_source(argument, name) for argument, name in names.items()}
    configs = [source.config for source in sources.values()]
    for config in configs:
        config_shape(config)
        if speed is not None:
            speed.check_fits(config)
    protocol = (perplexity or PerplexityProtocol()).resolved(*configs)
    texts = None
    if domains is not None:
        texts = domain_texts(domains, protocol.max_documents)
    if domains is not None or tasks is not None:
        for source in sources.values():
            prefix_token_id(source.load_tokenizer())
    if device is None:
        device = (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or "cpu"
    return _Comparison(sources, texts, protocol, tasks, limit, resolve_device(device), dtype)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        UsageError: there is none of this name here.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"`device` must be one that is here, such as cpu or cuda:0, but it is {str(device)!r}."
        ) from error
    return found


def _load(plan: _Comparison, argument: str) -> PreTrainedModel:
    return plan.sources[argument].load_model(plan.dtype)


def _judge(
    model: PreTrainedModel, argument: str, plan: _Comparison
) -> tuple[dict[str, Any], dict[str, DocumentLosses]]:
    """The record of one model, and the losses of its documents."""
    source = plan.sources[argument]
    record, dtype = {"name": source.name, **size_record(model, source.name)}, model.dtype
    ready_to_compute(model, plan.device, plan.dtype)
    if model.dtype != dtype:
        record["computed_in"] = str(model.dtype).removeprefix("torch.")
    losses: dict[str, DocumentLosses] = {}
    if plan.texts is None and plan.tasks is None:
        return record, losses
    tokenizer = source.load_tokenizer()
    if plan.texts is not None:
        losses = domain_losses(model, tokenizer, plan.texts, plan.protocol)
        record["perplexity"] = perplexity_record(losses, tokenizer, plan.protocol)
    if plan.tasks is not None:
        options = {"limit": plan.limit, "batch_size": plan.protocol.batch_size}
        record["tasks"] = evaluate_tasks(model, tokenizer, plan.tasks, **options)
    return record, losses


def _tell(on_part: Callable[[dict[str, Any]], object] | None, record: dict[str, Any]) -> None:
    if on_part is not None:
        on_part(record | {"versions": evaluation_versions()})
