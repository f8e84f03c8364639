"""What kind of value stands where in results.json, evaluation.json and a provenance record, for those who print them.

Parts may be missing, and more may be there: this says only that what is there can be formatted and compared. A complete
run's results are checked by ``check_results``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UsageError
from .results import SHAPE_NAMES, TARGET_NAMES


class Each(dict):
    """A type of an object whose entries have names that are not known before, and one type."""


class Needs(dict):
    """A type of an object that has these entries whenever it is there at all."""

    def __init__(self, needed: str, **kinds: Any):
        super().__init__(kinds)
        self.needed = needed.split()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _criterion(value: Any) -> bool:
    return all(isinstance(choice, str) for choice in (value.values() if isinstance(value, Mapping) else [value]))


def _layers(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(map(_count, value)))


NUMBER, COUNT, TEXT = (
    (_number, "a finite number"),
    (_count, "a whole number"),
    (lambda v: isinstance(v, str), "a string"),
)
INTERVAL = (_interval, "two finite numbers")
SIZE = (lambda value: _count(value) and value > 0, "a whole number above 0")
SHAPE = Needs(" ".join(SHAPE_NAMES), **dict.fromkeys((*TARGET_NAMES, "head_dim"), SIZE))
MODEL = Needs(
    "shape num_parameters loss mean eval_tokens",
    shape=SHAPE, num_parameters=SIZE, loss=Each(any=NUMBER), mean=NUMBER, eval_tokens=COUNT,
    learning_rate=NUMBER, standard_error=NUMBER, tokens=COUNT, dtype=TEXT,
)  # fmt: skip
ROW = Needs(
    "num_tokens", stage=TEXT, num_tokens=COUNT, loss=Each(any=NUMBER), mixture_weights=Each(any=NUMBER),
    expected_shape=Each(any=NUMBER),
)  # fmt: skip
UNITS = Each(any=[COUNT])
RESULTS = {
    "source": MODEL, "pruned": MODEL, "recovered": MODEL, "baselines": Each(any=MODEL), "target_shape": SHAPE,
    "masks": {"expected_shape": Each(any=NUMBER), "kept_below_half": Each(any=COUNT)}, "tokens": Each(any=COUNT),
    "seconds": Each(any=NUMBER), "versions": Each(any=TEXT), "seed": COUNT, "command": TEXT,
    "made_by": {"commit": TEXT, "url": TEXT},
    "recovery": {"method": TEXT}, "passes": Each(any=Each(any=NUMBER)), "history": [ROW], "sizes": [ROW],
    "baseline_history": Each(any=[ROW]),
    "kept": {"hidden": [COUNT], "layers": [COUNT], "heads": UNITS, "key_value_heads": UNITS, "intermediate": UNITS},
}  # fmt: skip
DOMAIN = Needs(
    "loss", loss=NUMBER, loss_interval=INTERVAL, perplexity=NUMBER, perplexity_interval=INTERVAL,
    bits_per_byte=NUMBER, bits_per_byte_interval=INTERVAL, num_documents=COUNT, num_tokens=COUNT,
)  # fmt: skip
TASK = Needs(
    "metric value", metric=TEXT, value=NUMBER, standard_error=NUMBER, num_items=COUNT,
    dataset=Needs("id num_fewshot", id=TEXT, config=TEXT, num_fewshot=COUNT),
)  # fmt: skip
EVALUATED = {
    "name": TEXT, "dtype": TEXT, "num_parameters": SIZE, "weight_bytes": COUNT, "kv_cache_bytes_per_token": COUNT,
    "perplexity": {"protocol": {}, "domains": Each(any=DOMAIN), "mean_loss": NUMBER, "mean_bits_per_byte": NUMBER},
    "tasks": Each(any=TASK),
}  # fmt: skip
RATE = Needs(
    "prefill_tokens_per_second decode_tokens_per_second",
    **dict.fromkeys(("prefill_tokens_per_second", "decode_tokens_per_second"), NUMBER),
)
RATIO = Needs("median low high", median=NUMBER, low=NUMBER, high=NUMBER)
SPEED = Needs(
    "source pruned device dtype batch_size prompt_length new_tokens rounds prefill_ratio decode_ratio",
    device=TEXT, dtype=TEXT, batch_size=COUNT, prompt_length=COUNT, new_tokens=COUNT, rounds=COUNT,
    source=RATE, pruned=RATE, prefill_ratio=RATIO, decode_ratio=RATIO,
)  # fmt: skip
EVALUATION = {
    "source": EVALUATED, "pruned": EVALUATED, "versions": Each(any=TEXT),
    "differences": Each(any={
        "loss": NUMBER, "interval": INTERVAL, "bits_per_byte": NUMBER, "bits_per_byte_interval": INTERVAL,
    }),
    "speed": SPEED,
}  # fmt: skip
NULLABLE = (
    "learning_rate", "standard_error", "tokens", "value", "num_items", "loss_interval", "perplexity_interval",
    "bits_per_byte_interval", "interval", "name_or_path", "revision", "method", "calibration", "command",
    "as_family", "pruning_share", "config", "dataset", "url",
)  # fmt: skip
"""Entries that may be null, beside objects and lists: not known, or there is none."""
PRUNE_CONFIG = {
    "criterion": (_criterion, "a string, or an object with one for each kind of unit"), "compensation": TEXT,
    "num_shots": SIZE, "allocation": TEXT, "units": [TEXT], "protect": (_layers, "a string, or a list of whole numbers"),
    "form": TEXT, "as_family": TEXT, "pruning_share": NUMBER,
}  # fmt: skip
PROVENANCE = {
    "source": {"name_or_path": TEXT, "revision": TEXT, "shape": SHAPE}, "mask_settings": {"method": TEXT},
    "prune_config": PRUNE_CONFIG, "versions": Each(any=TEXT), "kept": RESULTS["kept"], "commands": [TEXT],
}  # fmt: skip
SAMPLE_LOSSES = Needs(
    "digest num_tokens models", digest=Each(any=TEXT), num_tokens=Each(any=[SIZE]), models=Each(any=Each(any=[NUMBER]))
)
TYPES = {
    "results": RESULTS, "evaluation": EVALUATION, "provenance": PROVENANCE, "prune_config": PRUNE_CONFIG,
    "sample_losses": SAMPLE_LOSSES,
}  # fmt: skip


def check_record(record: Mapping[str, Any], kind: str) -> None:
    """Check the values that are printed.

    Args:
        kind: "results", "evaluation", "provenance", "prune_config" or "sample_losses".

    Raises:
        UsageError: a value is of another kind; the text names its key path.
    """
    _check(record, TYPES[kind], kind)


def without_nulls(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without the parts that are null: there is no such part, as where it is missing."""
    return {
        name: without_nulls(value) if name == "kept" and value else value
        for name, value in results.items()
        if value is not None
    }


def _check(value: Any, kind: Any, path: str) -> None:
    if isinstance(kind, tuple):
        holds: Callable[[Any], bool] = kind[0]
        if not holds(value):
            raise _wrong(path, kind[1], value)
    elif isinstance(kind, list):
        if not isinstance(value, list | tuple):
            raise _wrong(path, "a list", value)
        for index, item in enumerate(value):
            _check(item, kind[0], f"{path}[{index}]")
    elif not isinstance(value, Mapping):
        raise _wrong(path, "an object", value)
    elif isinstance(kind, Each):
        if path.endswith(".loss") and not value:
            raise UsageError(
                f"`{path}` must name at least one domain, but it is empty. Put back the file that the run wrote."
            )
        for name, item in value.items():
            _check_entry(name, item, kind["any"], path)
    else:
        for name in kind.needed if isinstance(kind, Needs) else ():
            if name not in value:
                raise UsageError(f"`{path}` lacks `{name}`. Put back the file that the run wrote.")
        for name in (name for name in kind if name in value):
            if value[name] is not None or isinstance(kind[name], tuple) or name in getattr(kind, "needed", ()):
                _check_entry(name, value[name], kind[name], path)


def _check_entry(name: str, value: Any, kind: Any, path: str) -> None:
    if value is not None or name not in NULLABLE:
        _check(value, kind, f"{path}.{name}")


def _wrong(path: str, rule: str, value: Any) -> UsageError:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return UsageError(f"`{path}` must be {rule}, but it is {shown}. Put back the file that the run wrote.")
