"""What users of Trainer, TRL and PEFT try first, with the results: each row of examples/docs/habits.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from hub_server import serving
from training_helpers import (
    LENGTH,
    assert_equal_weights,
    held_out_domains,
    letter_tokenizer,
    make_args,
    make_domains,
    masked_model,
    plain_model,
    random_documents,
    train_domains,
    weights_of,
)
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hf_shear import ShearTrainer, ShearTrainingArguments, slice_model
from hf_shear.core import UsageError
from hf_shear.masks import MaskPhase
from hf_shear.training.trainer_inputs import shear_arguments

PAGE = Path(__file__).resolve().parent.parent / "examples" / "docs" / "habits.md"
TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }}{{ eos_token }} {% endfor %}"
TRIED: list[str] = []
WITHOUT_HF_SHEAR = """
import sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "hf_shear":
            raise ModuleNotFoundError("No module named 'hf_shear'")
sys.meta_path.insert(0, Finder())
"""


def habit(tried: str):
    """The test is of the row whose first cell is ``tried``."""
    TRIED.append(tried)
    return lambda function: function


def plain_args(folder, **changes) -> TrainingArguments:
    fields = {"max_steps": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    fields |= {"save_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **(fields | changes))


@pytest.fixture(scope="module")
def text() -> Dataset:
    return Dataset.from_dict({"text": random_documents(0, 12), "url": ["x"] * 12})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source")
    plain_model().to(torch.bfloat16).save_pretrained(path)
    letter_tokenizer().save_pretrained(path)
    return path


def test_the_page_has_these_rows():
    table = PAGE.read_text(encoding="utf-8").split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| .+ \|$", table, flags=re.MULTILINE)
    assert [row for row in rows if row != "you try"] == TRIED


# ---- Trainer ------------------------------------------------------------------------------------------------------


@habit('`model="path/to/llama"`, or a name on the Hub')
def test_a_model_by_its_name(folder, text, tmp_path):
    trainer = ShearTrainer(str(folder), make_args(tmp_path, max_steps=1), text, max_length=LENGTH)
    assert trainer.model.dtype == torch.float32 and trainer.processing_class.eos_token == "</s>"
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert_equal_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), weights_of(trainer.model))
    with pytest.raises(UsageError, match="`model` must be the folder .* './no_such' does not exist"):
        ShearTrainer("./no_such", make_args(tmp_path), text)


@habit("`args=TrainingArguments(...)`")
def test_plain_arguments(text, tmp_path):
    given = plain_args(tmp_path, learning_rate=3e-4, activation_checkpointing=True, weight_decay=0.1, seed=7)
    trainer = ShearTrainer(plain_model(), given, train_domains())
    args = trainer.args
    assert isinstance(args, ShearTrainingArguments) and args.output_dir == str(tmp_path)
    assert (args.learning_rate, args.weight_decay, args.seed, args.activation_checkpointing) == (3e-4, 0.1, 7, True)
    assert args.eval_strategy == "no" and not args.dynamic_batches and args.adam_beta2 == 0.95
    trainer.train()
    with pytest.raises(UsageError, match="`dataloader_drop_last=True` has no effect"):
        ShearTrainer(plain_model(), plain_args(tmp_path, dataloader_drop_last=True), train_domains())


@habit("no `args`")
def test_no_arguments(text):
    with pytest.raises(UsageError, match=r"`args` must be .* Give ShearTrainingArguments\(output_dir, num_train"):
        ShearTrainer(plain_model(), train_dataset=text, processing_class=letter_tokenizer())


@habit("one `Dataset` of packed samples, for training and for evaluation")
def test_one_data_set(tmp_path):
    train, held_out = make_domains({"a": 8})["a"], make_domains({"a": 4}, seed=1)["a"]
    trainer = ShearTrainer(plain_model(), make_args(tmp_path, max_steps=2, eval_strategy="epoch"), train, held_out)
    trainer.train()
    assert trainer.state.log_history[-2]["eval_text_loss"] == trainer.state.log_history[-2]["eval_loss"] > 0


@habit("a data set with a column `text`, and the tokenizer as `processing_class`")
def test_text_is_packed(text, tmp_path):
    trainer = ShearTrainer(
        plain_model(), make_args(tmp_path), text, processing_class=letter_tokenizer(), max_length=LENGTH
    )
    (samples,) = trainer.train_dataset.values()
    ids = [token for sample in samples["input_ids"] for token in sample]
    assert ids[:30] == letter_tokenizer()(text["text"][0], add_special_tokens=False)["input_ids"]
    assert ids[30] == letter_tokenizer().eos_token_id and {len(sample) for sample in samples["input_ids"]} == {LENGTH}
    default = ShearTrainer(plain_model(), make_args(tmp_path), text, processing_class=letter_tokenizer())
    assert default.sample_length == 32  # the model's positions, fewer than 256


@habit("a stream with a column `text` (`load_dataset(..., streaming=True)`)")
def test_a_stream_of_text(text, tmp_path):
    stream = text.to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    args = make_args(tmp_path, max_steps=1)
    ShearTrainer(plain_model(), args, stream, processing_class=letter_tokenizer(), max_length=LENGTH).train()


@habit("a data set with a column `messages`")
def test_conversations_go_through_the_template(tmp_path):
    turns = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]
    chats = Dataset.from_dict({"messages": [turns] * 8})
    tokenizer = letter_tokenizer()
    with pytest.raises(UsageError, match="has no chat template .* Set `tokenizer.chat_template`"):
        ShearTrainer(plain_model(), make_args(tmp_path), chats, processing_class=tokenizer)
    tokenizer.chat_template = TEMPLATE
    trainer = ShearTrainer(plain_model(), make_args(tmp_path), chats, processing_class=tokenizer, max_length=LENGTH)
    ids = [token for sample in trainer.train_dataset["text"]["input_ids"] for token in sample]
    words = tokenizer("user abc</s> assistant de</s>", add_special_tokens=False)["input_ids"]
    assert ids[: 2 * len(words)] == words * 2 and words.count(tokenizer.eos_token_id) == 2
    turns[0]["content"] = "abc</s> system"
    with pytest.raises(UsageError, match="a message holds '</s>', .* Remove it from the text"):
        ShearTrainer(
            plain_model(), make_args(tmp_path), Dataset.from_dict({"messages": [turns]}), processing_class=tokenizer
        )


@habit("text without a tokenizer")
def test_text_without_a_tokenizer(text, tmp_path):
    with pytest.raises(UsageError, match="`train_dataset` holds text .* Give it as `processing_class`"):
        ShearTrainer(plain_model(), make_args(tmp_path), text)


@habit("a data set with other columns, such as `prompt` and `completion`")
def test_other_columns(tmp_path):
    pairs = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    with pytest.raises(UsageError, match=r"has columns \['completion', 'prompt'\], but none of .*rename_column"):
        ShearTrainer(plain_model(), make_args(tmp_path), pairs, processing_class=letter_tokenizer())


@habit("a `DatasetDict` with the splits `train` and `test`")
def test_splits_are_no_domains(text, tmp_path):
    splits = DatasetDict(text.train_test_split(0.5))
    with pytest.raises(
        UsageError, match=r"would take the splits train, test for domains.*train_dataset=data\['train'\]"
    ):
        ShearTrainer(plain_model(), make_args(tmp_path), splits, processing_class=letter_tokenizer())


@habit("tokenised documents of different lengths, to be padded by a collator")
def test_samples_that_are_not_packed(tmp_path):
    ragged = Dataset.from_dict({"input_ids": [[4, 5, 6], [4, 5, 6, 7]]})
    with pytest.raises(UsageError, match="samples of different lengths .*; pack all with one `max_length`"):
        ShearTrainer(plain_model(), make_args(tmp_path), ragged)


@habit("`data_collator=...`, or samples with `labels` or an `attention_mask` that leave tokens out")
def test_every_token_is_learned(tmp_path):
    with pytest.raises(UsageError, match="`data_collator` has no use: all samples are packed.*SFTTrainer"):
        ShearTrainer(plain_model(), make_args(tmp_path), train_domains(), data_collator=default_data_collator)
    ids = [[4] * LENGTH] * 8
    all_of_it = Dataset.from_dict({"input_ids": ids, "labels": ids, "attention_mask": [[1] * LENGTH] * 8})
    ShearTrainer(plain_model(), make_args(tmp_path), all_of_it)
    for column, value in (("labels", -100), ("attention_mask", 0)):
        some = Dataset.from_dict({"input_ids": ids, column: [[value] + [4] * (LENGTH - 1)] * 8})
        with pytest.raises(UsageError, match=f"`train_dataset.'text'.` has `{column}` that leave tokens out"):
            ShearTrainer(plain_model(), make_args(tmp_path), some)


@habit('`processing_class="name"`, or a model without a language modelling head')
def test_what_is_no_tokenizer_and_no_language_model(text, tmp_path):
    with pytest.raises(UsageError, match=r"but it is 'name'. Give AutoTokenizer.from_pretrained\('name'\)"):
        ShearTrainer(plain_model(), make_args(tmp_path), text, processing_class="name")
    with pytest.raises(UsageError, match="LlamaModel has no head for it. Load one with AutoModelForCausalLM"):
        ShearTrainer(plain_model().model, make_args(tmp_path), train_domains())


@habit("`num_train_epochs=2`")
def test_epochs(tmp_path):
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=2, dynamic_batches=False)
    trainer = ShearTrainer(plain_model(), args, make_domains({"a": 5, "b": 4}))
    trainer.train()
    assert trainer.state.global_step == 5 and args.num_train_epochs == pytest.approx(20 / 9)
    stream = {"a": train_domains()["books"].to_iterable_dataset()}
    with pytest.raises(UsageError, match="`num_train_epochs=2` needs the number of samples, but a are streams"):
        ShearTrainer(plain_model(), make_args(tmp_path, max_steps=-1, num_train_epochs=2), stream)


@habit("`max_steps` and `num_train_epochs`")
def test_steps_go_before_epochs(tmp_path):
    args = make_args(tmp_path, max_steps=2, num_train_epochs=3, dynamic_batches=False)
    trainer = ShearTrainer(plain_model(), args, train_domains())
    trainer.train()
    assert trainer.state.global_step == 2


@habit("none of `num_tokens`, `max_steps` and `num_train_epochs`")
def test_no_length(tmp_path):
    trainer = ShearTrainer(plain_model(), make_args(tmp_path, max_steps=-1), train_domains())
    with pytest.raises(UsageError, match=r"needs `num_tokens` \(or `max_steps`, or `num_train_epochs`\) to know when"):
        trainer.train()


@habit("no `eval_dataset`")
def test_no_held_out_text(tmp_path):
    with pytest.raises(ValueError, match="(?i)eval_strategy.* to .*steps but you didn't pass an `eval_dataset`"):
        ShearTrainer(plain_model(), make_args(tmp_path, eval_strategy="steps"), train_domains())
    ShearTrainer(plain_model(), make_args(tmp_path, max_steps=1, dynamic_batches=False), train_domains()).train()


@habit("`trainer.evaluate(data)` of one data set, of text or of domains")
def test_evaluation_of_other_data(text, tmp_path):
    args, held_out = make_args(tmp_path, dynamic_batches=False), held_out_domains()
    trainer = ShearTrainer(plain_model(), args, train_domains(), processing_class=letter_tokenizer())
    assert trainer.evaluate(held_out["books"])["eval_text_loss"] == trainer.evaluate(held_out)["eval_books_loss"]
    assert trainer.evaluate(text)["eval_tokens"] > 0
    with pytest.raises(UsageError, match="`evaluate` needs `eval_dataset`"):
        trainer.evaluate()


@habit(
    "`compute_metrics=...`, `preprocess_logits_for_metrics=...`, `trainer.predict(...)`, `get_eval_dataloader()`",
)
def test_metrics_and_predictions(tmp_path):
    for name in ("compute_metrics", "preprocess_logits_for_metrics"):
        with pytest.raises(UsageError, match=f"`{name}` has no effect"):
            ShearTrainer(plain_model(), make_args(tmp_path), train_domains(), **{name: dict})
    trainer = ShearTrainer(plain_model(), make_args(tmp_path, dynamic_batches=False), train_domains())
    with pytest.raises(NotImplementedError, match="`evaluate` gives the loss of each domain"):
        trainer.predict(held_out_domains()["books"])
    with pytest.raises(NotImplementedError, match="no loader to evaluate with: `evaluate"):
        trainer.get_eval_dataloader()


@habit("`EarlyStoppingCallback`, `load_best_model_at_end=True`")
def test_stopping_early_and_the_best_model(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_wiki_loss",
        "learning_rate": 1.0,
        "dynamic_batches": False,
    }
    args = make_args(tmp_path, max_steps=6, **steps, **best)
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = ShearTrainer(plain_model(), args, train_domains(), held_out_domains(), callbacks=[stop])
    trainer.train()
    losses = [row["eval_wiki_loss"] for row in trainer.state.log_history if "eval_wiki_loss" in row]
    assert trainer.state.global_step == len(losses) < 6 and losses[-1] >= min(losses)
    best_step = 1 + losses.index(min(losses))
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best_step}")
    assert_equal_weights(
        trainer.model, weights_of(AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best_step}"))
    )
    with pytest.raises(UsageError, match="`load_best_model_at_end=True` would choose by the held-out loss"):
        ShearTrainer(masked_model(), make_args(tmp_path, **steps, **best), train_domains(), held_out_domains())


@habit('`train_sampling_strategy="group_by_length"`')
def test_grouping_by_length(tmp_path):
    with pytest.raises(UsageError, match="`train_sampling_strategy='group_by_length'` has no effect"):
        make_args(tmp_path, train_sampling_strategy="group_by_length")


@habit("`model_init=...`, `trainer.hyperparameter_search(...)`")
def test_searches_of_hyperparameters(tmp_path):
    with pytest.raises(UsageError, match="`model_init` is not offered.* a ShearTrainer for each trial"):
        ShearTrainer(plain_model(), make_args(tmp_path), train_domains(), model_init=plain_model)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        ShearTrainer(args=make_args(tmp_path), train_dataset=train_domains(), model_init=plain_model)


@habit("`trainer.save_state()`, `log_metrics`, `save_metrics`")
def test_what_training_scripts_write_at_the_end(tmp_path, capsys):
    args = make_args(tmp_path, max_steps=1, dynamic_batches=False)
    trainer = ShearTrainer(plain_model(), args, train_domains())
    metrics = trainer.train().metrics
    trainer.save_state()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 1
    assert "train_loss" in json.loads((tmp_path / "train_results.json").read_text())
    assert "train metrics" in capsys.readouterr().out


@habit("`generate` of a masked model")
def test_a_masked_model_generates(tmp_path):
    model, prompt = masked_model().eval(), torch.tensor([[4, 5, 6]])
    sliced, _ = slice_model(model)
    model.set_mask_phase(MaskPhase(hardening=1.0))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), sliced.generate(prompt, **options))


class Recorder(TrainerCallback):
    """What every reporter of transformers is given."""

    def __init__(self):
        self.names: set[str] = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.names |= set(logs or {})


@habit("`callbacks=[...]`, `optimizers=(...)`, `trainer.train(resume_from_checkpoint=True)`")
def test_callbacks_optimizers_and_resuming(tmp_path):
    def run(**changes):
        model, recorder = plain_model(attention_dropout=0.0), Recorder()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        args = make_args(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, dynamic_batches=False)
        trainer = ShearTrainer(model, args, train_domains(), callbacks=[recorder], optimizers=(optimizer, schedule))
        trainer.train(**changes)
        return trainer, recorder

    whole, recorder = run()
    assert {"loss", "grad_norm", "train_loss"} <= recorder.names
    (tmp_path / "checkpoint-2").rename(tmp_path / "finished")
    again, _ = run(resume_from_checkpoint=True)
    assert_equal_weights(again.model, weights_of(whole.model))


@habit("`report_to=` wandb, tensorboard, trackio or another")
def test_reporters_see_stable_names(tmp_path):
    recorder = Recorder()
    args = make_args(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="no")
    ShearTrainer(masked_model("hard_concrete"), args, train_domains(), held_out_domains(), callbacks=[recorder]).train()
    sizes = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"]
    expected = {f"{prefix}/{size}" for prefix in ("expected", "target", "swapped") for size in sizes}
    expected |= {f"mixture/{name}" for name in train_domains()} | {f"eval_{name}_loss" for name in train_domains()}
    assert expected | {"loss", "eval_loss", "num_tokens", "lagrangian_loss"} <= recorder.names
    stable = r"(mixture|reference|excess|stderr|expected|target|swapped|multiplier_(linear|quadratic))/\w+|eval_\w+|\w+"
    assert all(re.fullmatch(stable, name) for name in recorder.names)


STABLE_NAMES = {"train/mixture/books", "train/expected/hidden_size", "train/swapped/hidden_size", "eval/books_loss"}


def train_and_report_to(reporter: str, folder: Path) -> None:
    args = make_args(folder, max_steps=4, eval_strategy="steps", eval_steps=2, report_to=reporter)
    ShearTrainer(masked_model(), args, train_domains(), held_out_domains()).train()


def test_tensorboard_holds_domains_sizes_and_swaps(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    train_and_report_to("tensorboard", tmp_path)
    (file,) = (tmp_path / "events").rglob("events.out*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= STABLE_NAMES
    assert [event.step for event in events.Scalars("train/swapped/hidden_size")] == [2, 4]


def test_wandb_holds_domains_sizes_and_swaps(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    train_and_report_to("wandb", tmp_path)
    names = set(wandb.run.summary.keys())
    wandb.finish()
    assert names >= STABLE_NAMES


def test_trackio_holds_domains_sizes_and_swaps(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="trackio is not installed")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    train_and_report_to("trackio", tmp_path)
    (project,) = storage.SQLiteStorage.get_projects()
    (run,) = storage.SQLiteStorage.get_runs(project)
    rows = storage.SQLiteStorage.get_logs(project, run)
    assert {name for row in rows for name in row} >= STABLE_NAMES


# ---- the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    with serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub


@habit(
    "`push_to_hub=True` with `hub_model_id`, `hub_strategy`, `hub_private_repo`, `hub_always_push`; `trainer.push_to_hub()`"
)
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_pushing_as_the_trainer_does(hub, tmp_path):
    name, steps = "tester/tiny", {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "dynamic_batches": False}
    options = {"push_to_hub": True, "hub_model_id": name, "hub_private_repo": True, "hub_always_push": True}
    args = make_args(tmp_path / "run", hub_strategy="checkpoint", **options, **steps)
    trainer = ShearTrainer(plain_model(), args, train_domains(), processing_class=letter_tokenizer())

    class Patient(TrainerCallback):
        """Pushes go on beside the training, which then may write over what they read."""

        def on_step_begin(self, args, state, control, **kwargs):
            trainer._finish_current_push()

    trainer.add_callback(Patient())
    trainer.train()
    trainer._finish_current_push()
    found = [commit.message for commit in hub.repos[name].branches["main"]][1:]
    steps = [f"Training in progress, step {step}" for step in (1, 2)]
    assert sorted(found) == sorted([*steps, *(f"{step}, checkpoint" for step in steps)]) and hub.repos[name].private
    trainer.push_to_hub(commit_message="done", license="mit")
    files = hub.files(name)
    assert {"config.json", "model.safetensors", "tokenizer.json", "last-checkpoint/shear_state.json"} <= set(files)
    assert not [file for file in files if "lock" in file] and b"license: mit" in files["README.md"]
    assert files["model.safetensors"] == (tmp_path / "run" / "checkpoint-2" / "model.safetensors").read_bytes()
    assert hub.token.encode() not in b"".join(files.values())


@habit('`hub_token="hf_..."`')
def test_a_token_is_not_an_argument(tmp_path):
    with pytest.raises(UsageError, match="`hub_token` would be written .* HF_TOKEN"):
        make_args(tmp_path, hub_token="hf_secret")


@habit("`push_to_hub=True`, or `trainer.push_to_hub()`, with a masked model")
def test_masked_models_are_not_pushed(tmp_path):
    with pytest.raises(UsageError, match="`push_to_hub=True` would publish masked checkpoints.*`hf-shear push`"):
        ShearTrainer(masked_model(), make_args(tmp_path, push_to_hub=True), train_domains())
    with pytest.raises(UsageError, match="`push_to_hub` would publish a masked checkpoint.*`hf-shear push`"):
        ShearTrainer(masked_model(), make_args(tmp_path, dynamic_batches=False), train_domains()).push_to_hub()


@habit("`AutoModelForCausalLM.from_pretrained` of a masked checkpoint, without `import hf_shear`")
def test_a_masked_checkpoint_names_the_package(tmp_path):
    masked, code = masked_model(), "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T\n"
    masked.save_pretrained(tmp_path / "a")
    letter_tokenizer().save_pretrained(tmp_path / "a")

    def load(code: str) -> subprocess.CompletedProcess:
        places = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=places)

    done = load(code + "T.from_pretrained('a'); A.from_pretrained('a')")
    assert done.returncode == 1 and "pass the argument `trust_remote_code=True`" in done.stderr
    done = load(code + "A.from_pretrained('a', trust_remote_code=True).save_pretrained('b')")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "b").glob("*.py")} == {"import_hf_shear.py"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")  # hf_shear is imported here
    assert type(again) is type(masked)
    assert_equal_weights(again, weights_of(masked))
    sliced, _ = slice_model(again)
    assert "auto_map" not in sliced.config.to_dict()
    done = load(WITHOUT_HF_SHEAR + code + "A.from_pretrained('a', trust_remote_code=True)")
    assert done.returncode == 1 and "packages that were not found in your environment: hf_shear" in done.stderr


# ---- PEFT ---------------------------------------------------------------------------------------------------------


@habit("`peft_config=LoraConfig(...)` alone")
def test_a_peft_config_alone(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    args = make_args(tmp_path, max_steps=1, dynamic_batches=False)
    trainer = ShearTrainer(plain_model(), args, train_domains(), peft_config=config)
    assert args.recovery_method == "lora" and isinstance(trainer.model, peft.PeftModel)
    trainer.train()
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == {
        n for n, _ in trainer.model.named_parameters() if "lora_" in n
    }


@habit("`peft_config=` with a masked model")
def test_masks_are_learned_with_all_weights(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(
        UsageError, match="`peft_config` is of recovery, but the model has masks.* give it for the sliced"
    ):
        ShearTrainer(masked_model(), make_args(tmp_path), train_domains(), peft_config=peft.LoraConfig())


@habit("`model=get_peft_model(model, config)`")
def test_a_peft_model(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    model = peft.get_peft_model(plain_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = ShearTrainer(model, make_args(tmp_path, max_steps=1, dynamic_batches=False), train_domains())
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


# ---- TRL ----------------------------------------------------------------------------------------------------------


@dataclass
class LikeSFTConfig(TrainingArguments):
    """Two of the fields that TRL's has."""

    max_length: int | None = field(default=1024)
    packing: bool = field(default=False)


@habit("`args=SFTConfig(max_length=..., ...)`")
def test_arguments_of_trl(text, tmp_path):
    fields = {"max_steps": 1, "report_to": "none", "use_cpu": True, "max_length": LENGTH}
    args = LikeSFTConfig(str(tmp_path), **fields)
    assert ShearTrainer(plain_model(), args, text, processing_class=letter_tokenizer()).sample_length == LENGTH
    with pytest.raises(
        UsageError, match="`args` is a LikeSFTConfig with `packing=True`, which ShearTrainer does not know"
    ):
        ShearTrainer(plain_model(), LikeSFTConfig(str(tmp_path), packing=True, **fields), text)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_sheared_recovered_and_instructed(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="trl is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "text").mkdir()
    for number, name in enumerate(("books", "code")):
        texts = random_documents(number, 300)
        (tmp_path / "text" / f"{name}.txt").write_text("\n<|endoftext|>\n".join(texts))
    turns = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "dedede"}]
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 200)
    source = shutil.copytree(folder, tmp_path / "source")
    (source / "chat_template.jinja").write_text(TEMPLATE)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    changes = {"path/to/llama": "source", "path/to/text": "text", "=128": "=16", "200_000": "4_096", "num_batches=16":
               "num_batches=2", ": 128": ": 16", "max_length=256": "max_length=32, bf16=False, use_cpu=True"}  # fmt: skip
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "habits.md", "exec"), {})
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("held-out", "conversations"))]
    losses = [list(map(float, re.findall(r"\d\.\d+", line))) for line in printed]
    assert len(losses) == 3 and all(after < before for before, after in losses)


def test_plain_arguments_keep_their_device(tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True, bf16=True, dataloader_pin_memory=False, max_steps=1)
    found = shear_arguments(plain)
    assert found.use_cpu and found.bf16 and not found.dataloader_pin_memory
