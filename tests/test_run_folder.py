"""A run's folder: nothing is overwritten by accident, finished stages are not run again, half a checkpoint is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_shear import ShearTrainingArguments
from hf_shear.core import UsageError
from hf_shear.core.run_lock import LOCK_NAME
from hf_shear.runs import RunFolder, run_settings
from hf_shear.shapes import ModelShape
from hf_shear.training.checkpoints import STATE_NAME, note_files

SETTINGS = {"seed": 1, "target_shape": {"hidden_size": 12}, "data_dir": None}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != LOCK_NAME)


def test_without_a_name_folders_are_numbered():
    assert [RunFolder(None).path for _ in range(2)] == [Path("runs/001"), Path("runs/002")]
    Path("runs/041").mkdir()
    Path("runs/9_notes").mkdir()
    Path("runs/best").mkdir()
    assert RunFolder(None).path == Path("runs/042")


def test_a_new_folder_and_an_empty_one_are_taken():
    assert RunFolder("new/deep", settings=SETTINGS).path == Path("new/deep")
    Path("empty").mkdir()
    assert tree(RunFolder("empty").path) == ["stages.json"]


def test_a_folder_with_a_run_is_refused_and_left_alone():
    folder = RunFolder("run", settings=SETTINGS)
    folder.stage("mask_learning", lambda: {"loss": 1.0})
    (folder.path / "results.json").write_text("{}")
    before = {name: (folder.path / name).read_text() for name in tree(folder.path)}
    with pytest.raises(ValueError, match="`--output_dir` 'run' already holds a run. Choose another folder, continue it "
                       "with `--resume`, or delete it with `--overwrite`"):  # fmt: skip
        RunFolder("run", settings=SETTINGS)
    assert {name: (folder.path / name).read_text() for name in tree(folder.path)} == before


def test_a_run_that_did_not_begin_does_not_block_its_folder():
    RunFolder("run", settings=SETTINGS)
    other = RunFolder("run", settings=SETTINGS | {"seed": 2})
    assert json.loads(Path("run/stages.json").read_text())["settings"]["seed"] == 2
    other.stage("source", lambda: {"loss": 1.0})  # judged, and refused only then
    third = RunFolder("run", settings=SETTINGS)
    assert list(json.loads(Path("run/stages.json").read_text())) == ["settings"] and third.records.get("source") is None
    (other.path / "mask_learning").mkdir()  # training had begun
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder("run", settings=SETTINGS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_no_run_wrote_is_never_touched(overwrite):
    Path("photos").mkdir()
    Path("photos/holiday.png").write_text("x")
    with pytest.raises(ValueError, match="'photos' is not empty, and what it holds was not written by a run. Choose"):
        RunFolder("photos", overwrite=overwrite)
    assert tree(Path("photos")) == ["holiday.png"]


def test_overwriting_deletes_the_run_when_the_first_stage_of_the_new_one_is_done():
    folder = RunFolder("run", settings=SETTINGS)
    folder.stage("source", lambda: {"loss": 1.0})
    (folder.path / "pruned").mkdir()
    before = json.loads(Path("run/stages.json").read_text())
    again = RunFolder("run", False, True, SETTINGS | {"seed": 2})
    assert again.records.get("source") is None
    with pytest.raises(KeyError):  # such as data that can not be read
        again.stage("source", lambda: {}["nothing"])
    assert tree(again.path) == ["pruned", "stages.json"]
    assert json.loads(Path("run/stages.json").read_text()) == before
    again.stage("source", lambda: {"loss": 2.0})
    assert tree(again.path) == ["stages.json"]
    assert RunFolder("run", resume=True, settings=SETTINGS | {"seed": 2}).records["source"]["loss"] == 2.0
    assert RunFolder("fresh", overwrite=True).path.is_dir()


def test_a_file_is_no_folder():
    Path("notes.txt").write_text("x")
    with pytest.raises(ValueError, match="`--output_dir` 'notes.txt' is a file. Choose another name"):
        RunFolder("notes.txt", overwrite=True)
    assert Path("notes.txt").read_text() == "x"


@dataclass
class Arguments:
    mask_tokens: int = 5
    recovery_tokens: int = 7
    hidden_size: int | None = 12
    data_dir: str = "text"
    resume: bool = False


def test_settings_are_what_decides_the_run():
    target = ModelShape(12, 2, 2, 2, 16, head_dim=4)
    settings = run_settings(Arguments(resume=True), target, ShearTrainingArguments("unused", seed=3, use_cpu=True))
    assert settings["target_shape"] == target.to_dict()
    assert (settings["seed"], settings["mask_tokens"], settings["weight_decay"]) == (3, 5, 0.0)
    assert not {"hidden_size", "data_dir", "resume", "output_dir", "learning_rate", "recovery_tokens"} & set(settings)
    assert settings["may_change"]["learning_rate"] == 5e-5
    assert settings["may_change_until"]["recovery"] == {
        "recovery_tokens": 7, "recovery_method": "full", "lr_scheduler_type": "linear",
    }  # fmt: skip


def test_what_recovery_alone_reads_may_be_chosen_until_it_begins(capsys):
    def settings(tokens: int, rate: float) -> dict:
        return SETTINGS | {"may_change": {"rate": rate}, "may_change_until": {"recovery": {"tokens": tokens}}}

    folder = RunFolder("run", settings=settings(5, 0.1))
    folder.stage("mask_learning", lambda: {"loss": 1.0})
    assert capsys.readouterr().out == ""
    again = RunFolder("run", resume=True, settings=settings(6, 0.2))
    assert "rate was 0.1 and is now 0.2, tokens was 5 and is now 6." in capsys.readouterr().out
    (again.path / "recovery").mkdir()  # by its first checkpoint
    again.require({})
    with pytest.raises(UsageError, match="with other arguments: tokens was 6 and is now 5. Give the same"):
        RunFolder("run", resume=True, settings=settings(5, 0.2))
    assert RunFolder("run", resume=True, settings=settings(6, 0.3))


def test_what_is_found_out_later_is_compared_too():
    folder = RunFolder("run", settings=SETTINGS)
    folder.require({"the text of domain 'a'": "sha256:1"})
    folder.stage("mask_learning", lambda: {"loss": 1.0})
    RunFolder("run", resume=True, settings=SETTINGS).require({"the text of domain 'a'": "sha256:1"})
    with pytest.raises(UsageError, match="with other arguments: the text of domain 'a' has changed. Give the same"):
        RunFolder("run", resume=True, settings=SETTINGS).require({"the text of domain 'a'": "sha256:2"})
    RunFolder("run", resume=True, settings=SETTINGS).require({"the text of domain 'a'": "sha256:1"})


@pytest.mark.parametrize(
    "content", ["", '{"settings": {"seed": 1}, "mask', "[]", '{"source": NaN}', '{"source": {}, "recovery": {}}']
)
def test_a_damaged_record_is_one_line_with_the_last_whole_checkpoint(content):
    whole_checkpoint(RunFolder("run", settings=SETTINGS).path / "mask_learning" / "checkpoint-5")
    Path("run/stages.json").write_text(content)
    with pytest.raises(UsageError, match="'run/stages.json' .*whole checkpoint in it is 'run/mask_learning/ch"):
        RunFolder("run", resume=True, settings=SETTINGS)
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder("run", settings=SETTINGS)


def whole_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (STATE_NAME, "trainer_state.json"):
        (folder / name).write_text("{}")
    note_files(folder)


def test_requests_that_contradict_each_other():
    with pytest.raises(ValueError, match="`--resume` and `--overwrite` contradict each other; give one of them"):
        RunFolder("run", resume=True, overwrite=True)
    with pytest.raises(ValueError, match="`--resume` needs `--output_dir`: the folder of the run to continue"):
        RunFolder(None, resume=True)
    with pytest.raises(ValueError, match="`--resume`: `--output_dir` 'run' holds no run. Leave `--resume` out"):
        RunFolder("run", resume=True)
    assert tree(Path()) == []


def test_a_stage_runs_once_over_all_processes_of_a_run():
    calls = []

    def run() -> dict:
        calls.append(1)
        return {"loss": 0.1 + 0.2, "names": ["a"]}

    folder = RunFolder("run", settings=SETTINGS)
    first = folder.stage("source", run)
    assert folder.stage("source", run) == first
    resumed = RunFolder("run", resume=True, settings=SETTINGS)
    assert resumed.stage("source", run) == first == resumed.records.get("source")
    assert calls == [1]
    assert first["loss"] == 0.1 + 0.2
    assert first["stage_seconds"] >= 0
    assert resumed.records.get("recovery") is None


def test_a_failed_stage_is_not_finished():
    folder = RunFolder("run", settings=SETTINGS)
    with pytest.raises(KeyError):
        folder.stage("source", lambda: {}["nothing"])
    assert folder.records.get("source") is None
    assert RunFolder("run", resume=True, settings=SETTINGS).stage("source", lambda: {"a": 1})["a"] == 1


def test_a_record_that_is_not_a_number_loses_nothing():
    folder = RunFolder("run", settings=SETTINGS)
    folder.stage("source", lambda: {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.stage("recovery", lambda: {"loss": float("nan")})
    stages = json.loads((folder.path / "stages.json").read_text())
    assert list(stages) == ["settings", "source"]


def test_resuming_with_other_settings_is_refused():
    RunFolder("run", settings=SETTINGS)
    other = SETTINGS | {"seed": 2, "target_shape": {"hidden_size": 8}}
    with pytest.raises(ValueError) as caught:
        RunFolder("run", resume=True, settings=other)
    text = str(caught.value)
    assert text.startswith("The run in 'run' can not go on with other arguments: ")
    assert "seed was 1 and is now 2" in text
    assert "target_shape was {'hidden_size': 12} and is now {'hidden_size': 8}" in text
    assert "data_dir" not in text
    assert "Give the same ones" in text
    assert json.loads(Path("run/stages.json").read_text())["settings"] == SETTINGS
    assert RunFolder("run", resume=True, settings=SETTINGS | {"data_dir": None})


def test_the_last_whole_checkpoint_and_no_half_one(capsys):
    folder = RunFolder("run")
    assert folder.last_checkpoint("mask_learning") is None
    stage = folder.path / "mask_learning"
    whole_checkpoint(stage / "checkpoint-5")
    whole_checkpoint(stage / "checkpoint-40")
    (stage / "checkpoint-40" / "trainer_state.json").unlink()
    (stage / "checkpoint-100").mkdir()
    (stage / "runs").mkdir()
    assert folder.last_checkpoint("mask_learning") == str(stage / "checkpoint-5")
    assert "checkpoint-40 was not written to its end" in capsys.readouterr().out
    whole_checkpoint(stage / "checkpoint-30")
    assert folder.last_checkpoint("mask_learning") == str(stage / "checkpoint-30")


def test_a_checkpoint_without_our_state_is_neither_used_nor_deleted():
    checkpoint = RunFolder("run").path / "recovery" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="checkpoint-3' was written with `save_only_model`, so training cannot go on"):
        RunFolder("run", resume=True).last_checkpoint("recovery")
    assert checkpoint.is_dir()


def test_seconds_are_those_of_all_processes(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("hf_shear.runs.run_folder.time.perf_counter", lambda: clock[0])

    def take(seconds: float):
        def run() -> dict:
            clock[0] += seconds
            return {}

        return run

    folder = RunFolder("run")
    folder.stage("source", take(5.0))
    assert folder.records["source"]["stage_seconds"] == 5.0
    clock[0] += 2.0  # outside of stages
    assert folder.total_seconds(process_started=100.0) == pytest.approx(7.0)
    clock[0] = 1000.0  # another process, later
    resumed = RunFolder("run", resume=True)
    resumed.stage("source", take(50.0))
    resumed.stage("recovery", take(10.0))
    assert resumed.total_seconds(process_started=999.0) == pytest.approx(5.0 + 10.0 + 1.0)


def test_open_is_the_constructor_in_one_process():
    folder = RunFolder("run", False, False, SETTINGS)
    assert folder.path == Path("run")
    folder.stage("source", lambda: {"loss": 1.0})
    assert RunFolder("run", True, False, SETTINGS).records["source"]["loss"] == 1.0
    folder.stage("mask_learning", lambda: {"loss": 1.0})
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder("run", False, False, SETTINGS)
