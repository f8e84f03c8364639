"""The results file: what a record holds, that a failed write loses nothing, and that errors name the key."""

from __future__ import annotations

import copy
import json
import math
import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.core import (
    SHAPE_NAMES,
    FailedError,
    check_results,
    collect_versions,
    model_record,
    read_results,
    write_results,
)

SOURCE = dict(zip(SHAPE_NAMES, (64, 5, 8, 4, 172), strict=True), head_dim=8)
TARGET = dict(zip(SHAPE_NAMES, (48, 4, 4, 2, 86), strict=True), head_dim=8)


def complete_results():
    def record(shape, parameters, code, prose):
        return model_record(shape, parameters, {"code": code, "prose": prose}, 8192)

    target = {name: TARGET[name] for name in SHAPE_NAMES}
    return {
        "source": record(SOURCE, 1000, 1.5, 2.5),
        "pruned": record(TARGET, 400, 3.0, 4.0),
        "recovered": record(TARGET, 400, 2.0, 2.75),
        "target_shape": target,
        "masks": {
            "expected_shape": {name: size + 0.01 for name, size in target.items()},
            "kept_below_half": dict.fromkeys(SHAPE_NAMES, 0),
        },
        "tokens": {"mask_learning": 1000, "recovery": 3000, "evaluation": 8192},
        "seconds": dict.fromkeys(("mask_learning", "recovery", "evaluation", "export", "baselines", "total"), 1.5),
        "baselines": {"taylor": {**record(TARGET, 400, 2.0, 3.0), "tokens": 4000, "learning_rate": 1e-3}},
        "versions": {"python": "3.11.7"},
        "seed": 0,
    }


def changed(path, value):
    """Complete results with the value at a dotted path replaced, or removed if `value` is ...."""
    results = copy.deepcopy(complete_results())
    *parents, last = path.split(".")
    node = results
    for name in parents:
        node = node[name]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return results


def test_model_record_takes_the_unweighted_mean():
    record = model_record(SOURCE, 1000, {"a": 1.0, "b": 2.0, "c": 6.0}, 10)
    assert record == {
        "shape": SOURCE,
        "num_parameters": 1000,
        "loss": {"a": 1.0, "b": 2.0, "c": 6.0},
        "mean": 3.0,
        "eval_tokens": 10,
    }


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.floats(0, 20), min_size=1, max_size=12))
def test_every_record_of_finite_losses_passes_its_own_check(losses):
    record = model_record(SOURCE, 1, losses, 1)
    low, high = min(losses.values()), max(losses.values())
    assert low - 1e-9 <= record["mean"] <= high + 1e-9
    results = complete_results()
    for name in ("source", "pruned", "recovered"):
        results[name] = {**record, "shape": results[name]["shape"]}
    results["baselines"] = {}
    check_results(results)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (
            ({**SOURCE, "hidden_size": 0}, 1, {"a": 1.0}, 1),
            "`shape.hidden_size` must be an integer of at least 1",
        ),
        (({k: v for k, v in SOURCE.items() if k != "head_dim"}, 1, {"a": 1.0}, 1), "`shape.head_dim`"),
        ((SOURCE, 1.5, {"a": 1.0}, 1), "`num_parameters` must be an integer"),
        ((SOURCE, True, {"a": 1.0}, 1), "`num_parameters` must be an integer"),
        ((SOURCE, 1, {"a": math.nan}, 1), "`loss.a` must be a finite number"),
        ((SOURCE, 1, {"a": -0.5}, 1), "`loss.a` must be a finite number of at least 0"),
        ((SOURCE, 1, {}, 1), "`loss` must name at least one domain"),
        ((SOURCE, 1, {"a": 1.0}, 0), "`eval_tokens` must be an integer of at least 1"),
    ],
)
def test_model_record_refuses_and_names_the_key(arguments, key):
    with pytest.raises(ValueError) as error:
        model_record(*arguments)
    assert key in str(error.value)


def test_what_is_written_is_read_back(tmp_path):
    results = {**complete_results(), "history": [{"num_tokens": 1}], "note": None}
    path = write_results(tmp_path / "run" / "results.json", results)
    assert read_results(path) == results
    check_results(read_results(path))
    assert os.listdir(path.parent) == ["results.json"]
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": {"b": [1.0, math.nan]}}, "`a.b[1]` must be finite, but it is nan"),
        ({"a": -math.inf}, "`a` must be finite, but it is -inf"),
        ({"a": {3: 1}}, "`a` has the key 3"),
        ({"a": {1, 2}}, "`a` must be a plain number, string, list or dict, but it is a set"),
    ],
)
def test_a_refused_write_keeps_the_previous_file(tmp_path, value, text):
    path = write_results(tmp_path / "results.json", {"seed": 1})
    with pytest.raises(ValueError) as error:
        write_results(path, value)
    assert text in str(error.value)
    assert read_results(path) == {"seed": 1}
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_previous_file(tmp_path, monkeypatch, step):
    path = write_results(tmp_path / "results.json", {"seed": 1})

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(FailedError, match="could not be written: No space left"):
            write_results(path, {"seed": 2})
    assert read_results(path) == {"seed": 1}
    assert os.listdir(tmp_path) == ["results.json"]
    write_results(path, {"seed": 2})
    assert read_results(path) == {"seed": 2}


def test_the_disk_has_the_text_before_it_replaces_the_file(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def synchronise(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def swap(temporary, path):
        calls.append(("replace", os.path.dirname(temporary) == os.path.dirname(path)))
        replace(temporary, path)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(os, "replace", swap)
    path = write_results(tmp_path / "results.json", {"seed": 1})
    assert calls == [("fsync", path.stat().st_size), ("replace", True)]


def test_reading_says_what_is_wrong(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="There is no results file at .*results.json"):
        read_results(path)
    for text, message in (
        ('{"seed": ', "is not valid JSON: .*line 1"),
        ('{"seed": NaN}', "is not valid JSON: it holds NaN"),
        ("[1]", "must hold one JSON object, but it holds a list"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_results(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_results(path)


def test_complete_results_pass():
    check_results(complete_results())
    check_results({**complete_results(), "baselines": {}, "arguments": {"anything": []}})
    check_results(json.loads(json.dumps(complete_results())))


def leaves(node, path=""):
    for name, value in node.items():
        dotted = f"{path}.{name}" if path else name
        yield dotted
        if isinstance(value, dict):
            yield from leaves(value, dotted)


# Every key of the contract; the names of domains, baselines and packages are the user's own.
FREE = ("source.loss.", "pruned.loss.", "recovered.loss.", "baselines.taylor.loss.", "versions.")
REQUIRED = [p for p in leaves(complete_results()) if not p.startswith(FREE) and p != "baselines.taylor"]


@pytest.mark.parametrize("path", REQUIRED)
def test_every_key_of_the_contract_is_required(path):
    with pytest.raises(ValueError) as error:
        check_results(changed(path, ...))
    assert str(error.value) == f"The results lack the key `{path}`."


@pytest.mark.parametrize("path", REQUIRED)
def test_every_value_of_the_contract_is_checked(path):
    with pytest.raises(ValueError) as error:
        check_results(changed(path, "wrong"))
    assert f"`{path}` must be" in str(error.value) and "but it is 'wrong'" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("recovered.mean", 2.4, "`recovered.mean` must be the unweighted mean over the domains (2.375000)"),
        (
            "pruned.shape.hidden_size",
            49,
            "`pruned.shape.hidden_size` must be the target's (48), but it is 49",
        ),
        (
            "recovered.shape.num_key_value_heads",
            4,
            "`recovered.shape.num_key_value_heads` must be the target's",
        ),
        ("masks.kept_below_half.hidden_size", 0.5, "`masks.kept_below_half.hidden_size` must be an integer"),
        ("masks.expected_shape.hidden_size", math.inf, "`masks.expected_shape.hidden_size` must be a finite"),
        ("tokens.recovery", -1, "`tokens.recovery` must be an integer of at least 0"),
        ("seconds.export", math.nan, "`seconds.export` must be a finite number"),
        ("baselines.taylor.learning_rate", 0.0, "`baselines.taylor.learning_rate` must be greater than 0"),
        ("versions.python", 3.11, "`versions.python` must be a string"),
        ("source.loss", {}, "`source.loss` must name at least one domain"),
        (
            "baselines.taylor.loss",
            {"code": 2.5},
            "`baselines.taylor.loss` must name the domains of `source.loss`",
        ),
    ],
)
def test_contradictions_are_named(path, value, text):
    with pytest.raises(ValueError) as error:
        check_results(changed(path, value))
    assert text in str(error.value)


def test_versions_are_those_that_are_installed():
    versions = collect_versions()
    assert versions["numpy"] == np.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "accelerate", "datasets", "tokenizers"} <= set(versions)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    from hf_shear.core import results

    monkeypatch.setattr(results, "VERSIONED_PACKAGES", ("numpy", "a_package_that_nobody_has"))
    assert set(collect_versions()) == {"python", "numpy"}
