"""The record of an evaluation as plain ASCII tables: source against pruned, or one checkpoint alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import printable
from ..report.arms_table import short_name
from .perplexity import perplexity

ROLES = ("source", "pruned")
NOT_KNOWN = "-"


def evaluation_table(record: Mapping[str, Any]) -> str:
    """Tables of size, loss, bits per byte, tasks and speed, as far as the record holds them.

    Args:
        record: as in `hf_shear.evaluation.compare`; `pruned` may be missing.
    """
    models = {role: record[role] for role in ROLES if role in record}
    blocks = ["\n".join(_named(role, model) for role, model in models.items()), _size_block(models)]
    if all("perplexity" in model for model in models.values()):
        differences = record.get("differences", {})
        blocks += [_loss_block(models, differences), _bits_block(models, differences), _protocol(models)]
    if all("tasks" in model for model in models.values()):
        blocks.append(_task_block(models))
    if "speed" in record:
        blocks.append(_speed_block(record["speed"]))
    return "\n\n".join(blocks) + "\n"


def _named(role: str, model: Mapping) -> str:
    """Which checkpoint it is; and in what its numbers were computed, if this machine has no instructions for its own."""
    computed = f" (computed in {model['computed_in']}, stored in {model['dtype']})" if "computed_in" in model else ""
    return f"{role}: {_ascii(model['name'])}{computed}"


def _size_block(models: Mapping[str, Mapping]) -> str:
    rows = [
        ("parameters", *_with_ratio(models, lambda model: model["num_parameters"])),
        ("weights, bytes in memory", *_with_ratio(models, lambda model: model["weight_bytes"])),
        ("weights, bytes on disk", *_with_ratio(models, lambda model: model["file_bytes"])),
        ("KV cache, bytes per token", *_with_ratio(models, lambda model: model["kv_cache_bytes_per_token"])),
    ]
    for name in models["source"]["shape"]:
        rows.append((name, *_with_ratio(models, lambda model, name=name: model["shape"][name])))
    rows.append(("dtype", *(model["dtype"] for model in models.values()), *[""] * (len(models) - 1)))
    return _grid("Size", ("", *models, *["pruned/source"] * (len(models) - 1)), rows)


def _with_ratio(models: Mapping[str, Mapping], value: Callable[[Mapping], int | None]) -> list[str]:
    """A count of each model, and of two their ratio."""
    values = [value(model) for model in models.values()]
    cells = [NOT_KNOWN if count is None else f"{count:,}" for count in values]
    if len(values) == 2:
        before, after = values
        cells.append(NOT_KNOWN if before is None or after is None else f"{100 * after / before:.1f} %")
    return cells


def _loss_block(models: Mapping[str, Mapping], differences: Mapping[str, Mapping]) -> str:
    compares = all("loss" in difference for difference in differences.values())
    rows = []
    for name in models["source"]["perplexity"]["domains"]:
        domains = [model["perplexity"]["domains"][name] for model in models.values()]
        row = [short_name(name), f"{domains[0]['num_documents']:,}"]
        row.append(" / ".join(dict.fromkeys(f"{domain['num_tokens']:,}" for domain in domains)))
        row += [_with_interval(domain["loss"], domain["loss_interval"]) for domain in domains]
        if len(models) == 2:
            row.append(_difference(differences[name], "loss", "interval"))
        rows.append(row)
    if len(rows) > 1:
        means = [f"{model['perplexity']['mean_loss']:.3f}" for model in models.values()]
        rows.append(["mean of domains", "", "", *map(_before_interval, means), *[""] * (len(models) - 1)])
    rows.append(["perplexity of mean" if len(rows) > 1 else "perplexity", "", "", *_perplexities(models)])
    headings = ("domain", "documents", "tokens", *models, *["pruned - source"] * (len(models) - 1))
    block = _grid("Loss, nats per token", headings, [row + [""] * (len(headings) - len(row)) for row in rows])
    if not compares:
        block += "\nThe tokenizers differ: nats per token do not compare. Compare bits per byte."
    return block


def _perplexities(models: Mapping[str, Mapping]) -> list[str]:
    means = [model["perplexity"]["mean_loss"] for model in models.values()]
    return [_before_interval(f"{perplexity(mean):.4g}") for mean in means]


def _bits_block(models: Mapping[str, Mapping], differences: Mapping[str, Mapping]) -> str:
    rows = []
    for name in models["source"]["perplexity"]["domains"]:
        domains = [model["perplexity"]["domains"][name] for model in models.values()]
        row = [short_name(name), f"{domains[0]['num_bytes']:,}"]
        row += [_with_interval(domain["bits_per_byte"], domain["bits_per_byte_interval"]) for domain in domains]
        if len(models) == 2:
            row.append(_difference(differences[name], "bits_per_byte", "bits_per_byte_interval"))
        rows.append(row)
    if len(rows) > 1:
        means = [_before_interval(f"{model['perplexity']['mean_bits_per_byte']:.3f}") for model in models.values()]
        rows.append(["mean of domains", "", *means, *[""] * (len(models) - 1)])
    headings = ("domain", "bytes", *models, *["pruned - source"] * (len(models) - 1))
    return _grid("Bits per byte", headings, rows)


def _protocol(models: Mapping[str, Mapping]) -> str:
    protocol = models["source"]["perplexity"]["protocol"]
    most = "all" if protocol["max_documents"] is None else f"the first {protocol['max_documents']:,} per domain"
    tokenizers = [_ascii(model["perplexity"]["protocol"]["tokenizer"]) for model in models.values()]
    return "\n".join(
        [
            f"Protocol: window {protocol['window']}, stride {protocol['stride']};"
            f" documents: {protocol['documents']}, {most};",
            f"tokenizer: {' | '.join(dict.fromkeys(tokenizers))}; [..]: {protocol['interval']}",
            *(["difference: paired on the same documents"] if len(models) == 2 else []),
        ]
    )


def _task_block(models: Mapping[str, Mapping]) -> str:
    rows = []
    for name, first in models["source"]["tasks"].items():
        results = [model["tasks"][name] for model in models.values()]
        row = [short_name(name), short_name(first["metric"]), f"{first['num_items']:,}"]
        rows.append([*row, *(_with_error(result["value"], result["standard_error"]) for result in results)])
    return _grid("Tasks (value +- standard error)", ("task", "metric", "items", *models), rows)


def _speed_block(speed: Mapping[str, Any]) -> str:
    rows = []
    for stage in ("prefill", "decode"):
        ratio = speed[f"{stage}_ratio"]
        speeds = [f"{speed[role][f'{stage}_tokens_per_second']:,.0f}" for role in ROLES]
        rows.append((stage, *speeds, f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"))
    threads = "" if speed.get("threads") is None else f", {speed['threads']} thread{'s' * (speed['threads'] != 1)}"
    what = f"batch {speed['batch_size']}, prompt {speed['prompt_length']}, {speed['new_tokens']} new tokens"
    where = f"{_ascii(speed['device'])}{threads}, {speed['dtype']}"
    grid = _grid("Speed, tokens per second", ("", *ROLES, "pruned/source"), rows)
    return f"{grid}\n{where}; {what}; median of {speed['rounds']} rounds in turns [lowest, highest]"


def _with_interval(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    if interval is None:
        return _before_interval(f"{value:{sign}.3f}", sign)
    return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _before_interval(text: str, sign: str = "") -> str:
    """Lines a number without an interval up with those that have one, which is 15 characters or, with signs, 17."""
    return text + " " * (17 if sign else 15)


def _difference(record: Mapping[str, Any], name: str, interval: str) -> str:
    return _with_interval(record[name], record[interval], "+") if name in record else NOT_KNOWN


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return NOT_KNOWN
    return f"{value:.4g}" if error is None else f"{value:.3f} +- {error:.3f}"


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "backslashreplace").decode()


def _grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [title]
    for cells in (headings, ["-" * width for width in widths], *rows):
        first, *others = zip(cells, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    return "\n".join(lines)
