"""What a run leaves to look at: records, results, pictures, a table."""

from __future__ import annotations

import json

import pytest
from training_helpers import DOMAINS, LENGTH, TARGET, held_out_domains, make_args, masked_model, plain_model

from hf_shear import ShearTrainingArguments, TargetShape, slice_model
from hf_shear.core import SAMPLE_LOSSES_NAME, check_results, read_results
from hf_shear.data import samples_digest
from hf_shear.runs import RESULTS_NAME, judge
from hf_shear.runs.report import run_results, write_report
from hf_shear.shapes import count_parameters
from hf_shear.training import evaluate_domains


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Records of a run with one baseline, of models that were never trained."""
    args = make_args(tmp_path_factory.mktemp("args"))
    source = plain_model()
    sliced, kept = slice_model(masked_model())
    judged = held_out_domains()

    def row(stage: str, num_tokens: int) -> dict:
        weights = {"books": 0.5, "code": 0.25, "wiki": 0.25}
        losses = dict.fromkeys(DOMAINS, 3.0)
        return {"num_tokens": num_tokens, "stage": stage, "loss": losses, "mixture_weights": weights, "eval_tokens": 30,
                "eval_seconds": 0.5, "reference_loss": losses}  # fmt: skip

    sizes = {name: float(size) for name, size in TARGET.items()}
    shapes = {"expected_shape": sizes, "target_shape": sizes}
    learned = {
        "model": judge(sliced, judged, args),
        "tokens": 1000,
        "seconds": 5.0,
        "export_seconds": 1.0,
        "calibration_tokens": 64,
        "flops": 3e9,
        "reference_tokens": 90,
        "masks": {
            "expected_shape": sizes,
            "kept_below_half": dict.fromkeys(TARGET, 0),
            "gap": dict.fromkeys(TARGET, 0.0),
        },
        "kept": kept.to_dict(),
        "passes": dict.fromkeys(DOMAINS, 0.5),
        "history": [row("mask_learning", 500) | shapes, row("mask_learning", 1000) | shapes],
    }
    trained = {"tokens": 4000, "seconds": 7.0, "passes": dict.fromkeys(DOMAINS, 1.0), "learning_rate": 1e-3, "flops": 5e9,
               "model": judge(sliced, judged, args), "history": [row("recovery", 4000)]}  # fmt: skip
    baseline = trained | {"tokens": 5000, "learning_rate": 2e-3, "history": [row("taylor", 5000)]}
    target = TargetShape.from_source(source.config, **TARGET)
    return judge(source, judged, args), learned, trained, {"taylor": baseline}, target


@pytest.fixture(scope="module")
def results(stages):
    results = run_results(*stages, ShearTrainingArguments("unused", seed=3, report_to="none", use_cpu=True), ["a", "b"])
    results["seconds"]["total"] = 100.0
    return results


def test_a_models_record(tmp_path):
    model, judged = plain_model(), held_out_domains()
    record = judge(model, judged, make_args(tmp_path))
    losses, num_tokens = evaluate_domains(model, judged, 8)
    assert record["loss"] == losses
    assert record["mean"] == pytest.approx(sum(losses.values()) / 3)
    assert record["eval_tokens"] == num_tokens == 3 * 4 * (LENGTH - 1)
    assert record["num_parameters"] == count_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert record["shape"] == {"hidden_size": 18, "num_hidden_layers": 3, "num_attention_heads": 6,
                               "num_key_value_heads": 3, "intermediate_size": 24, "head_dim": 4}  # fmt: skip
    assert record["seconds"] > 0


def test_results_keep_the_contract_and_add_up(stages, results):
    source, learned, trained, baselines, _ = stages
    check_results(results)
    assert results["target_shape"].items() >= TARGET.items()
    assert results["tokens"] == {
        "mask_learning": 1000,
        "recovery": 4000,
        "evaluation": 4 * 30 + 4 * 3 * 4 * (LENGTH - 1) + 90,  # 4 in training, 4 models judged, references
        "calibration": 64,
    }
    seconds = results["seconds"]
    assert (seconds["mask_learning"], seconds["export"], seconds["recovery"], seconds["baselines"]) == (5, 1, 7, 7)
    judged = [source, learned["model"], trained["model"], baselines["taylor"]["model"]]
    assert seconds["evaluation"] == pytest.approx(4 * 0.5 + sum(record["seconds"] for record in judged))
    assert (results["baselines"]["taylor"]["tokens"], results["baselines"]["taylor"]["learning_rate"]) == (5000, 2e-3)
    assert results["recovered"]["learning_rate"] == 1e-3
    assert (results["recovered"]["flops"], results["baselines"]["taylor"]["flops"]) == (8e9, 5e9)
    assert results["seed"] == 3
    assert {"torch", "transformers", "python"} <= set(results["versions"])


def test_recovery_goes_on_counting_where_mask_learning_stopped(results):
    assert [(row["stage"], row["num_tokens"]) for row in results["history"]] == [
        ("mask_learning", 500), ("mask_learning", 1000), ("recovery", 5000)]  # fmt: skip
    assert [row["num_tokens"] for row in results["baseline_history"]["taylor"]] == [5000]


def test_the_report_holds_results_pictures_and_the_table(results, tmp_path):
    table = write_report(tmp_path, results)
    assert {path.name for path in tmp_path.iterdir()} == {
        RESULTS_NAME, "kept_units.png", "domains.png", "sizes.png", "table.txt", "report.html"}  # fmt: skip
    assert read_results(tmp_path / RESULTS_NAME) == json.loads(json.dumps(results))
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == table + "\n"
    for name in ("books", "code", "wiki", "taylor"):
        assert name in table.lower()


def test_without_a_history_there_is_nothing_to_draw_over_time(results, tmp_path):
    write_report(tmp_path, results | {"history": [], "sizes": []})
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS_NAME, "kept_units.png", "table.txt", "report.html"}


def test_losses_of_single_samples_lie_beside_the_results(results, tmp_path):
    model, judged, args = plain_model(), held_out_domains(), make_args(tmp_path / "args")
    source = judge(model, judged, args, with_samples=True)
    write_report(tmp_path / "run", results | {"source": source})
    samples = json.loads((tmp_path / "run" / SAMPLE_LOSSES_NAME).read_text(encoding="utf-8"))
    assert set(samples["models"]) == {"source"}  # the others here have none, as those of another version
    for name in DOMAINS:
        tokens, nats = samples["num_tokens"][name], samples["models"]["source"][name]
        assert sum(nats) / sum(tokens) == pytest.approx(source["loss"][name], abs=1e-5)
        assert samples["digest"][name] == samples_digest(judged[name])
    assert "samples" not in read_results(tmp_path / "run" / RESULTS_NAME)["source"]


def test_results_that_break_the_contract_are_not_written(results, tmp_path):
    seconds = {name: value for name, value in results["seconds"].items() if name != "total"}
    with pytest.raises(ValueError, match="The results lack the key `seconds.total`"):
        write_report(tmp_path, results | {"seconds": seconds})
    assert list(tmp_path.iterdir()) == []
