"""What a run leaves for people to look at."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import PreTrainedModel

from ..core import (
    RESULTS_NAME,
    SAMPLE_LOSSES_NAME,
    UsageError,
    check_results,
    collect_versions,
    model_record,
    write_json_atomically,
    write_results,
    write_text_atomically,
)
from ..core.results import MODEL_NAMES
from ..data import samples_digest
from ..pruning import OneShotPruning
from ..pruning.interleave import InterleavedPruning
from ..report import comparison_table, plot_domains, plot_kept_units, plot_sizes, write_html_report
from ..shapes import TARGET_NAMES, ModelShape, count_parameters, training_flops_per_token
from ..sources import Source, open_source, ready_to_compute, whole_models
from ..training import ShearTrainingArguments, evaluate_samples
from .origin import code_origin
from .run_time import BY_TURNS

SAMPLES = "samples"
"""In a model's record: ``digest`` of the text that judged it, and ``num_tokens`` and ``nats`` of each sample, by domain."""


def judge(
    model: PreTrainedModel,
    datasets: dict,
    args: ShearTrainingArguments,
    with_samples: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> dict:
    """A model's record for the results: shape, parameters, dtype, held-out losses, and the seconds that took.

    ``with_samples`` adds the losses of each sample, under ``SAMPLES``, for ``save_results``.
    Every process has the model and takes its share of the samples. A loss that is not finite is refused. ``dtype`` is that
    of the weights as they came; ``computed_in`` is ``compute_dtype`` or, by default, another where the device has no
    instructions for it.
    """
    start, dtype = time.perf_counter(), model.dtype
    ready_to_compute(model, args.device, compute_dtype)
    share = {"rank": args.process_index, "world_size": args.world_size, "reduce": partial(reduce, reduction="sum")}
    found = evaluate_samples(model, datasets, args.eval_batch_size, **(share if args.world_size > 1 else {}))
    losses = {name: it.mean for name, it in found.items()}
    num_tokens = sum(sum(it.num_tokens) for it in found.values())
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise UsageError(
            f"The held-out loss of {model.config.name_or_path or 'the model'!r} is not finite for {bad}: it gives NaN or"
            " infinite values. Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    shape = ModelShape.from_config(model.config)
    record = model_record(shape.to_dict(), count_parameters(model.config), losses, num_tokens)
    names = {"dtype": dtype, "computed_in": model.dtype}
    record |= {name: str(value).removeprefix("torch.") for name, value in names.items()}
    if with_samples:
        record[SAMPLES] = {
            "digest": {name: samples_digest(dataset) for name, dataset in datasets.items()},
            "num_tokens": {name: it.num_tokens for name, it in found.items()},
            "nats": {name: [round(loss, 5) for loss in it.sums] for name, it in found.items()},
        }
    return record | {"seconds": time.perf_counter() - start}


def judge_checkpoint(source: Source | str | os.PathLike, datasets: dict, args: ShearTrainingArguments) -> dict:
    """As ``judge`` with samples, for a plain checkpoint as anyone would load it: its own dtype, whole on every process."""
    source = source if isinstance(source, Source) else open_source("checkpoint", source)
    with whole_models():
        model = source.load_model()
    return judge(model, datasets, args, with_samples=True)


def known_results(
    source: dict, chosen: dict, recovered: dict, baselines: dict[str, dict], sizes: dict[str, int]
) -> dict:
    """What the records of a run's stages say of its results; of stages that are to come there is nothing.

    Args:
        source: what ``judge`` says of it, or its shape alone.
        chosen: record of the stage that ends with the target shape; {} before it.
        recovered: record of recovery; {} before it.
        baselines: records of baselines, and of what comes before one, by name.
        sizes: of the target shape.
    """
    before = chosen.get("tokens", 0)
    models = {"source": source, "pruned": chosen.get("model"), "recovered": recovered.get("model")}
    if "model" in recovered:
        models["recovered"] = recovered["model"] | {"learning_rate": recovered["learning_rate"]}
    stages = {"mask_learning": chosen, "recovery": recovered}
    history = chosen.get("history", [])
    return {name: model for name, model in models.items() if model} | {
        "target_shape": sizes,
        "kept": chosen.get("kept"),
        "masks": chosen.get("masks"),
        # None: masks are learned, or the run began with a pruned checkpoint
        "prune_config": chosen.get("prune_config"),
        "tokens": {name: stage.get("tokens", 0) for name, stage in stages.items()}
        | {"calibration": chosen.get("calibration_tokens", 0)},
        "passes": {name: stage["passes"] for name, stage in stages.items() if "passes" in stage},
        "history": history + shifted(recovered.get("history", []), before),
        "sizes": chosen.get("sizes") or [row for row in history if "expected_shape" in row],
        "baselines": {
            name: stage["model"] | {key: stage[key] for key in ("tokens", "learning_rate", "flops")}
            for name, stage in baselines.items()
            if "learning_rate" in stage  # it is finished, and more than the start of another
        },
        "baseline_history": {name: stage["history"] for name, stage in baselines.items()},
    }


def run_results(
    source: dict,
    learned: dict,
    recovered: dict,
    baselines: dict[str, dict],
    target: ModelShape,
    args,
    commands: list[str],
) -> dict:
    """The results of a run from the records of its stages, and the commands that made it (``seconds.total`` is left to the
    caller)."""
    results = known_results(source, learned, recovered, baselines, target.sizes())
    trained = [learned, recovered, *baselines.values()]
    judged = [source, *(stage["model"] for stage in trained)]
    in_training = [row for stage in trained for row in stage["history"]]
    chosen = learned["flops"]
    results["recovered"]["flops"] = None if chosen is None else chosen + recovered["flops"]
    results["tokens"]["evaluation"] = (
        sum(row["eval_tokens"] for row in in_training)
        + sum(record["eval_tokens"] for record in judged)
        + learned["reference_tokens"]
    )
    at_once = results["prune_config"] is not None
    results["seconds"] = {
        **({"pruning": learned["seconds"]} if at_once else {}),
        "mask_learning": 0.0 if at_once else learned["seconds"],
        "export": learned["export_seconds"],
        "recovery": recovered["seconds"],
        "evaluation": sum(row["eval_seconds"] for row in in_training) + sum(record["seconds"] for record in judged),
        "baselines": sum(stage["seconds"] for stage in baselines.values()),
    }
    return results | {"recovery": recovery_settings(args)} | _made_by(args, commands)


def _made_by(args: ShearTrainingArguments, commands: list[str]) -> dict:
    return {
        "versions": collect_versions(),
        "seed": args.seed,
        "command": "\n".join(commands),
        "made_by": code_origin(),
    }


def pruning_results(
    source: dict, pruned: dict, pruning: OneShotPruning, args: ShearTrainingArguments, seconds: dict[str, float],
    commands: list[str],
) -> dict:  # fmt: skip
    """The results of pruning alone: what ``run_results`` holds, without a recovered model.

    Args:
        source, pruned: what ``judge`` says of both.
        seconds: of ``pruning``, ``export`` and ``total``.
        commands: that made it, in order.
    """
    chosen = {
        "model": pruned | {"flops": pruning.cost.flops},
        "kept": pruning.kept.to_dict(),
        "prune_config": pruning.config.to_dict(),
        "calibration_tokens": pruning.cost.num_tokens,
    }
    sizes = {name: pruned["shape"][name] for name in TARGET_NAMES if name in pruned["shape"]}
    results = known_results(source, chosen, {}, {}, sizes)
    results["tokens"]["evaluation"] = source["eval_tokens"] + pruned["eval_tokens"]
    results["seconds"] = {"mask_learning": 0.0, "recovery": 0.0, "baselines": 0.0}
    results["seconds"] |= {"evaluation": source["seconds"] + pruned["seconds"]} | seconds
    return results | _made_by(args, commands)


def interleaving_results(
    source: dict, pruned: dict, pruning: InterleavedPruning, args: ShearTrainingArguments, seconds: dict[str, float],
    commands: list[str],
) -> dict:  # fmt: skip
    """As ``pruning_results``, of a model that was trained while it was pruned: at the source's size, before the cut."""
    trained = pruning.trainer.stage_record(BY_TURNS)
    seconds = {name: value for name, value in seconds.items() if name != "pruning"} | {
        "mask_learning": seconds["pruning"]
    }
    results = pruning_results(source, pruned, pruning, args, seconds, commands)
    length = pruning.trainer.sample_length
    results["pruned"]["flops"] += trained["tokens"] * training_flops_per_token(pruning.masked_config, length)
    results["pruned"]["learning_rate"] = args.learning_rate
    results["tokens"] |= {
        "mask_learning": trained["tokens"],
        "evaluation": results["tokens"]["evaluation"] + sum(row["eval_tokens"] for row in trained["history"]),
    }
    return results | {"history": trained["history"], "passes": {"mask_learning": trained["passes"]}}


def recovery_settings(args: ShearTrainingArguments) -> dict:
    """How a model was recovered: the method, and the distillation or None."""
    settings = args.distillation_settings()
    return {"method": args.recovery_method, "distillation": None if settings is None else asdict(settings)}


def shifted(history: list[dict], tokens_before: int) -> list[dict]:
    """Rows of a stage, counted from the start of the run."""
    return [row | {"num_tokens": row["num_tokens"] + tokens_before} for row in history]


def save_results(folder: str | os.PathLike, results: dict) -> dict:
    """Write ``results.json``, and what its models' records hold of single samples to ``sample_losses.json``.

    Returns:
        The results as they were written.
    """
    models = {name: results[name] for name in MODEL_NAMES if name in results} | results.get("baselines", {})
    samples = {name: model[SAMPLES] for name, model in models.items() if SAMPLES in model}
    plain = {name: _without_samples(value) if name in MODEL_NAMES else value for name, value in results.items()}
    plain["baselines"] = {name: _without_samples(model) for name, model in results.get("baselines", {}).items()}
    if samples:  # a run that another version began has none
        first = next(iter(samples.values()))
        content = {name: first[name] for name in ("digest", "num_tokens")}
        content["models"] = {name: found["nats"] for name, found in samples.items()}
        write_json_atomically(Path(folder) / SAMPLE_LOSSES_NAME, content, indent=None)
    write_results(Path(folder) / RESULTS_NAME, plain)
    return plain


def _without_samples(record: dict) -> dict:
    return {name: value for name, value in record.items() if name != SAMPLES}


def write_report(folder: Path, results: dict) -> str:
    """Check and write ``results.json`` (``save_results``), draw the pictures, and return the table to print.

    ``results`` holds, beside the contract's keys, ``kept`` (``KeptUnits.to_dict()``, None where nobody noted it),
    ``history`` (rows of ``evaluation_history`` over both stages), ``baseline_history`` (such rows by baseline, counted from
    its own start) and ``sizes`` (rows of ``size_history``).
    """
    check_results(results)
    return draw_report(folder, results)


def draw_report(folder: Path, results: dict) -> str:
    """As ``write_report``, for results that need not have every model."""
    results = save_results(folder, results)
    source = results["source"]["shape"]
    if results["kept"] is not None:
        plot_kept_units(results["kept"], source, folder / "kept_units.png")
    history = results["history"]
    if history:
        plot_domains(history, folder / "domains.png")
    if results["sizes"]:
        sizes = {name: results["target_shape"][name] for name in TARGET_NAMES if name in results["target_shape"]}
        plot_sizes(results["sizes"], sizes, folder / "sizes.png", source_shape=source)
    table = comparison_table(results)
    write_text_atomically(folder / "table.txt", table + "\n")
    write_html_report(folder)
    return table
