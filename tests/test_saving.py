"""What cannot be saved is known before the first step, and what is saved reads back, in older readers too."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_helpers import full_disk, letter_tokenizer, make_args, make_trainer, masked_model, plain_model, trained
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_shear import slice_model
from hf_shear.cli.main import main
from hf_shear.core import FailedError, UsageError
from hf_shear.core.results import write_file_atomically
from hf_shear.slicing import check_saves, preflight, save_checkpoint, whole_folders
from hf_shear.sources import open_source, read_generation_config, savable_generation_config
from hf_shear.training import checkpoint_bytes, checkpoints_kept

MODEL = Path(__file__).resolve().parent.parent / "examples" / "embedded" / "model"
OLD = {"temperature": 0.9, "top_p": 0.6}


def fields_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the small model, to be changed."""
    return Path(shutil.copytree(MODEL, tmp_path / "source"))


# ---- generation_config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, kept",
    [
        (OLD, OLD | {"do_sample": True}),
        (OLD | {"do_sample": True}, OLD | {"do_sample": True}),
        (OLD | {"do_sample": False}, {"do_sample": False}),
        ({"temperature": 0.0, "top_k": 1}, {}),
        (
            {"top_k": 50, "temperature": 1.0, "max_new_tokens": 7},
            {"top_k": 50, "temperature": 1.0, "max_new_tokens": 7},
        ),
        ({"early_stopping": True, "length_penalty": 2.0}, {}),
        ({"num_beams": 4, "length_penalty": 2.0}, {"num_beams": 4, "length_penalty": 2.0}),
        ({"output_scores": True, "eos_token_id": [2, 3]}, {"eos_token_id": [2, 3]}),
        ({"pad_token_id": -1}, {}),
    ],
)
def test_settings_of_generation_are_saved_in_a_valid_form(tmp_path, given, kept):
    config = savable_generation_config(GenerationConfig(**given))
    config.bos_token_id = 5  # changed since it was loaded, as by training
    config.save_pretrained(tmp_path)
    assert fields_of(tmp_path / "generation_config.json").items() >= (kept | {"bos_token_id": 5}).items()
    assert set(fields_of(tmp_path / "generation_config.json")) - {"transformers_version"} == {*kept, "bos_token_id"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "generation_config.json' is not valid JSON"),
        ("[1]", "generation_config.json' must hold a JSON object, but it holds a list"),
        ('{"temperature": "hot"}', "`temperature` in .* must be a number, but it is 'hot'"),
        ('{"temperature": NaN}', "`temperature` in .* must be a number, but it is nan"),
        ('{"top_k": 0.5}', "`top_k` in .* must be a whole number, but it is 0.5"),
        ('{"do_sample": "yes"}', "`do_sample` in .* must be true or false, but it is 'yes'"),
        ('{"eos_token_id": "</s>"}', "`eos_token_id` in .* must be a token id, or a list of them, but it is '</s>'"),
        ('{"max_new_tokens": -1}', "refused by transformers: .*`max_new_tokens` must be greater than 0, but is -1"),
        ('{"num_return_sequences": 2}', "refused by transformers: .*`num_return_sequences`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_generation_config(tmp_path)


def test_whatever_loads_a_source_refuses_such_settings(source):
    (source / "generation_config.json").write_text("[1]")  # transformers ends with a bare TypeError
    with pytest.raises(UsageError, match="must hold a JSON object"):
        open_source("teacher_name_or_path", source)


def test_a_checkpoint_without_settings_has_none(tmp_path):
    assert read_generation_config(tmp_path) is None


def test_models_that_are_cut_or_trained_have_settings_that_can_be_saved(tmp_path):
    model = masked_model("relaxed_topk")
    model.generation_config = GenerationConfig(**OLD)
    assert slice_model(model)[0].generation_config.do_sample is True
    assert model.generation_config.do_sample is None  # left as it is
    plain = plain_model()
    plain.generation_config = GenerationConfig(**OLD)
    save_checkpoint(plain, tmp_path / "out")
    assert plain.generation_config.do_sample is None
    assert fields_of(tmp_path / "out" / "generation_config.json")["do_sample"] is True
    # With a tokenizer the Trainer writes token ids into the settings, which transformers then checks strictly.
    args = make_args(tmp_path / "run", save_strategy="steps", save_steps=8)
    make_trainer(plain, args, processing_class=letter_tokenizer()).train()
    assert fields_of(tmp_path / "run" / "checkpoint-8" / "generation_config.json")["temperature"] == 0.9


# ---- before any work --------------------------------------------------------------------------------------------


def test_a_trial_leaves_nothing_behind(tmp_path, source):
    config, tokenizer = plain_model().config, letter_tokenizer()
    check_saves(tmp_path / "a" / "out", config, tokenizer, GenerationConfig(**OLD))
    assert list(tmp_path.iterdir()) == [source]


class Unsavable(PreTrainedTokenizerFast):
    def save_pretrained(self, folder, **kwargs):
        raise NotImplementedError("no vocabulary file")


class Forgetful(PreTrainedTokenizerFast):
    def save_pretrained(self, folder, **kwargs):
        PreTrainedTokenizerFast.from_pretrained(MODEL).save_pretrained(folder)


@pytest.mark.parametrize("kind, message", [(Unsavable, "Unsavable.* cannot be saved: .*no vocabulary file"),
                                           (Forgetful, "Forgetful.* is another one once it is saved")])  # fmt: skip
def test_a_tokenizer_that_does_not_save_is_refused(tmp_path, kind, message):
    tokenizer = kind(tokenizer_object=letter_tokenizer()._tokenizer)
    with pytest.raises(UsageError, match=message):
        check_saves(tmp_path / "out", plain_model().config, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for output_dir, message in (
        (tmp_path / "file" / "out", "file' is a file"),
        (tmp_path / "link" / "out", "is a link to nothing"),
        (Path("/proc/out"), "cannot be written to"),
    ):
        with pytest.raises(UsageError, match=f"`output_dir` '{output_dir}' .*{message}"):
            check_saves(output_dir)

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    with pytest.raises(UsageError, match="Read-only file system"):
        check_saves(tmp_path / "out")


@pytest.mark.parametrize("writer", ["save_file", "save_tokenizer", "add_older_config_fields"])
def test_a_full_disk_is_refused(tmp_path, monkeypatch, writer):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(preflight, writer, full)
    with pytest.raises(UsageError, match="`output_dir` .* cannot be written to: No space left on device"):
        check_saves(tmp_path / "out", plain_model().config, letter_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_refused(tmp_path):
    with full_disk(10), pytest.raises(UsageError, match="`output_dir` .* cannot be written to: "):
        check_saves(tmp_path / "out", plain_model().config, letter_tokenizer())
    with full_disk(10), pytest.raises(FailedError, match="could not be written: .* Nothing of it is left."):
        save_checkpoint(plain_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_results_must_find_room_and_checkpoints_are_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    told = []
    monkeypatch.setattr(preflight.logger, "warning_once", told.append)
    check_saves(tmp_path / "out", result_bytes=1000)
    assert told == []
    check_saves(tmp_path / "out", result_bytes=900, checkpoint_bytes=101)
    assert len(told) == 1 and "`save_total_limit`" in told[0]
    with pytest.raises(UsageError, match="room for the results, 1,001 bytes, but 1,000 are free"):
        check_saves(tmp_path / "out", result_bytes=1001)


def test_checkpoints_are_counted_as_the_trainer_keeps_them(tmp_path):
    def kept(**changes) -> int:
        return checkpoints_kept(make_args(tmp_path, **({"save_strategy": "steps"} | changes)), 10)

    assert kept(save_strategy="no") == 0
    assert kept(save_steps=4) == 3  # at 4, 8 and 10
    assert kept(save_steps=0.5) == 2
    assert kept(save_steps=1, save_total_limit=2) == 3
    args = make_args(tmp_path)
    assert checkpoint_bytes(args, 100) == 100 * 12
    assert checkpoint_bytes(args, 100, 10) == 100 * 4 + 10 * 8
    run = trained(tmp_path, plain_model(), save_strategy="steps", save_steps=8)
    files = ("model.safetensors", "optimizer.pt")
    written = sum((tmp_path / "checkpoint-8" / name).stat().st_size for name in files)
    estimate = checkpoint_bytes(run.args, sum(parameter.numel() for parameter in run.model.parameters()))
    assert estimate <= written < estimate + 40_000  # of names and of a step per tensor


def test_a_trainer_refuses_before_its_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="`output_dir` .*file' is a file"):
        make_trainer(plain_model(), make_args(tmp_path / "file" / "out"))
    trainer = make_trainer(plain_model(), make_args(tmp_path / "out", save_strategy="steps", save_steps=4))
    trainer.processing_class = Unsavable(tokenizer_object=letter_tokenizer()._tokenizer)
    with pytest.raises(UsageError, match="cannot be saved"):
        trainer.train()
    assert trainer.records == []


TEXT = ["--data_dir", "no text is read", "--intermediate_size", "256", "--output_dir"]


@pytest.mark.parametrize("verb", ["learn", "prune", "interleave", "recover"])
def test_verbs_refuse_before_text_is_read(tmp_path, source, verb, capsys):
    words = {"interleave": ["--num_tokens", "1000"], "recover": ["--pruned", str(MODEL)]}.get(verb, [])
    text = [word for word in TEXT if verb != "recover" or word not in ("--intermediate_size", "256")]
    (tmp_path / "file").write_text("")
    assert main([verb, str(source), *words, *text, str(tmp_path / "file" / "out")]) == 2
    assert "file' is a file" in capsys.readouterr().err
    (source / "generation_config.json").write_text('{"temperature": "hot"}')
    assert main([verb, str(source), *words, *text, str(tmp_path / "out")]) == 2
    assert "`temperature` in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- whole or not at all ----------------------------------------------------------------------------------------


def write(text: str):
    def into(folder: Path) -> None:
        folder.mkdir()
        (folder / "text").write_text(text)

    return into


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask, others_read", [(0o022, True), (0o077, False)])
def test_weights_are_readable_for_whom_the_folder_is(tmp_path, mask, others_read):
    before = os.umask(mask)
    try:
        save_checkpoint(plain_model(), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == (0o644 if others_read else 0o600)


def test_a_process_that_dies_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole_folders.replace_folder(out, write("old"))
    renames = []

    def die(source, target):
        renames.append(target)
        if len(renames) == 2:
            raise SystemExit  # as SIGKILL: nothing after it runs
        return rename(source, target)

    rename = os.replace
    monkeypatch.setattr(whole_folders.os, "replace", die)
    monkeypatch.setattr(whole_folders.shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit):
        whole_folders.replace_folder(out, write("new"))
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"out.replaced", "out.unfinished"}

    def fails(folder: Path) -> None:
        raise OSError("no room")

    with pytest.raises(FailedError, match="could not be written: no room. What was there before is as it was"):
        whole_folders.replace_folder(out, fails)
    assert {path.name for path in tmp_path.iterdir()} == {"out"} and (out / "text").read_text() == "old"
    whole_folders.replace_folder(out, write("new"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"} and (out / "text").read_text() == "new"


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole_folders.replace_folder(out, write("old"))
    rename = os.replace

    def fails(source, target):
        if str(source).endswith(whole_folders.UNFINISHED):
            raise OSError("stale handle")
        return rename(source, target)

    monkeypatch.setattr(whole_folders.os, "replace", fails)
    with pytest.raises(FailedError, match="stale handle"):
        whole_folders.replace_folder(out, write("new"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"} and (out / "text").read_text() == "old"


def test_leftovers_of_a_killed_process_do_not_mix_with_what_is_written(tmp_path):
    for name in ("out.unfinished", "out.replaced", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").write_text("")
    whole_folders.replace_folder(tmp_path / "out", write("new"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "text"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "domains.png"
    write_file_atomically(path, lambda temporary: temporary.write_text("old"))

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("no room")

    with pytest.raises(FailedError, match="no room"):
        write_file_atomically(path, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["domains.png"] and path.read_text() == "old"


def test_what_a_killed_trial_left_is_cleared(tmp_path):
    (tmp_path / "out" / ".out.abc.trial").mkdir(parents=True)
    check_saves(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ---- for older readers ------------------------------------------------------------------------------------------


def saved_tokenizer(tmp_path, **changes) -> tuple[dict, Path]:
    """tokenizer_config.json and folder of an export whose source's tokenizer_config.json has these changes."""
    source = Path(shutil.copytree(MODEL, tmp_path / "source"))
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(fields_of(path) | changes))
    out = save_checkpoint(plain_model(), tmp_path / "out", AutoTokenizer.from_pretrained(source))
    assert AutoTokenizer.from_pretrained(out)("A red house").input_ids == AutoTokenizer.from_pretrained(source)(
        "A red house"
    ).input_ids  # fmt: skip
    return fields_of(out / "tokenizer_config.json"), out


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_the_class_of_a_tokenizer_is_one_that_transformers_4_knows(tmp_path, name):
    fields, _ = saved_tokenizer(tmp_path, tokenizer_class=name)
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & set(fields)


def test_a_class_with_flags_says_what_it_puts_around_a_text(tmp_path):
    fields, _ = saved_tokenizer(tmp_path, tokenizer_class="LlamaTokenizer", add_prefix_space=None)
    assert (fields["tokenizer_class"], fields["add_bos_token"], fields["add_eos_token"]) == (
        "LlamaTokenizer",
        False,
        False,
    )


def test_chat_templates_and_special_tokens_stand_where_older_readers_look(tmp_path):
    fields, out = saved_tokenizer(tmp_path, chat_template="{{ messages }}", extra_special_tokens=["<x>"])
    assert fields["chat_template"] == "{{ messages }}" == (out / "chat_template.jinja").read_text()
    assert fields["additional_special_tokens"] == ["<x>"] and "extra_special_tokens" not in fields
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.chat_template == "{{ messages }}" and loaded.extra_special_tokens == ["<x>"]


def test_a_training_checkpoint_has_such_a_tokenizer_too(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = plain_model(vocab_size=len(tokenizer))
    args = make_args(tmp_path, save_strategy="steps", save_steps=8)
    make_trainer(model, args, processing_class=tokenizer).train()
    fields = fields_of(tmp_path / "checkpoint-8" / "tokenizer_config.json")
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in fields


def test_the_dtype_stands_where_older_readers_look(tmp_path):
    out = save_checkpoint(plain_model(), tmp_path / "out", dtype=torch.bfloat16)
    fields = fields_of(out / "config.json")
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(out).dtype == torch.bfloat16
