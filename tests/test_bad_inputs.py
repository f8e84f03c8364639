"""Bad inputs are refused before any work, in one line with argument, value, rule and fix, and exit code 2."""

from __future__ import annotations

import json

import bad_arguments
import bad_calls
import bad_files
import datasets
import numpy as np
import pytest
from bad_inputs import Inputs, Row, outcome, snapshot
from publishing_helpers import make_run
from scaling_law_helpers import draw_runs, write_runs_csv
from training_helpers import TARGET, letter_tokenizer, masked_model, plain_model, random_documents

from hf_shear.scaling_law import LawFit
from hf_shear.scaling_law.forms import P2
from hf_shear.slicing import provenance_record, save_checkpoint, slice_model

ROWS = bad_arguments.ROWS + bad_files.ROWS + bad_calls.ROWS
SIZES = " ".join(f"--{name} {size}" for name, size in TARGET.items())
DATA = "--data_dir {text} --max_length 16 --eval_tokens 64 --held_out_fraction 0.3"
TRAINING = f"{DATA} --use_cpu true --per_device_train_batch_size 4 --calibration_batches 2 --report_to none"
TRAINING += " --output_dir {out}"
TEXTS = {
    "train": f"{TRAINING} {SIZES} --mask_tokens 384 --recovery_tokens 384",
    "again": f"{TRAINING} --pruned {{small}} --recovery_tokens 384",
    "turns": f"{TRAINING} {SIZES} --num_tokens 768 --num_stages 2",
    "cut": f"{DATA} {SIZES} --calibration_batches 2 --batch_size 2 --output_dir {{out}}",
    "judge": "--data_dir {text} --held_out_fraction 0.3 --speed false",
    "ask": "--num_parameters 1e9 --source_loss 2.5",
}
"""Flags that make a command line right."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Everything that rows name, tiny; nothing in it may change."""
    folder = tmp_path_factory.mktemp("inputs")
    source, masked = plain_model(attention_dropout=0.0), masked_model(attention_dropout=0.0)
    tokenizer = letter_tokenizer()
    save_checkpoint(source, folder / "model", tokenizer)
    masked.save_pretrained(folder / "masked")
    tokenizer.save_pretrained(folder / "masked")
    small, kept = slice_model(masked.eval())
    save_checkpoint(small, folder / "small", tokenizer, provenance_record(masked, kept))
    make_run(folder / "run")
    results = json.loads((folder / "run" / "results.json").read_text())
    for number, row in enumerate(results["history"]):  # as far as plan reads it
        row |= {"num_tokens": 20480 * (number + 1), "loss": results["recovered"]["loss"]}
    (folder / "run" / "results.json").write_text(json.dumps(results))
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir(parents=True)
        (folder / "text" / name / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(number, 60)))
    write_runs_csv(folder / "runs.csv", draw_runs(num_checkpoints=6))
    fitted = {"num_parameters": (1e8, 3e9), "fraction_removed": (0.1, 0.4), "tokens": (1e7, 1e9)}
    theta = np.linspace(0.1, 0.7, len(P2.constants))
    LawFit(P2, theta, np.array([theta, theta + 0.01]), fitted, False, None).save(folder / "law.json")
    (folder / "states").mkdir()
    log = [{"eval_loss": 3.0 - 0.1 * step, "num_tokens": step * 10**6} for step in range(1, 5)]
    (folder / "states" / "state.json").write_text(json.dumps({"log_history": log}))
    listed = {"path": "state.json", "num_parameters": 1e9, "fraction_removed": 0.2, "source_loss": 2.0}
    (folder / "states" / "runs.json").write_text(json.dumps([listed]))
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "stages.json").write_text(json.dumps({"settings": {}, "source": {}}))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"})
    )
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file")
    (folder / "args.yaml").write_text("seed: 7\n")
    names = {
        name: name
        for name in ("model", "masked", "small", "run", "text", "states", "unfinished", "adapter", "empty", "file")
    }
    names |= {"law": "runs.csv", "fit": "law.json", "list": "states/runs.json", "yaml": "args.yaml"}
    things = {"source": source, "masks": masked, "tokenizer": tokenizer, "config": source.config}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder.parent / "cache"))
        datasets.disable_progress_bars()  # as hf-shear does where nobody watches, if it comes before the import
        before = snapshot(folder)
        yield Inputs({name: folder / place for name, place in names.items()}, TEXTS, things)
        assert snapshot(folder) == before
        datasets.enable_progress_bars()


def test_there_are_rows_of_everything():
    assert len(ROWS) >= 300


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_is_refused_before_any_work_in_one_line(row: Row, inputs, tmp_path):
    result = outcome(row, inputs, tmp_path / "row")
    assert not result.verdict, f"{result.verdict}\n{result.said}"
