"""Several runs side by side, from the files of their folders alone: nothing is computed but differences.

The record of a comparison:

    runs         rows in the order given: ``name``, ``model`` ("recovered", or "pruned" where nothing was recovered),
                 ``shape``, ``num_parameters``, ``loss``, ``mean``, ``tokens``, ``flops`` (None: not known), ``seconds`` (of
                 the whole run, without its baselines), ``seed``, ``source_mean``
    differences  by name of every run but the first: by domain, and under ``mean``, ``loss`` and ``interval`` of that run
                 minus the first, in nats per token; the interval is None where a domain has a single sample
    eval_tokens  of the text that judged all of them
    interval     how intervals are made
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import RESULTS_NAME, SAMPLE_LOSSES_NAME, UsageError, check_record, of_file, read_json_object, read_results
from .intervals import NUM_RESAMPLES, RESAMPLE_SEED, paired_difference, paired_mean_difference

JUDGED = ("recovered", "pruned")
"""The model that a run is compared by: the first of these that it has."""
MEAN = "mean"


def compare_runs(folders: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """The record of a comparison, as at the head of this file.

    Args:
        folders: of two or more runs, each with ``results.json`` and ``sample_losses.json``.

    Raises:
        UsageError: a run has no such files or no pruned model, its files are damaged or of two runs, or the runs were
            judged on different text.
    """
    paths = [Path(folder) for folder in folders]
    names = distinct_names(paths)
    results, samples = [], []
    for path in paths:
        results.append(_read_results(path))
        samples.append(_read_samples(path, results[-1]))
    for path, other in zip(paths[1:], samples[1:], strict=True):
        _check_same_text(paths[0], samples[0], path, other)
    rows = [_row(*found) for found in zip(names, results, strict=True)]
    counts = {name: np.array(tokens) for name, tokens in samples[0]["num_tokens"].items()}
    losses = [
        {name: np.array(nats) for name, nats in found["models"][row["model"]].items()}
        for row, found in zip(rows, samples, strict=True)
    ]
    return {
        "runs": rows,
        "differences": {
            row["name"]: _differences(losses[0], other, counts) for row, other in zip(rows[1:], losses[1:], strict=True)
        },
        "eval_tokens": int(sum(tokens.sum() for tokens in counts.values())),
        "interval": f"95 % bootstrap over held-out samples in pairs, {NUM_RESAMPLES} resamples, seed {RESAMPLE_SEED}",
    }


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart.

    Raises:
        UsageError: a folder is named twice.
    """
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path, found in zip(paths, whole, strict=True) if whole.count(found) > 1)
        raise UsageError(f"`runs` must name different folders, but {str(twice)!r} is named twice. Leave one out.")
    for number in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-number:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths differ")


def _read_results(path: Path) -> dict[str, Any]:
    results = read_results(path / RESULTS_NAME)
    with of_file(path / RESULTS_NAME):
        check_record(results, "results")
    if not any(results.get(model) for model in JUDGED):
        raise UsageError(
            f"{str(path / RESULTS_NAME)!r} has neither a pruned nor a recovered model, so there is nothing to compare."
            " Finish its run."
        )
    return results


def _read_samples(path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """The losses of single samples, checked against the results beside them."""
    file = path / SAMPLE_LOSSES_NAME
    if not file.is_file():
        raise UsageError(
            f"{str(path)!r} has no {SAMPLE_LOSSES_NAME}, so it can not be said on which text its models were judged: a run"
            " of another version wrote it, or the file was left behind. Judge the models on one text instead:"
            " hf-shear evaluate MODEL MODEL --data_dir TEXT."
        )
    samples, model = read_json_object(file), _model(results)
    with of_file(file):
        check_record(samples, "sample_losses")
        nats = samples["models"].get(model)
        if nats is None:
            raise UsageError(f"it lacks the model `{model}` of {RESULTS_NAME}. Put back the file that the run wrote.")
        for name, loss in results[model]["loss"].items():
            tokens = samples["num_tokens"].get(name, [])
            if len(nats.get(name, [])) != len(tokens) or abs(sum(nats.get(name, [])) - loss * sum(tokens)) > 1e-3 * sum(
                tokens
            ):
                raise UsageError(
                    f"its losses of domain {name!r} are not those of {RESULTS_NAME}. Put back the files that the run wrote."
                )
    return samples


def _check_same_text(first: Path, wanted: Mapping[str, Any], path: Path, found: Mapping[str, Any]) -> None:
    ours, theirs = wanted["digest"], found["digest"]
    if ours == theirs:
        return
    what = (
        f"on other domains ({', '.join(ours)} against {', '.join(theirs)})"
        if set(ours) != set(theirs)
        else f"on other text of {', '.join(repr(name) for name in ours if ours[name] != theirs[name])}"
    )
    raise UsageError(
        f"The models of {str(path)!r} were judged {what} than those of {str(first)!r}, or with another tokenizer, so their"
        " losses do not compare. Judge them on one text: hf-shear evaluate MODEL MODEL --data_dir TEXT."
    )


def _model(results: Mapping[str, Any]) -> str:
    return next(model for model in JUDGED if results.get(model))


def _row(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    model, tokens, seconds = _model(results), results.get("tokens") or {}, results.get("seconds") or {}
    record = results[model]
    trained = [tokens.get("mask_learning"), tokens.get("recovery") if model == "recovered" else 0]
    total = seconds.get("total")
    return {
        "name": name,
        "model": model,
        "shape": record["shape"],
        "num_parameters": record["num_parameters"],
        "loss": record["loss"],
        "mean": record["mean"],
        "tokens": None if None in trained else sum(trained),
        "flops": record.get("flops"),
        "seconds": None if total is None else total - (seconds.get("baselines") or 0.0),
        "seed": results.get("seed"),
        "source_mean": (results.get("source") or {}).get("mean"),
    }


def _differences(first: Mapping, second: Mapping, counts: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Second minus first, on the same samples."""
    pairs = {name: ((first[name], tokens), (second[name], tokens)) for name, tokens in counts.items()}
    found = {name: paired_difference(*pair) for name, pair in pairs.items()}
    estimates = {**found, MEAN: paired_mean_difference(list(pairs.values()))}
    return {name: {"loss": one.value, "interval": one.interval} for name, one in estimates.items()}
