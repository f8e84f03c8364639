"""The results file of one run: what is in it, how it is written, read and checked.

    source | pruned | recovered   a model record: `shape`, `num_parameters`, `loss`, `mean`, `eval_tokens`
    target_shape                  the five shape names, and `num_experts` of a mixture of experts
    masks                         `expected_shape` (floats) and `kept_below_half` (counts), by shape name; None for a model
                                  that was pruned before the run
    tokens                        mask_learning, recovery, evaluation
    seconds                       mask_learning, recovery, evaluation, export, baselines, total
    baselines                     name -> a model record with `tokens` and `learning_rate`
    versions, seed

Losses are nats per token, and `mean` is their unweighted mean over the domains. More keys are allowed.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import FailedError, UsageError
from .json_files import read_json_object

SHAPE_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
"""The sizes that a target shape may reduce, in the order in which they are always written."""
TARGET_NAMES = (*SHAPE_NAMES, "num_experts")
"""As `SHAPE_NAMES`, with the one that only mixtures of experts have."""

RESULTS_NAME, EVALUATION_NAME, REPORT_NAME = "results.json", "evaluation.json", "report.html"
"""Files of a run's folder: this one, what `hf-shear evaluate` adds, and the page made of both."""
SAMPLE_LOSSES_NAME = "sample_losses.json"
"""What `hf-shear compare` reads beside the results, from the text that judged the models: `digest` of it and `num_tokens`
of its samples, by domain, and in `models` the sum of token losses of each sample in nats, by model and domain."""

MODEL_NAMES = ("source", "pruned", "recovered")
TOKEN_NAMES = ("mask_learning", "recovery", "evaluation")
SECONDS_NAMES = ("mask_learning", "recovery", "evaluation", "export", "baselines", "total")
VERSIONED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "hf_shear",
)
# `mean` is stored beside the losses it is made of; a rounding of the last digits is no contradiction.
MEAN_TOLERANCE = 1e-6  # relative


def model_record(
    shape: Mapping[str, int], num_parameters: int, loss: Mapping[str, float], eval_tokens: int
) -> dict[str, Any]:
    """The fields of one model in the results.

    Args:
        shape: the five shape names and `head_dim`.
        num_parameters: tied weights counted once.
        loss: held-out loss by domain, nats per token.
        eval_tokens: number of held-out tokens behind `loss`, over all domains.

    Raises:
        ValueError: a field breaks the contract of the results file; the text names the key.
    """
    losses = {name: _number(loss[name], f"loss.{name}") for name in _mapping(loss, "loss")}
    record = {
        "shape": dict(_mapping(shape, "shape")),
        "num_parameters": num_parameters,
        "loss": losses,
        "mean": math.fsum(losses.values()) / len(losses) if losses else 0.0,
        "eval_tokens": eval_tokens,
    }
    _check_model(record, "")
    return record


def write_results(path: str | os.PathLike, results: Mapping[str, Any]) -> Path:
    """Write `results` as JSON in one step: a reader sees the old file or the new one, never a part.

    The text goes to a temporary file in the same folder, reaches the disk, and replaces `path`. If anything
    fails before that, the previous file stays as it was and the temporary one is removed.

    Raises:
        ValueError: a value is not finite or not plain JSON; the text names its key path.
    """
    _check_json(results, "")
    return write_json_atomically(path, results, indent=2)


def write_json_atomically(path: str | os.PathLike, content: Mapping[str, Any], indent: int | None = 1) -> Path:
    """Write a JSON object so that `path` holds the old one or the new one, never a part; makes its folder.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return write_text_atomically(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text_atomically(path: str | os.PathLike, text: str) -> Path:
    """Write `text` as UTF-8 so that `path` holds the old text or the new one, never a part; makes its folder."""
    return write_file_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_file_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file under another name of the same ending, which then replaces `path`; makes its folder.

    Raises:
        FailedError: it could not be written, on a full disk for example.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FailedError(
            f"{str(path)!r} could not be written: {error.strerror or error}. What was there before is as it was. Mend what"
            " stopped it (room on the disk, rights), or name another place."
        ) from error
    return path


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read a results file. `check_results` says whether a complete run wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one JSON object, or holds a number that is not finite.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no results file at '{path}'. A run that ends writes `<output_dir>/results.json`."
        )
    return read_json_object(path)


def check_results(results: Mapping[str, Any]) -> None:
    """Check the results of a complete run against the contract at the head of this file.

    Raises:
        ValueError: a key is missing or its value breaks the contract; the text names the key.
    """
    _mapping(results, "results")
    for name in MODEL_NAMES:
        _check_model(_get(results, name, ""), name)
    target = _mapping(_get(results, "target_shape", ""), "target_shape")
    _check_counts(target, SHAPE_NAMES, "target_shape", minimum=1)
    for name in ("pruned", "recovered"):
        _check_same_shape(results[name]["shape"], target, name)
    masks = _get(results, "masks", "")
    if masks is not None:
        _mapping(masks, "masks")
        _check_numbers(_get(masks, "expected_shape", "masks"), SHAPE_NAMES, "masks.expected_shape")
        _check_counts(_get(masks, "kept_below_half", "masks"), SHAPE_NAMES, "masks.kept_below_half")
    _check_counts(_get(results, "tokens", ""), TOKEN_NAMES, "tokens")
    _check_numbers(_get(results, "seconds", ""), SECONDS_NAMES, "seconds")
    baselines = _mapping(_get(results, "baselines", ""), "baselines")
    for name, record in baselines.items():
        _check_baseline(record, f"baselines.{name}")
    _check_domains(results, baselines)
    versions = _mapping(_get(results, "versions", ""), "versions")
    for name, version in versions.items():
        if not isinstance(version, str):
            raise _wrong(f"versions.{name}", version, "a string")
    _count(_get(results, "seed", ""), "seed")


def collect_versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, and of ``more``; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in (*VERSIONED_PACKAGES, *more):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _check_model(record: Any, path: str) -> None:
    """One model record: its shape, parameters, losses, and a mean that is the mean of the losses."""
    _mapping(record, path or "record")
    shape = _get(record, "shape", path)
    _check_counts(shape, (*SHAPE_NAMES, "head_dim"), _join(path, "shape"), minimum=1)
    _count(_get(record, "num_parameters", path), _join(path, "num_parameters"), minimum=1)
    losses = _mapping(_get(record, "loss", path), _join(path, "loss"))
    if not losses:
        raise UsageError(f"`{_join(path, 'loss')}` must name at least one domain, but it is empty.")
    _check_numbers(losses, losses, _join(path, "loss"))
    mean = _number(_get(record, "mean", path), _join(path, "mean"))
    expected = math.fsum(losses.values()) / len(losses)
    if not math.isclose(mean, expected, rel_tol=MEAN_TOLERANCE, abs_tol=MEAN_TOLERANCE):
        raise UsageError(
            f"`{_join(path, 'mean')}` must be the unweighted mean over the domains ({expected:.6f}), "
            f"but it is {mean:.6f}."
        )
    _count(_get(record, "eval_tokens", path), _join(path, "eval_tokens"), minimum=1)


def _check_baseline(record: Any, path: str) -> None:
    _check_model(record, path)
    _count(_get(record, "tokens", path), _join(path, "tokens"))
    rate = _number(_get(record, "learning_rate", path), _join(path, "learning_rate"))
    if rate == 0:
        raise _wrong(_join(path, "learning_rate"), rate, "greater than 0")


def _check_same_shape(shape: Mapping[str, int], target: Mapping[str, int], path: str) -> None:
    for name in TARGET_NAMES:
        if shape.get(name) != target.get(name):
            raise UsageError(
                f"`{path}.shape.{name}` must be the target's ({target.get(name)}), but it is {shape.get(name)}."
            )


def _check_domains(results: Mapping[str, Any], baselines: Mapping[str, Any]) -> None:
    """All models must have been measured on the same domains, or their means say nothing of each other."""
    domains = set(results["source"]["loss"])
    records = {name: results[name] for name in MODEL_NAMES}
    records.update({f"baselines.{name}": record for name, record in baselines.items()})
    for path, record in records.items():
        if set(record["loss"]) != domains:
            raise UsageError(
                f"`{path}.loss` must name the domains of `source.loss` ({', '.join(sorted(domains))}), "
                f"but it names {', '.join(sorted(record['loss']))}."
            )


def _check_counts(mapping: Any, names: Iterable[str], path: str, minimum: int = 0) -> None:
    _mapping(mapping, path)
    for name in names:
        _count(_get(mapping, name, path), _join(path, name), minimum)


def _check_numbers(mapping: Any, names: Iterable[str], path: str) -> None:
    _mapping(mapping, path)
    for name in names:
        _number(_get(mapping, name, path), _join(path, name))


def _get(mapping: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in mapping:
        raise UsageError(f"The results lack the key `{_join(path, name)}`.")
    return mapping[name]


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(path, value, "a dict")
    return value


def _count(value: Any, path: str, minimum: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise _wrong(path, value, f"an integer of at least {minimum}")
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _wrong(path, value, "a finite number of at least 0")
    return float(value)


def _wrong(path: str, value: Any, rule: str) -> UsageError:
    return UsageError(f"`{path}` must be {rule}, but it is {value!r}. Correct it.")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_json(value: Any, path: str) -> None:
    """Refuse what JSON cannot hold or would change silently, naming the key path."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UsageError(
                    f"Keys must be strings, but `{path or 'results'}` has the key {name!r}. Write it as a string."
                )
            _check_json(item, _join(path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"`{path}` must be finite, but it is {value}. Leave it out. Nothing was written.")
    elif not (value is None or isinstance(value, str | int)):
        raise UsageError(
            f"`{path}` must be a plain number, string, list or dict, but it is a {type(value).__name__}. "
            "Convert it first, for example with `.item()` or `.tolist()`. Nothing was written."
        )
