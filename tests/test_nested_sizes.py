"""Several nested sizes of one model from one training: shapes, units, the training, and ``hf-shear recover --sizes``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT, free_port, launch_flags
from test_families import FAMILIES, build
from training_helpers import (
    held_out_domains,
    letter_tokenizer,
    make_args,
    plain_model,
    random_documents,
    tiny_config,
    train_domains,
)
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from hf_shear import AutoShearingModelForCausalLM, Calibration, save_checkpoint
from hf_shear.cli import main
from hf_shear.core import UsageError, check_results, read_results
from hf_shear.masks import unit_kinds
from hf_shear.pruning import NestedSizes, NestedTrainer, nested_shapes, rank_nested
from hf_shear.pruning.nested import _gates
from hf_shear.shapes import ModelShape, TargetShape, count_parameters
from hf_shear.slicing import KeptUnits, read_provenance

CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=512,
)  # fmt: skip
SHAPES = [
    {"num_hidden_layers": 3, "intermediate_size": 24},
    {"num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 3},
    {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 8, "num_attention_heads": 2,
     "num_key_value_heads": 2},
]  # fmt: skip
"""Of the tiny Llama, itself first."""


def nested(model, shapes=SHAPES, seed=0) -> NestedSizes:
    """Sizes by a random ranking, the model's own shape first."""
    generator = torch.Generator().manual_seed(seed)
    own = {str(place): TargetShape.from_dict(model.config, shape) for place, shape in enumerate(shapes)}
    last = list(own.values())[-1]
    scores = {
        kind.name: torch.rand(kind.mask_shape, generator=generator)
        for kind in unit_kinds(ModelShape.from_config(model.config), last).values()
    }
    return NestedSizes(own, {name: _gates(unit_kinds(shape.source, shape), scores) for name, shape in own.items()})


# ---- shapes and units -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(30, 95), min_size=2, max_size=5, unique=True))
def test_each_shape_lies_within_the_one_before_and_within_its_budget(percents):
    sizes = [percent / 100 for percent in sorted(percents, reverse=True)]
    whole, before = count_parameters(CONFIG), ModelShape.from_config(CONFIG)
    try:
        found = nested_shapes(CONFIG, sizes)
    except UsageError as error:
        assert "must fall" in str(error)  # by less than a step between shapes
        return
    assert list(found) == [f"{size:g}" for size in sizes]
    for size, shape in zip(sizes, found.values(), strict=True):
        assert all(value <= before.sizes()[name] for name, value in shape.sizes().items())
        assert count_parameters(CONFIG, shape) <= size * whole
        before = shape


def test_sizes_are_shares_numbers_or_shapes_and_the_first_is_that_of_the_budget():
    by_share = nested_shapes(CONFIG, [0.75, 0.5])
    count = count_parameters(CONFIG)
    by_number = nested_shapes(CONFIG, [int(0.75 * count), count // 2])
    assert list(by_share.values()) == list(by_number.values())
    by_shape = nested_shapes(CONFIG, [shape.sizes() for shape in by_share.values()])
    assert list(by_shape) == [str(count_parameters(CONFIG, shape)) for shape in by_share.values()]
    assert list(by_shape.values()) == list(by_share.values())


@pytest.mark.parametrize(
    "sizes, said",
    [
        ([0.5], "2 or more sizes"),
        ("0.75,0.5", "2 or more sizes"),
        ([0.5, 0.75], "must fall"),
        ([0.5, 0.5], "must fall"),
        ([0.5, 0.4999], "must fall"),
        ([1.5, 0.5], "above 0 and below 1"),
        ([1.0, 0.5], "above 0 and below 1"),
        ([0.5, 0.0], "above 0 and below 1"),
        ([0.5, float("nan")], "must be numbers or shapes"),
        ([0.5, True], "must be numbers or shapes"),
        ([10**9, 0.5], "below the source's"),
        ([0.5, 0.001], "the smallest shape"),
        ([{"intermediate_size": 100}, {"num_hidden_layers": 2}], "must be nested"),
    ],
)
def test_sizes_that_are_not_nested_are_refused(sizes, said):
    with pytest.raises(UsageError, match="`sizes`") as error:
        nested_shapes(CONFIG, sizes)
    assert said in str(error.value)


@pytest.mark.parametrize("seed", [0, 3])
def test_each_round_of_steps_trains_every_size_once_in_an_order_of_its_own(seed):
    sizes = nested(plain_model())
    steps = [sizes.at_step(step, seed) for step in range(60)]
    rounds = [tuple(steps[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(one) == sizes.names for one in rounds) and len(set(rounds)) > 3
    assert steps[7] == sizes.at_step(7, seed) and steps != [sizes.at_step(step, seed + 1) for step in range(60)]


def test_units_are_ranked_once_and_a_smaller_size_has_a_part_of_a_larger_one_s(tmp_path):
    model = plain_model(attention_dropout=0.0)
    calibration = Calibration.from_domains(train_domains(), batch_size=4, num_batches=2)
    shapes = {str(place): TargetShape.from_dict(model.config, shape) for place, shape in enumerate(SHAPES)}
    found = rank_nested(model, shapes, calibration)
    assert found.gates["0"] == {} and set(found.gates["1"]) < set(found.gates["2"])
    for kind, gate in found.gates["2"].items():
        if kind in found.gates["1"]:
            assert bool((gate <= found.gates["1"][kind]).all())
    found.save(tmp_path)
    again = NestedSizes.load(tmp_path, model.config)
    assert again.digest() == found.digest() and again.shapes == found.shapes
    with pytest.raises(UsageError, match="of the largest size"):
        rank_nested(model, {name: shapes[name] for name in ("1", "2")}, calibration)


NARROW = {"hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 3}
FAMILY_SHAPES = {
    "llama": (
        {},
        {"num_hidden_layers": 3, "intermediate_size": 13},
        {"num_hidden_layers": 2, "intermediate_size": 9} | NARROW,
    ),
    "qwen2": (
        {},
        {"num_hidden_layers": 2, "intermediate_size": 11},
        {"num_hidden_layers": 2, "intermediate_size": 9} | NARROW,
    ),
    "gemma2": ({}, {"num_hidden_layers": 3}, {"num_hidden_layers": 2, "intermediate_size": 13} | NARROW),
    "olmo2": ({}, {"num_hidden_layers": 2, "intermediate_size": 13}),
    "qwen3_moe": ({}, {"num_experts": 4}, {"hidden_size": 16, "num_experts": 4, "num_hidden_layers": 2}),
}
"""Tied and not; grouped queries, biases, norms behind a layer and around heads, experts."""


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FAMILY_SHAPES)
def test_every_size_is_the_masked_function_as_a_plain_checkpoint(name, tied, tmp_path):
    model = build(name, tied=tied)
    masked = AutoShearingModelForCausalLM.from_model(model).eval()
    sizes = nested(model, FAMILY_SHAPES[name])
    ids = torch.arange(3, 15).unsqueeze(0)
    for size in sizes.names:
        with torch.no_grad(), masked.use_gates(sizes.gates[size]):
            expected = masked(ids).logits
        sliced, kept = sizes.cut(masked, size)
        save_checkpoint(sliced, tmp_path / size)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / size)
        assert type(loaded) is FAMILIES[name].model_class
        assert ModelShape.from_config(loaded.config).sizes() == sizes.shapes[size].sizes()
        with torch.no_grad():
            gap = (loaded(ids).logits - expected).abs().max() / expected.abs().max()
        assert gap < 1e-5, (size, gap)
        outer = sizes.cut(masked, sizes.largest)[1]
        assert kept.within(outer) == kept  # the largest is the whole model
        assert KeptUnits.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept


def test_units_of_a_cut_within_a_cut_are_named_as_those_of_the_source():
    source = plain_model(attention_dropout=0.0)
    first = nested(source)
    middle, outer = first.cut(AutoShearingModelForCausalLM.from_model(source), "1")
    shapes = [{}, {"hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 3}]
    second = nested(middle, shapes, seed=4)
    small, inner = second.cut(AutoShearingModelForCausalLM.from_model(middle), "1")
    kept = inner.within(outer)
    (layer,) = kept.layers
    weight = source.model.layers[layer].mlp.up_proj.weight[kept.intermediate[layer]][:, kept.hidden]
    assert torch.equal(small.model.layers[0].mlp.up_proj.weight, weight)
    rows = [head * 4 + channel for head in kept.heads[layer] for channel in range(4)]
    assert torch.equal(
        small.model.layers[0].self_attn.q_proj.weight,
        source.model.layers[layer].self_attn.q_proj.weight[rows][:, kept.hidden],
    )


# ---- the training -----------------------------------------------------------------------------------------------------


def train(folder, size_teacher="none", resume=False, callbacks=None, **changes) -> NestedTrainer:
    model = plain_model()
    options = {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 2}
    trainer = NestedTrainer(
        model, make_args(folder, **options | changes), train_domains(), held_out_domains(), sizes=nested(model),
        size_teacher=size_teacher, callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rows_of(trainer) -> list[dict]:
    """What was logged, but for times."""
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    return [{name: value for name, value in row.items() if "runtime" not in name} for row in rows]


class Stop(TrainerCallback):
    """Ends a training behind a checkpoint, as a kill would."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("size_teacher", ["none", "largest"])
def test_a_killed_run_goes_on_as_the_one_that_was_not_killed(tmp_path, size_teacher):
    whole = train(tmp_path / "a", size_teacher)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", size_teacher, callbacks=[Stop()])
    again = train(tmp_path / "b", size_teacher, resume=True)
    assert rows_of(again) == rows_of(whole)
    for name, value in whole.masked_model.state_dict().items():
        assert torch.equal(value, again.masked_model.state_dict()[name]), name
    assert again.flops() == whole.flops()


def test_every_size_has_losses_which_are_those_of_its_checkpoint(tmp_path):
    trainer = train(tmp_path, save_strategy="no")
    found = trainer.evaluate()
    last = rows_of(trainer)[-1]
    assert [name for name in last if name.startswith("eval_size_0")] == [
        "eval_size_0_loss", "eval_size_0_books_loss", "eval_size_0_code_loss", "eval_size_0_wiki_loss",
    ]  # fmt: skip
    for name in trainer.sizes.names:
        model, _ = trainer.cut(name)
        ids = {domain: torch.tensor(rows["input_ids"]) for domain, rows in held_out_domains().items()}
        with torch.no_grad():
            losses = {domain: float(model(input_ids=rows, labels=rows).loss) for domain, rows in ids.items()}
        assert found[f"eval_size_{name}_loss"] == pytest.approx(sum(losses.values()) / 3, abs=1e-5)
        assert found[f"eval_size_{name}_code_loss"] == pytest.approx(losses["code"], abs=1e-5)
        (_, row) = trainer.history_of(name, "recovery")[-2:]
        assert row["loss"]["code"] == last[f"eval_size_{name}_code_loss"]
    mean = sum(found[f"eval_size_{name}_loss"] for name in trainer.sizes.names) / 3
    assert found["eval_loss"] == pytest.approx(mean) and found["eval_tokens"] == 3 * 12 * 15


def test_a_step_changes_the_units_of_its_size_alone(tmp_path):
    model = plain_model()
    sizes = nested(model)
    seed = next(seed for seed in range(9) if sizes.at_step(0, seed) == "2")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    args = make_args(tmp_path, max_steps=1, weight_decay=0.0, seed=seed)
    trainer = NestedTrainer(model, args, train_domains(), sizes=sizes)
    assert trainer.size_now == "2"
    trainer.train()
    gates = sizes.gates["2"]
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        changed = (trainer.masked_model.state_dict()[name] != start[name]).any(dim=1)
        assert torch.equal(changed, gates["intermediate"][layer].bool() & gates["layer"][layer].bool())


def test_the_largest_size_teaches_the_others_without_a_gradient_of_its_own(tmp_path):
    trainer = train(tmp_path, "largest", save_strategy="no", eval_strategy="no")
    plain = train(tmp_path / "plain", save_strategy="no", eval_strategy="no")
    rows = [row for row in rows_of(trainer) if "loss" in row]
    for step, row in enumerate(rows):
        taught = trainer.sizes.at_step(step, trainer.args.seed) != "0"
        assert (row["divergence"] > 0) == taught
        expected = (row["cross_entropy"] + row["divergence"]) / 2 if taught else row["cross_entropy"]
        assert row["loss"] == pytest.approx(expected, abs=2e-4)
    assert trainer.flops() > plain.flops()


def test_trainings_that_do_not_fit_are_refused(tmp_path):
    model, args = plain_model(), make_args(tmp_path)
    with pytest.raises(UsageError, match="must be of the largest size, '0'"):
        NestedTrainer(plain_model(intermediate_size=20), args, train_domains(), sizes=nested(model))
    with pytest.raises(UsageError, match="`size_teacher` must be one of none, largest"):
        NestedTrainer(model, args, train_domains(), sizes=nested(model), size_teacher="0")
    masked = AutoShearingModelForCausalLM.from_model(model, SHAPES[1])
    with pytest.raises(UsageError, match="no target of its own"):
        NestedTrainer(masked, args, train_domains(), sizes=nested(model))
    with pytest.raises(UsageError, match="Leave one of the two out"):
        NestedTrainer(
            model, make_args(tmp_path, distillation="forward_kl"), train_domains(), sizes=nested(model),
            teacher=plain_model(1), size_teacher="largest",
        )  # fmt: skip
    train(tmp_path / "run")
    other = NestedTrainer(
        plain_model(), make_args(tmp_path / "run", max_steps=9, eval_strategy="steps", eval_steps=3),
        train_domains(), held_out_domains(), sizes=nested(model, seed=1),
    )  # fmt: skip
    with pytest.raises(UsageError, match="the units of the sizes"):
        other.train(resume_from_checkpoint=True)


def launch(backend: str, folder, source, teaching: str, *more: str, processes: int = 2) -> list[dict]:
    """The log of tests/nested_run.py under a backend."""
    flags = launch_flags(backend)
    if backend != "one_process":
        flags += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "tests" / "nested_run.py"), str(folder), str(source), teaching, *more]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags, *script], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "end.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("teaching", ["none", "largest"])
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_every_backend_trains_what_one_process_trains(backend, teaching, tmp_path):
    pytest.importorskip("deepspeed")
    model = plain_model(attention_dropout=0.0)
    model.save_pretrained(tmp_path / "source")
    nested(model).save(tmp_path / "source")
    expected = launch("one_process", tmp_path / "one", tmp_path / "source", teaching)
    found = launch(backend, tmp_path / "two", tmp_path / "source", teaching)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("loss", "eval_loss", "eval_size_0_loss", "eval_size_1_loss", "eval_size_2_loss"):
            assert mine.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), abs=2e-4), name
    for size in "012":
        one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / run / size).state_dict() for run in ("one", "two"))
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3
    for step in (6, 8):
        shutil.rmtree(tmp_path / "two" / f"checkpoint-{step}", ignore_errors=True)
    again = launch(backend, tmp_path / "two", tmp_path / "source", teaching, "--resume")
    assert [{k: v for k, v in row.items() if "runtime" not in k} for row in again] == [
        {k: v for k, v in row.items() if "runtime" not in k} for row in found
    ]


# ---- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny random Llama, and two domains."""
    folder = tmp_path_factory.mktemp("nested")
    plain_model(attention_dropout=0.0, intermediate_size=64, hidden_size=24).save_pretrained(folder / "model")
    letter_tokenizer().save_pretrained(folder / "model")
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir(parents=True)
        (folder / "text" / name / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(number, 60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


def words(inputs, folder, *more: str) -> list[str]:
    return [
        "recover", str(inputs / "model"), "--sizes", "0.8,0.6,0.4", "--data_dir", str(inputs / "text"), "--output_dir",
        str(folder), "--max_length", "16", "--eval_tokens", "64", "--use_cpu", "true", "--recovery_tokens", "384",
        "--held_out_fraction", "0.3", "--calibration_batches", "2", "--per_device_train_batch_size", "4", "--eval_steps",
        "3", "--eval_token_share", "0.5", "--disable_tqdm", "true", "--save_strategy", "steps", "--save_steps", "2",
        "--learning_rate", "0.01", "--logging_steps", "3", *more,
    ]  # fmt: skip


def test_recover_trains_several_sizes_and_each_can_be_published(inputs, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*words(inputs, folder, "--dry_run")]) == 0
    assert "ranking" in capsys.readouterr().out and not folder.exists()
    assert main(words(inputs, folder, "--size_teacher", "largest")) == 0
    said = capsys.readouterr().out
    table = json.loads((folder / "sizes.json").read_text())["sizes"]
    assert list(table) == ["0.8", "0.6", "0.4"] and all(f"{row['recovered']:.3f}" in said for row in table.values())
    whole = AutoModelForCausalLM.from_pretrained(inputs / "model").model.embed_tokens.weight.shape[1]
    for name, row in table.items():
        results = read_results(folder / "sizes" / name / "results.json")
        check_results(results)
        checkpoint = folder / "sizes" / name / "recovered"
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert model.num_parameters() == row["num_parameters"] == results["recovered"]["num_parameters"]
        assert results["pruned"]["mean"] == row["cut"] and results["recovered"]["mean"] == row["recovered"]
        kept = read_provenance(checkpoint)["kept"]
        assert kept == results["kept"] and len(kept["hidden"]) == model.config.hidden_size
        assert max(kept["hidden"]) < whole
        assert main(["card", str(folder / "sizes" / name), "--license", "mit"]) == 0
        assert (checkpoint / "README.md").is_file()
    text = ["--data_dir", str(inputs / "text"), "--no_speed", "--output", str(tmp_path / "evaluation.json")]
    assert main(["evaluate", str(inputs / "model"), str(folder / "sizes" / "0.4" / "recovered"), *text]) == 0
    capsys.readouterr()
    assert main(words(inputs, folder, "--size_teacher", "largest")) == 0
    assert "recovery (finished before)" in capsys.readouterr().out
    assert main(words(inputs, folder)) == 2
    assert "size_teacher" in capsys.readouterr().err


def test_the_largest_size_can_be_learned(inputs, tmp_path, capsys):
    folder, masks = tmp_path / "run", ["--mask_tokens", "384", "--shape_gap_tolerance", "1"]
    assert main([*words(inputs, folder, *masks), "--dry_run"]) == 0
    assert "mask learning" in capsys.readouterr().out.replace("_", " ") and not folder.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NestedTrainer, "training_step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(words(inputs, folder, *masks))
    assert main(words(inputs, folder)) == 2  # without masks it would be another run
    assert "mask_tokens" in capsys.readouterr().err
    assert main(words(inputs, folder, *masks)) == 0
    assert "mask_learning (finished before)" in capsys.readouterr().out
    table = json.loads((folder / "sizes.json").read_text())["sizes"]
    for name, row in table.items():
        results = read_results(folder / "sizes" / name / "results.json")
        check_results(results)
        assert results["tokens"]["mask_learning"] == 384 and results["recovered"]["mean"] == row["recovered"]
        record = read_provenance(folder / "sizes" / name / "recovered")
        assert record["mask_learning"] == 384 and record["kept"] == results["kept"]


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(inputs, tmp_path, monkeypatch):
    assert main(words(inputs, tmp_path / "a")) == 0
    step = NestedTrainer.training_step

    def killed(trainer, *args, **kwargs):
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(NestedTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            main(words(inputs, tmp_path / "b"))
    assert main(words(inputs, tmp_path / "b")) == 0
    one, two = (json.loads((tmp_path / run / "sizes.json").read_text()) for run in "ab")
    assert one == two


@pytest.mark.parametrize(
    "more, said",
    [
        (["--sizes", "0.5,x"], "numbers with commas"),
        (["--sizes", "0.5"], "2 or more sizes"),
        (["--sizes", "0.4,0.8"], "must fall"),
        (["--pruned", "x"], "leave out `--pruned`"),
        (["--hidden_size", "12"], "leave out `--hidden_size`"),
        (["--target_num_parameters", "900"], "leave out `--target_num_parameters`"),
        (["--target_balance", "proportional"], "`target_balance` 'proportional' is not taken beside `sizes`"),
        (["--mask_tokens", "900", "--criterion", "taylor"], "criterion"),
        (["--recovery_method", "norms_and_biases"], "`recovery_method` is 'norms_and_biases'"),
        (["--size_teacher", "largest", "--distillation", "forward_kl"], "two teachers"),
        (["--size_teacher", "smallest"], "size_teacher"),
    ],
)
def test_flags_that_contradict_are_refused(inputs, tmp_path, capsys, more, said):
    command = words(inputs, tmp_path / "run")
    if more[0] == "--sizes":
        command[command.index("0.8,0.6,0.4")] = more[1]
    else:
        command += more
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_sizes_without_sizes_is_refused(inputs, tmp_path, capsys):
    command = words(inputs, tmp_path / "run", "--size_teacher", "largest")
    del command[2:4]
    assert main(command) == 2
    assert "`size_teacher` 'largest' is of `sizes`" in capsys.readouterr().err


def test_a_tiny_config_has_room_for_the_sizes_of_these_tests():
    assert list(nested_shapes(tiny_config(intermediate_size=64, hidden_size=24), [0.8, 0.6, 0.4])) == [
        "0.8",
        "0.6",
        "0.4",
    ]
