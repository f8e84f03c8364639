"""What a run says about itself: its cost before it starts, its masks before they harden, a line per log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from training_helpers import (
    DOMAINS,
    LENGTH,
    TARGET,
    held_out_domains,
    make_args,
    make_trainer,
    masked_model,
    plain_model,
    train_domains,
)

from hf_shear.distillation import Teacher, store_teacher_logits
from hf_shear.training import progress
from hf_shear.training.cost import memory_line, plan_evaluations, training_setup
from hf_shear.training.history import evaluation_history
from hf_shear.training.mask_learning import mask_report, warn_if_off_target
from hf_shear.training.memory_setup import FrozenSetup, TeachingSetup, TrainingSetup
from hf_shear.training.progress import LinePrinterCallback, ShearProgressCallback, log_line

# ---- cost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"eval_strategy": "epoch"}, [8]),
        ({"eval_strategy": "steps", "eval_steps": 2}, [2, 4, 6, 8]),
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 6, 8]),  # the last step always
        ({"eval_strategy": "steps", "eval_steps": 0.3}, [3, 6, 8]),
        ({"eval_strategy": "steps", "eval_steps": 50}, [8]),
        ({"eval_strategy": "steps", "eval_steps": 3, "eval_delay": 4}, [6, 8]),
        (
            {"eval_strategy": "steps", "max_steps": 43},
            [14, 29],
        ),  # 43 x 4 x .9 / 3 = 51 samples: 3 x 16, one of references
        ({"eval_strategy": "steps", "max_steps": 43, "eval_delay": 20}, [29]),
        ({"eval_strategy": "steps", "dynamic_batches": False}, [1, 2, 3, 4, 5, 6, 7]),  # a curve, of a sample each
    ],
)
def test_evaluations_happen_as_planned(tmp_path, fields, expected):
    args = make_args(tmp_path, **fields)
    assert plan_evaluations(args, 3).steps == expected
    trainer = make_trainer(plain_model(), args)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == expected


def cost_of(args, plan, num_domains: int) -> float:
    """Share of the training tokens that the evaluations read, with those for reference losses."""
    return plan.num_passes(args) * plan.samples_per_domain * num_domains / (args.max_steps * args.samples_per_step())


@pytest.mark.parametrize("num_domains", [1, 2, 7])
@pytest.mark.parametrize("max_steps", [3, 40, 150, 900, 5000, 60_000])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_small_budget_makes_evaluations_few_and_not_small(tmp_path, num_domains, max_steps, share, dynamic):
    args = make_args(
        tmp_path, eval_strategy="steps", max_steps=max_steps, eval_token_share=share, dynamic_batches=dynamic
    )
    plan = plan_evaluations(args, num_domains)
    assert cost_of(args, plan, num_domains) <= share
    assert all(0 < step < max_steps for step in plan.steps) and len(plan.steps) <= 10
    assert plan.samples_per_domain >= 16 or not plan.steers
    budget = share * max_steps * 4 / num_domains
    assert plan.steers == (dynamic and budget >= 32)
    if plan.steers and len(plan.steps) < 10:
        assert (len(plan.steps) + 2) * 16 > budget  # one more is not paid for
    given = make_args(tmp_path, eval_strategy="steps", max_steps=max_steps, eval_token_share=share,
                      dynamic_batches=dynamic, reference_losses={"a": 1.0})  # fmt: skip
    assert plan_evaluations(given, num_domains) == plan  # so that recovery reads the samples that references are of


@pytest.mark.parametrize(("share", "expected"), [(0.9, 18), (0.05, 16), (1.0, 20)])
def test_evaluations_that_are_asked_for_are_of_samples_enough(tmp_path, share, expected):
    """45 steps x 4 samples, 2 evaluations and the one for reference losses, 3 domains."""
    args = make_args(tmp_path, max_steps=45, eval_strategy="steps", eval_steps=23, eval_token_share=share)
    plan = plan_evaluations(args, 3)
    assert (plan.samples_per_domain, plan.steers, plan.asked_for) == (expected, True, True)
    trainer = make_trainer(plain_model(), args, held_out=held_out_domains(19))
    line = trainer.cost_report().splitlines()[1]
    used = 3 * min(expected, 19) * LENGTH
    assert line.startswith(f"  evaluation: 2 x {used:,} held-out tokens and {used:,} for reference losses, ")
    cost = 3 * used / (45 * 4 * LENGTH)
    assert f"{cost:.1%} of the training tokens" in line
    assert ("more than `eval_token_share`" in line) == (cost > share)


def test_a_run_too_short_to_steer_keeps_its_proportions_and_says_so(tmp_path, capsys):
    trainer = make_trainer(plain_model(), make_args(tmp_path, eval_strategy="steps", eval_token_share=0.5))
    trainer.train()
    said = (
        "domain weights stay as they are: losses to steer by, of 16 samples of each domain, and their references would"
        " cost 300.0% of the training tokens, more than `eval_token_share` (50.0%)"
    )
    assert "".join(capsys.readouterr()).count(said) == 1
    record = trainer.stage_record("recovery")
    assert len(record["history"]) == 5 and {row["eval_tokens"] for row in record["history"]} == {3 * (LENGTH - 1)}
    assert len({str(row["mixture_weights"]) for row in record["history"]}) == 1
    assert record["reference_losses"] is None and "excess_loss" not in record["history"][0]


def test_the_best_model_is_sought_at_steps_that_saves_know(tmp_path):
    fields = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 0.1, "metric_for_best_model": "loss"}
    args = make_args(tmp_path, load_best_model_at_end=True, **fields)
    assert args.eval_steps == 0.1 and plan_evaluations(args, 3).asked_for
    assert make_args(tmp_path, **fields).eval_steps is None


def setup_of(trainer):
    """What a step's memory depends on."""
    sample = trainer.train_dataset["books"][0]
    teaching = trainer.distiller and trainer.distiller.teaching_setup(sample)
    return training_setup(trainer.args, trainer.model, trainer.sample_length, trainer.accelerator.state, teaching)


def test_the_setup_of_memory_is_read_off_the_trainer(tmp_path):
    setup = setup_of(make_trainer(plain_model(), make_args(tmp_path)))
    assert setup == TrainingSetup(4, LENGTH)
    args = make_args(tmp_path, activation_checkpointing=True, gradient_accumulation_steps=2, bf16=True)
    setup = setup_of(make_trainer(masked_model(), args))
    assert setup == TrainingSetup(
        4, LENGTH, autocast=True, activation_checkpointing=True, gradient_accumulation_steps=2
    )
    trainer = make_trainer(masked_model(), make_args(tmp_path, bf16=True))
    trainer.model.bfloat16()  # its masks stay float32
    assert setup_of(trainer) == TrainingSetup(4, LENGTH, weight_dtype="bfloat16")


def test_the_setup_of_a_recovery_is_read_off_the_trainer(tmp_path):
    pytest.importorskip("peft")
    norms = make_trainer(plain_model(), make_args(tmp_path, recovery_method="norms_and_biases"))
    assert setup_of(norms) == TrainingSetup(4, LENGTH, frozen=FrozenSetup(18 * 7))
    assert norms.memory_line().endswith("(126 parameters of norms and biases are trained)")
    teacher = plain_model(3, intermediate_size=30)
    config = {"r": 2, "target_modules": "all-linear"}
    args = make_args(tmp_path, recovery_method="lora", peft_config=config, distillation="forward_kl")
    adapters = make_trainer(plain_model(), args, teacher=teacher)
    count = 3 * 2 * (2 * (18 + 24) + 2 * (18 + 12) + 3 * (18 + 24))
    assert setup_of(adapters) == TrainingSetup(
        4, LENGTH, frozen=FrozenSetup(count, True, 7 * 2), teaching=TeachingSetup(teacher.config)
    )
    said = f"({count:,} parameters of adapters are trained; the teacher on the device, the student's logits in chunks)"
    assert adapters.memory_line().endswith(said) and "teacher " in adapters.memory_line()


def test_the_setup_of_stored_logits(tmp_path):
    stored = store_teacher_logits(train_domains(), Teacher(plain_model(3)), tmp_path / "logits", top_k=5)
    trainer = make_trainer(plain_model(), make_args(tmp_path, distillation="forward_kl"), train=stored)
    assert trainer.distiller.teaching_setup(stored["books"][0]) == TeachingSetup(None, "stored", top_k=5)
    assert trainer.memory_line().endswith("(stored logits, the student's logits in chunks)")


def shared_facts(tmp_path, state, world_size=8):
    """What the estimate reads under a backend that one process can not start."""
    args = make_args(tmp_path)
    changes = {"world_size": world_size, "train_batch_size": 4, "recovery": args.recovery}
    return SimpleNamespace(**vars(args) | changes), masked_model(), LENGTH, state


@pytest.mark.parametrize(
    ("config", "stage", "expected"),
    [
        ({"zero_optimization": {"stage": 3}}, 3, {"backend": "zero3"}),
        (
            {"zero_optimization": {"reduce_bucket_size": 1000, "offload_optimizer": {"device": "cpu"}}}, 2,
            {"backend": "zero2", "offload": True, "reduce_bucket_size": 1000},
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "auto", "offload_optimizer": {"device": "none"}},
             "bf16": {"enabled": True}}, 1, {"backend": "zero1", "weight_dtype": "bfloat16"},
        ),
        ({"zero_optimization": {"stage": 0}, "bf16": {"enabled": "auto"}}, 0, {"backend": "ddp"}),
    ],
)  # fmt: skip
def test_the_setup_of_deepspeed(tmp_path, config, stage, expected):
    plugin = SimpleNamespace(deepspeed_config=config, zero_stage=stage)
    state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, deepspeed_plugin=plugin)
    facts = shared_facts(tmp_path, state)
    assert training_setup(*facts) == TrainingSetup(4, LENGTH, num_devices=8, **expected)
    assert f"memory per device with AdamW, {expected['backend']} on 8 devices, about " in memory_line(*facts)
    assert ("; on the host " in memory_line(*facts)) == ("offload" in expected)


def test_the_setup_of_fsdp_and_ddp(tmp_path):
    plugin = SimpleNamespace(cpu_offload=None)
    state = SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    expected = TrainingSetup(4, LENGTH, backend="fsdp2", num_devices=8)
    assert training_setup(*shared_facts(tmp_path, state)) == expected
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    expected = TrainingSetup(4, LENGTH, backend="ddp", num_devices=2)
    assert training_setup(*shared_facts(tmp_path, state, world_size=2)) == expected


def test_memory_that_is_not_known_says_why(tmp_path):
    trainer = make_trainer(plain_model(), make_args(tmp_path))
    trainer.model.half()
    line = trainer.memory_line()
    assert line.startswith(
        "memory per device: not estimated. `weight_dtype` must be one of float32, bfloat16, but it is "
    )


def test_the_cost_report(tmp_path):
    args = make_args(tmp_path, max_steps=2000, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=500,
                     eval_token_share=0.05, hardening_ratio=0.25)  # fmt: skip
    lines = make_trainer(masked_model(), args, held_out=held_out_domains(6)).cost_report().splitlines()
    assert lines[0] == (
        "Mask learning: 256,000 tokens in 2,000 steps of 8 x 16 tokens (1 process x 4 samples x 2 accumulated)"
    )
    units = 18 + 3 + 3 * 3 + 3 * 3 * 2 + 3 * 24
    assert lines[1].startswith(f"  masks: relaxed_topk, {units:,} units towards ")
    assert lines[1].endswith("; hardened over the last 500 steps")
    assert str(TARGET["intermediate_size"]) in lines[1]
    assert lines[2] == "  evaluation: 4 x 288 held-out tokens and 288 for reference losses, 0.6% of the training tokens"
    assert lines[3].startswith("  memory per device with AdamW, one device, about ")
    parts = [part.split()[0] for part in lines[3].split(": ")[1].split(", ")]
    assert {"weights", "optimizer", "masks", "gradients"} <= set(parts)
    assert len(lines) == 4


def test_given_references_cost_no_evaluation(tmp_path):
    references = dict.fromkeys(DOMAINS, 2.0)
    args = make_args(tmp_path, max_steps=2000, eval_strategy="steps", eval_steps=500, reference_losses=references)
    lines = make_trainer(plain_model(), args, held_out=held_out_domains(6)).cost_report().splitlines()
    assert lines[1] == "  evaluation: 4 x 288 held-out tokens, 0.9% of the training tokens"


def test_masks_that_never_harden_say_so(tmp_path):
    lines = make_trainer(masked_model(), make_args(tmp_path, hardening_ratio=0.0)).cost_report().splitlines()
    assert lines[1].endswith("; never hardened")


def test_the_cost_report_of_recovery_is_short(tmp_path):
    lines = make_trainer(plain_model(), make_args(tmp_path)).cost_report().splitlines()
    assert lines[0] == "Training: 512 tokens in 8 steps of 4 x 16 tokens (1 process x 4 samples x 1 accumulated)"
    assert len(lines) == 2


@pytest.mark.parametrize("quiet", [True, False])
def test_a_run_prints_its_cost_and_a_line_per_log(tmp_path, capsys, quiet):
    args = make_args(tmp_path, max_steps=2, disable_tqdm=quiet, logging_steps=1)
    trainer = make_trainer(plain_model(), args)
    trainer.train()
    shown = "".join(capsys.readouterr())
    assert shown.count("Training: 128 tokens in 2 steps") == 1
    assert shown.count("step 1/2  loss ") == 1
    assert "{'loss'" not in shown
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert trainer.state.epoch == 1.0
    assert (ShearProgressCallback in kinds) is not quiet
    assert (LinePrinterCallback in kinds) is quiet


def test_without_a_bar_the_time_that_is_left_is_told(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    callback, args = LinePrinterCallback(), SimpleNamespace(disable_tqdm=True)
    state = SimpleNamespace(global_step=10, max_steps=210, is_world_process_zero=True)  # resumed at step 10
    callback.on_train_begin(args, state, None)
    for step in range(11, 26):
        now[0] += 3
        state.global_step = step
        callback.on_step_end(args, state, None)
        if step == 20:
            callback.on_log(args, state, None, logs={"loss": 2.0, "learning_rate": 1e-3})
    assert capsys.readouterr().out.splitlines() == [
        "step  11/210  about 10 min left",
        "step  20/210  loss 2.0000  lr 1.00e-03  about 10 min left",
    ]
    now[0] += 30
    callback.on_step_end(args, state, None)
    assert capsys.readouterr().out == "step  25/210  about 15 min left\n"


def test_short_trainings_are_told_without_a_time(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    callback, args = LinePrinterCallback(), SimpleNamespace(disable_tqdm=True)
    state = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True)
    callback.on_train_begin(args, state, None)
    now[0], state.global_step = 100.1, 1
    callback.on_step_end(args, state, None)
    callback.on_log(args, state, None, logs={"loss": 2.0})
    assert capsys.readouterr().out == "step 1/4  loss 2.0000  lr 0.00e+00\n"


# ---- progress -------------------------------------------------------------------------------------------------


def test_a_line_for_a_training_log():
    logs = {"loss": 2.34567, "learning_rate": 3e-4, "grad_norm": 1.234, "lagrangian_loss": -0.5}
    assert log_line(7, 1000, logs) == "step    7/1000  loss 2.3457  lr 3.00e-04  grad norm 1.23  lagrangian -0.5000"
    assert log_line(7, 9, {"loss": 2.0, "learning_rate": 0.1}) == "step 7/9  loss 2.0000  lr 1.00e-01"


def test_a_line_for_an_evaluation():
    logs = {
        "eval_loss": 3.0,
        "eval_a_loss": 2.5,
        "eval_b_loss": 3.5,
        "mixture/a": 0.25,
        "mixture/b": 0.75,
        "num_tokens": 100,
    }
    head = "step 10/20  evaluation loss 3.0000 = a 2.500 (25%), b 3.500 (75%)"
    assert log_line(10, 20, logs) == head
    sizes = {"hidden_size": 48.04, "num_key_value_heads": 2.0}
    logs |= {f"expected/{name}": size for name, size in sizes.items()}
    logs |= {f"target/{name}": 48.0 for name in sizes}
    assert log_line(10, 20, logs) == head + "\n  expected/target hidden 48.0/48.0, KV heads 2.0/48.0"


def test_other_logs_have_no_line():
    assert log_line(1, 2, {}) == ""
    assert (
        log_line(2, 2, {"train_runtime": 3.0, "train_loss": 2.0}) == "step 2/2  done in 3 s, mean training loss 2.0000"
    )
    assert log_line(1, 2, {"eval_loss": 2.0}) == ""


# ---- history --------------------------------------------------------------------------------------------------


def test_the_history_is_read_back_from_the_log(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 4, "hardening_ratio": 0.0}
    trainer = make_trainer(masked_model("hard_concrete"), make_args(tmp_path, **changes))
    trainer.train()
    rows = evaluation_history(trainer.state.log_history, "mask_learning", ["books", "code", "wiki"])
    logs = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert [row["num_tokens"] for row in rows] == [4 * 4 * LENGTH, 8 * 4 * LENGTH]
    for row, log in zip(rows, logs, strict=True):
        assert row["stage"] == "mask_learning"
        assert row["loss"] == {name: log[f"eval_{name}_loss"] for name in ("books", "code", "wiki")}
        assert log["eval_loss"] == pytest.approx(sum(row["loss"].values()) / 3)
        assert sum(row["mixture_weights"].values()) == pytest.approx(1.0)
        assert row["reference_loss"] == trainer.domains.reference_losses
        assert row["target_shape"] == pytest.approx(TARGET)
        assert row["eval_tokens"] == log["eval_tokens"]
        assert row["eval_seconds"] == log["eval_runtime"] >= 0
    masks = trainer.model.masks
    assert rows[-1]["expected_shape"] == pytest.approx(masks.expected_shape(), abs=1e-4)
    for index, kind in enumerate(masks.constrained):
        assert logs[-1][f"multiplier_linear/{kind.name}"] == masks.multiplier_linear[index].item() < 0
        assert logs[-1][f"multiplier_quadratic/{kind.name}"] == masks.multiplier_quadratic[index].item() > 0
    assert evaluation_history([{"eval_loss": 1.0}, {"loss": 2.0}], "recovery", ["books"]) == []


# ---- masks ----------------------------------------------------------------------------------------------------


def test_the_mask_report_compares_sizes_with_the_target(tmp_path):
    masks = masked_model("hard_concrete").masks  # log_alpha starts at 5: nearly everything is expected to stay
    report = mask_report(masks)
    assert report["expected_shape"]["hidden_size"] == pytest.approx(18, abs=0.05)
    assert report["gap"]["hidden_size"] == pytest.approx((18 - 12) / 12, abs=0.01)
    assert report["gap"]["num_hidden_layers"] == pytest.approx(0.5, abs=0.01)
    assert report["kept_below_half"] == dict.fromkeys(TARGET, 0)
    assert max(mask_report(masked_model("relaxed_topk").masks)["gap"].values()) < 1e-5


def test_a_gap_beyond_the_tolerance_is_warned_of(recwarn):
    expected = dict.fromkeys(TARGET, 10.0)
    report = {"expected_shape": expected, "gap": dict.fromkeys(TARGET, 0.01) | {"hidden_size": 0.25}}
    text = (r"not met the target: expected hidden_size 10.0 \(25.0% off\)\. What is cut differs from what was trained\."
            " Learn masks for more steps.*`shape_gap_tolerance`")  # fmt: skip
    with pytest.warns(UserWarning, match=text):
        warn_if_off_target(report, 0.01)
    warn_if_off_target(report, 0.25)
    assert len(recwarn) == 0


def test_masks_are_reported_once_just_before_they_harden(tmp_path):
    model = masked_model("hard_concrete")
    args = make_args(tmp_path, hardening_ratio=0.5, shape_gap_tolerance=0.01, mask_learning_rate=0.0)
    trainer = make_trainer(model, args)
    with pytest.warns(UserWarning, match="The learned masks have not met the target") as caught:
        trainer.train()
    assert len(caught) == 1
    trainer.mask_learning.set_phase(3)  # masks did not learn here; 3 is the last step before hardening
    assert trainer.mask_report.items() >= mask_report(model.masks).items()


def test_masks_that_never_harden_are_reported_at_the_end(tmp_path):
    model = masked_model("relaxed_topk")
    trainer = make_trainer(model, make_args(tmp_path, hardening_ratio=0.0, shape_gap_tolerance=0.01))
    trainer.train()
    assert trainer.mask_report.items() >= mask_report(model.masks).items()
