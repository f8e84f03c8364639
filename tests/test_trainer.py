"""ShearTrainer: what it optimises, what it reports, how the masks harden, and when it stops."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from training_helpers import (
    DOMAINS,
    LENGTH,
    TARGET,
    differences,
    held_out_domains,
    make_args,
    make_trainer,
    masked_model,
    masks_of,
    plain_model,
    stop_workers,
    train_domains,
    weights_of,
)
from transformers import LlamaForCausalLM, TrainerCallback

from hf_shear import DynamicBatchSampler, MaskSettings, ShearingLlamaForCausalLM, ShearTrainer, slice_model
from hf_shear.data import update_mixture_weights
from hf_shear.masks.hard_concrete import PAPER_LOG_ALPHA_BOUND
from hf_shear.training import PAPER_MASK_LEARNING, TrainingDivergedError, evaluate_domains
from hf_shear.training.schedules import set_peak_rate

NO_DROPOUT = {"attention_dropout": 0.0}
OPEN_MASKS = MaskSettings(method="hard_concrete", log_alpha_start=1.0)  # not saturated, so that gates have gradients


def trained(tmp_path, model, callbacks=None, **changes):
    """A finished run."""
    trainer = make_trainer(model, make_args(tmp_path, **changes), callbacks=callbacks)
    trainer.train()
    return trainer


def next_token_loss(model, input_ids: list) -> torch.Tensor:
    """Mean cross-entropy in the model's present mode, by hand."""
    ids = torch.tensor(input_ids)
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


# ---- the loss and the Lagrangian ------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """1 x 8, 2 x 4 and 8 x 1 differ by float32 rounding alone, the Lagrangian included."""
    runs = {}
    for accumulated in (1, 2, 8):
        model = masked_model(OPEN_MASKS, **NO_DROPOUT)
        with torch.no_grad():
            model.masks.multiplier_linear.fill_(-0.5)
        runs[accumulated] = trained(
            tmp_path,
            model,
            max_steps=5,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            eval_strategy="steps",
            eval_steps=2,
            hardening_ratio=0.0,
            adam_epsilon=1e-3,  # keeps a gradient that is zero but for rounding from becoming a whole step
        )
    logs = {accumulated: [row for row in run.state.log_history if "loss" in row] for accumulated, run in runs.items()}
    expected = weights_of(runs[1].model)
    for accumulated in (2, 8):
        batches = [record["input_ids"] for record in runs[accumulated].records]
        joined = [sum(batches[start : start + accumulated], []) for start in range(0, len(batches), accumulated)]
        assert joined == [record["input_ids"] for record in runs[1].records]
        for found, wanted in zip(logs[accumulated], logs[1], strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
            assert found["lagrangian_loss"] == pytest.approx(wanted["lagrangian_loss"], abs=2e-5)
        maximum, mean = differences(runs[accumulated].model, expected)
        assert maximum < 2e-5
        assert mean < 2e-7
    start = weights_of(masked_model(OPEN_MASKS, **NO_DROPOUT))
    assert differences(runs[1].model, start)[1] > 1e-3  # the bounds above are far below what training changed


def test_the_reported_loss_has_no_lagrangian_in_it(tmp_path):
    model = masked_model(OPEN_MASKS, **NO_DROPOUT)
    with torch.no_grad():
        model.masks.multiplier_linear.fill_(-3.0)
        model.masks.multiplier_quadratic.fill_(7.0)
    trainer = make_trainer(model, make_args(tmp_path, max_steps=1, gradient_accumulation_steps=2, hardening_ratio=0))
    model.train()
    trainer._set_phase(0)
    penalty = model.masks.lagrangian().item()
    start = weights_of(model)
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert log["lagrangian_loss"] == pytest.approx(penalty, rel=1e-6)
    assert abs(penalty) > 0.1
    trained_ids = [record["input_ids"] for record in trainer.records]
    model.load_state_dict(start)
    model.train()
    trainer._set_phase(0)
    expected = torch.stack([next_token_loss(model, ids) for ids in trained_ids]).mean().item()
    assert log["loss"] == pytest.approx(expected, abs=1e-5)
    assert sum(record["loss"] for record in trainer.records) == pytest.approx(expected, abs=1e-5)


def test_the_lagrangian_is_logged_as_a_mean_over_steps(tmp_path):
    options = {"max_steps": 6, "hardening_ratio": 0.0, "budget_warmup_ratio": 0.5}
    single = trained(tmp_path, masked_model(OPEN_MASKS), logging_steps=1, **options)
    triple = trained(tmp_path, masked_model(OPEN_MASKS), logging_steps=3, **options)
    each = [row["lagrangian_loss"] for row in single.state.log_history if "loss" in row]
    means = [row["lagrangian_loss"] for row in triple.state.log_history if "loss" in row]
    assert len(set(each)) == 6
    assert means == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-5)
    without = trained(tmp_path, masked_model("relaxed_topk"), max_steps=1)
    assert all("lagrangian_loss" not in row for row in without.state.log_history)


def test_the_evaluation_loss_has_no_lagrangian_in_it(tmp_path):
    model = masked_model(OPEN_MASKS)
    with torch.no_grad():
        model.masks.multiplier_linear.fill_(-100.0)
    held_out = held_out_domains()
    trainer = make_trainer(model, make_args(tmp_path), held_out=held_out)
    model.train()
    metrics = trainer.evaluate()
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = {name: next_token_loss(model, dataset["input_ids"]).item() for name, dataset in held_out.items()}
    for name, loss in expected.items():
        assert metrics[f"eval_{name}_loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(expected.values()) / 3, abs=1e-5)
    assert metrics["eval_tokens"] == 3 * 4 * (LENGTH - 1)
    other = trainer.evaluate({"books": held_out["books"]}, metric_key_prefix="test")
    assert other["test_loss"] == other["test_books_loss"] == metrics["eval_books_loss"]
    with pytest.raises(ValueError, match="`eval_dataset` must be a dict of packed samples per domain"):
        trainer.evaluate(held_out["books"])


# ---- optimisation ---------------------------------------------------------------------------------------------


class MaskGradients(TrainerCallback):
    """Remembers the gradients of masks and multipliers that an optimizer step uses."""

    def __init__(self, masks):
        self.masks, self.seen = masks, {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen = {name: parameter.grad.clone() for name, parameter in self.masks.named_parameters()}


def test_multipliers_ascend_by_the_gap_unclipped(tmp_path):
    """The gradient that descends is -gap for lambda_1 and -gap^2 for lambda_2; AdamW's first step is the rate."""
    model = masked_model(OPEN_MASKS)
    masks, gradients = model.masks, MaskGradients(model.masks)
    gaps = [masks.expected_sparsity(kind).detach() - masks.target_sparsity(kind) for kind in masks.constrained]
    assert len(gaps) == 5
    trained(tmp_path, model, callbacks=[gradients], max_steps=1, multiplier_learning_rate=2.0, max_grad_norm=1e-6,
            hardening_ratio=0.0)  # fmt: skip
    torch.testing.assert_close(gradients.seen["multiplier_linear"], -torch.stack([gap.mean() for gap in gaps]))
    torch.testing.assert_close(
        gradients.seen["multiplier_quadratic"], -torch.stack([gap.square().mean() for gap in gaps])
    )
    signs = torch.stack([gap.mean().sign() for gap in gaps])
    torch.testing.assert_close(masks.multiplier_linear.detach(), 2.0 * signs)


def _one_sgd_step(tmp_path, **changes) -> tuple[dict, dict]:
    """Changes of weights by one step with rate 1, and the gradients of masks and multipliers it used."""
    model = masked_model(OPEN_MASKS, **NO_DROPOUT)
    start, gradients = weights_of(model), MaskGradients(model.masks)
    trained(tmp_path, model, callbacks=[gradients], optim="sgd", max_steps=1, hardening_ratio=0.0, learning_rate=1.0,
            lr_scheduler_type="constant", **changes)  # fmt: skip
    steps = {name: value - start[name] for name, value in weights_of(model).items()}
    return {name: step for name, step in steps.items() if not name.startswith("masks.")}, gradients.seen


def _norm(*groups: dict) -> float:
    return math.sqrt(sum(step.double().square().sum().item() for group in groups for step in group.values()))


def test_weights_are_clipped_without_masks(tmp_path):
    free_weights, free_masks = _one_sgd_step(tmp_path, max_grad_norm=1e6)
    weights, masks = _one_sgd_step(tmp_path, max_grad_norm=0.01)
    assert _norm(free_weights) > 0.1
    assert _norm(weights) == pytest.approx(0.01, rel=1e-3)
    for name, gradient in free_masks.items():
        assert torch.equal(masks[name], gradient)
    weights, masks = _one_sgd_step(tmp_path, max_grad_norm=0.01, clip_masks=True)
    assert _norm(weights, masks) == pytest.approx(0.01, rel=1e-3)
    shrunk = 0.01 / _norm(free_weights, free_masks)
    assert _norm(masks) == pytest.approx(shrunk * _norm(free_masks), rel=1e-3)


def test_masks_and_multipliers_do_not_decay(tmp_path):
    plain, decayed = masked_model(OPEN_MASKS, **NO_DROPOUT), masked_model(OPEN_MASKS, **NO_DROPOUT)
    trained(tmp_path, plain, max_steps=1)
    trainer = trained(tmp_path, decayed, max_steps=1, weight_decay=10.0)
    assert masks_of(plain) == masks_of(decayed)
    same, other = weights_of(plain), weights_of(decayed)
    assert torch.equal(same["model.norm.weight"], other["model.norm.weight"])
    assert not torch.equal(same["lm_head.weight"], other["lm_head.weight"])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [10.0, 0.0]
    groups = [*trainer.optimizer.param_groups, *trainer.mask_optimizer.optimizer.param_groups]
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(id(parameter) for parameter in decayed.parameters())
    assert [group["weight_decay"] for group in trainer.mask_optimizer.optimizer.param_groups] == [0.0, 0.0]


def test_a_plain_model_has_no_mask_optimizer(tmp_path):
    trainer = trained(tmp_path, plain_model(), max_steps=1)
    assert trainer.mask_optimizer is None
    assert trainer.mask_report is None
    assert trainer.schedule is None


# ---- phases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["relaxed_topk", "hard_concrete"])
def test_masks_stand_still_while_they_harden_and_end_binary(tmp_path, method):
    model = masked_model(MaskSettings(method=method, log_alpha_start=0.5))
    trainer = trained(tmp_path, model, max_steps=8, hardening_ratio=0.5, learning_rate=1e-2, lr_scheduler_type="linear")
    assert [record["phase"].optimizer_step for record in trainer.records] == list(range(8))
    assert [record["phase"].hardening for record in trainer.records] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0]
    masks = [record["masks"] for record in trainer.records] + [masks_of(model)]
    assert all(before != after for before, after in zip(masks[:4], masks[1:5], strict=True))
    assert all(later == masks[4] for later in masks[4:])
    soft, hard = trainer.records[3]["hidden_gates"], trainer.records[-1]["hidden_gates"]
    assert ((soft > 0.0) & (soft < 1.0)).any()
    assert hard.tolist() == model.masks.kept_units()["hidden"].float().tolist()
    assert hard.sum() == TARGET["hidden_size"]
    gates = model.masks.deterministic()
    assert all(bool(((gate == 0) | (gate == 1)).all()) for gate in gates.values())


@pytest.mark.parametrize("draw", ["per_step", "per_micro_batch"])
def test_micro_batches_share_a_draw_or_have_their_own(tmp_path, draw):
    model = masked_model(MaskSettings(method="hard_concrete", log_alpha_start=0.0, draw=draw))
    trainer = trained(tmp_path, model, max_steps=2, gradient_accumulation_steps=2, hardening_ratio=0.0)
    assert [record["phase"].micro_batch for record in trainer.records] == [0, 1, 0, 1]
    gates = [record["hidden_gates"].tolist() for record in trainer.records]
    assert (gates[0] == gates[1], gates[2] == gates[3]) == ((draw == "per_step"),) * 2
    assert gates[0] != gates[2]


def test_the_masks_rate_is_constant_or_the_weights(tmp_path):
    changes = {"hardening_ratio": 0.25, "warmup_steps": 2, "lr_scheduler_type": "linear"}
    trainer = trained(tmp_path, masked_model(), **changes)
    logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert logged == pytest.approx([0, 5e-3, 1e-2, *(1e-2 * k / 6 for k in (5, 4, 3, 2, 1))])
    assert trainer.mask_optimizer.rates["masks"] == 0.05
    assert [trainer.mask_optimizer.factor(step) for step in range(8)] == [1.0] * 6 + [0.0] * 2
    trainer = trained(tmp_path, masked_model(), **changes, mask_scheduler="weights")
    assert [1e-2 * trainer.mask_optimizer.factor(step) for step in range(8)] == pytest.approx(logged)


def test_the_papers_mask_learning(tmp_path):
    """End to end; log_alpha never leaves +- ln(100), whatever its learning rate of 1."""
    model = masked_model(MaskSettings.paper())
    trainer = trained(tmp_path, model, max_steps=10, eval_strategy="steps", eval_steps=5, **PAPER_MASK_LEARNING)
    rates = [[row["learning_rate"] for row in trainer.state.log_history if "loss" in row]]
    assert rates[0][0] == 0.0 and max(rates[0]) == pytest.approx(1e-2)
    assert all(record["phase"].hardening == 0 for record in trainer.records)
    assert [record["phase"].budget_progress for record in trainer.records] == [0.0, 0.5] + [1.0] * 8
    bound = PAPER_LOG_ALPHA_BOUND + 1e-6
    for record in [*trainer.records, {"masks": masks_of(model)}]:
        for name, values in record["masks"].items():
            if "log_alpha" in name:
                assert torch.tensor(values).abs().max() <= bound, (name, record.get("step"))
    sliced, _ = slice_model(model)
    assert sliced.config.hidden_size == TARGET["hidden_size"]
    found, _ = evaluate_domains(sliced, held_out_domains(), 4)
    expected, _ = evaluate_domains(model, held_out_domains(), 4)
    assert found == pytest.approx(expected, abs=1e-5)
    assert trainer.mask_report["kept_below_half"].keys() == TARGET.keys()


# ---- dynamic batches ------------------------------------------------------------------------------------------


def _evaluations(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "eval_loss" in row]


def _mixture(row: dict) -> dict[str, float]:
    return {name: row[f"mixture/{name}"] for name in train_domains()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_weights_follow_the_rule_and_the_very_next_batch_follows_them(tmp_path, num_workers):
    references = {"books": 4.0, "code": 3.0, "wiki": 9.0}
    start = {"books": 1, "code": 1, "wiki": 2}
    trainer = trained(
        tmp_path, plain_model(), max_steps=8, eval_strategy="steps", eval_steps=3, reference_losses=references,
        mixture_weights=start, dataloader_num_workers=num_workers, gradient_accumulation_steps=2, data_seed=11,
        mixture_floor=0.05, mixture_ceiling=0.6, clamp_excess=False,
    )  # fmt: skip
    if num_workers:
        stop_workers(trainer)
    assert [row["step"] for row in _evaluations(trainer)] == [3, 6, 8]
    weights = {"books": 0.25, "code": 0.25, "wiki": 0.5}
    options = {"clamp_excess": False, "floor": 0.05, "ceiling": 0.6}
    weights_at = {0: weights}
    for row in _evaluations(trainer):
        losses = {name: row[f"eval_{name}_loss"] for name in references}
        weights = update_mixture_weights(weights, losses, references, **options)
        assert _mixture(row) == weights
        assert {name: row[f"reference/{name}"] for name in references} == references
        weights_at[row["step"]] = weights
    train = train_domains()
    samples = [sample for dataset in train.values() for sample in dataset["input_ids"]]
    sampler = DynamicBatchSampler({name: len(dataset) for name, dataset in train.items()}, 8, start, seed=11)
    for step in range(8):
        if step in weights_at:
            sampler.set_mixture_weights(weights_at[step])
        batch = sum((record["input_ids"] for record in trainer.records if record["step"] == step), [])
        assert batch == [samples[index] for index in sampler.peek_global_batch()], step
        sampler.commit()


def test_reference_losses_are_the_sources_own(tmp_path):
    """All gates open, however closed the masks are, and before any training."""
    trainer = trained(tmp_path, masked_model("relaxed_topk"), max_steps=2, eval_strategy="steps", eval_steps=2)
    judged = trainer._training_eval_dataset()
    expected, _ = evaluate_domains(plain_model(), judged, 8)
    assert trainer.reference_losses == pytest.approx(expected, abs=1e-5)
    masked, _ = evaluate_domains(masked_model("relaxed_topk"), judged, 8)
    assert max(abs(masked[name] - expected[name]) for name in expected) > 0.05
    plain = trained(tmp_path, plain_model(), max_steps=2, eval_strategy="steps", eval_steps=2)
    assert plain.reference_losses == pytest.approx(expected, abs=1e-6)


def test_proportions_are_constant_when_asked_for(tmp_path):
    start = {"books": 0.5, "code": 0.25, "wiki": 0.25}
    trainer = trained(tmp_path, plain_model(), dynamic_batches=False, mixture_weights=start, eval_strategy="steps",
                      eval_steps=2, max_steps=6)  # fmt: skip
    assert [_mixture(row) for row in _evaluations(trainer)] == [start] * 3
    assert all(record["mixture_weights"] == start for record in trainer.records)
    assert trainer.reference_losses is None
    assert trainer.stage_record("recovery")["history"][0]["mixture_weights"] == start
    assert "reference_loss" not in trainer.stage_record("recovery")["history"][0]


# ---- NaN ------------------------------------------------------------------------------------------------------


def _poison(trainer, name: str, step: int, value: float = math.nan) -> None:
    """Make the gradient of one parameter not finite in one step."""
    parameter = dict(trainer.model.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient * (value if trainer.state.global_step == step else 1.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model.layers.1.mlp.up_proj.weight", {}),
        ("model.layers.1.mlp.up_proj.weight", {"max_grad_norm": 0.0}),
        ("masks.log_alpha_hidden", {"logging_strategy": "no"}),
        ("masks.multiplier_quadratic", {"gradient_accumulation_steps": 2}),
    ],
)
def test_a_nan_stops_the_run_before_another_checkpoint(tmp_path, name, changes):
    trainer = make_trainer(
        masked_model(OPEN_MASKS), make_args(tmp_path, save_strategy="steps", save_steps=1, **changes)
    )
    _poison(trainer, name, step=3)
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith("The loss or a gradient became NaN or infinite during mask learning, by step 4.")
    assert (
        f"The last good checkpoint is {tmp_path / 'checkpoint-3'}: resume from it with a lower `learning_rate`" in text
    )
    assert "`learning_rate` (0.01) or `mask_learning_rate` (0.05)" in text
    assert ("`max_grad_norm` (1.0)" in text) is ("max_grad_norm" not in changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    tensors = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    reloaded = ShearingLlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    assert math.isfinite(next_token_loss(reloaded.eval(), trainer.records[0]["input_ids"]).item())


def test_a_nan_is_found_steps_later_where_nothing_is_logged_between(tmp_path):
    args = make_args(tmp_path, save_strategy="steps", save_steps=6, logging_steps=6)
    trainer = make_trainer(plain_model(), args)
    _poison(trainer, "lm_head.weight", step=2, value=math.inf)
    (tmp_path / "checkpoint-3").mkdir()  # of another run, which it must not name
    text = (
        "during training, by step 6. No checkpoint was written before that: start again"
        r" with a lower `learning_rate` \(0.01\) or `max_grad_norm` \(1.0\)\.$"
    )
    with pytest.raises(TrainingDivergedError, match=text):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_lower_rate_is_obeyed_on_resume(tmp_path, capsys):
    """What a NaN's message asks for: resume with lower rates. All else of the checkpoint stays."""
    changes = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "linear", "warmup_steps": 0}
    trained(tmp_path, masked_model(), **changes)
    checkpoint = str(tmp_path / "checkpoint-4")
    lower = make_trainer(
        masked_model(), make_args(tmp_path, **changes, learning_rate=1e-3, mask_learning_rate=0.0), callbacks=None
    )
    capsys.readouterr()
    before = ShearingLlamaForCausalLM.from_pretrained(checkpoint).masks.log_alpha_hidden
    lower.train(resume_from_checkpoint=checkpoint)
    shown = capsys.readouterr().out
    assert "The checkpoint's learning rate of weights was 0.01; it goes on with 0.001." in shown
    assert "The checkpoint's learning rate of masks was 0.05; it goes on with 0." in shown
    rates = [row["learning_rate"] for row in lower.state.log_history if "learning_rate" in row and row["step"] > 4]
    assert rates == pytest.approx([1e-3 * (8 - step) / 8 for step in range(4, 8)])  # the schedule goes on
    assert torch.equal(lower.model.masks.log_alpha_hidden, before)


def test_another_schedule_cannot_change_its_rate_on_resume():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    set_peak_rate(scheduler, optimizer, 0.1)
    with pytest.raises(ValueError, match="at 0.1, now 0.2 is asked for, but a resumed ReduceLROnPlateau cannot"):
        set_peak_rate(scheduler, optimizer, 0.2)


def test_the_evaluation_for_references_is_counted(tmp_path):
    trainer = trained(tmp_path, plain_model(), eval_strategy="steps", eval_steps=4)
    record = trainer.stage_record("recovery")
    assert record["reference_tokens"] == record["history"][0]["eval_tokens"] > 0
    given = trained(tmp_path, plain_model(), eval_strategy="steps", eval_steps=4,
                    reference_losses=trainer.reference_losses)  # fmt: skip
    assert given.stage_record("recovery")["reference_tokens"] == 0


def test_a_nan_in_the_last_step_is_found_where_nothing_is_logged(tmp_path):
    trainer = make_trainer(plain_model(), make_args(tmp_path, logging_strategy="no", max_steps=3))
    _poison(trainer, "lm_head.weight", step=2)
    with pytest.raises(TrainingDivergedError, match="by step 3"):
        trainer.train()


# ---- what may be asked of it ----------------------------------------------------------------------------------


def test_num_tokens_sets_the_steps(tmp_path):
    args = make_args(tmp_path, max_steps=-1, num_tokens=3 * 8 * LENGTH + 1, gradient_accumulation_steps=2)
    trainer = make_trainer(plain_model(), args)
    trainer.train()
    assert trainer.state.global_step == args.max_steps == 4
    assert trainer.tokens_seen() == 4 * 8 * LENGTH
    assert trainer.state.epoch == 1.0
    assert trainer.stage_record("recovery")["tokens"] == 4 * 8 * LENGTH


def test_tokens_and_steps_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="`num_tokens=100` is 2 steps, but `max_steps` is 7. Give one of the two"):
        make_trainer(plain_model(), make_args(tmp_path, max_steps=7, num_tokens=100))
    args = make_args(tmp_path, max_steps=-1, num_tokens=100)
    assert make_trainer(plain_model(), args).args.max_steps == make_trainer(plain_model(), args).args.max_steps == 2


def test_masks_that_were_not_settled_are_warned_of(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = make_trainer(masked_model(), make_args(tmp_path), callbacks=[Stop()])
    with pytest.warns(UserWarning, match="Mask learning stopped at step 3 of 8, before its masks were settled"):
        trainer.train()


def test_predictions_are_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="`evaluate` gives the loss of each domain"):
        make_trainer(plain_model(), make_args(tmp_path)).predict(held_out_domains())


def test_training_needs_data_and_an_end(tmp_path):
    endless = make_trainer(plain_model(), make_args(tmp_path, max_steps=-1))
    with pytest.raises(ValueError, match="draws batches without end, so it needs `num_tokens` .or `max_steps`."):
        endless.train()
    args = make_args(tmp_path)
    without = ShearTrainer(plain_model(), args, eval_dataset=held_out_domains())
    assert without.evaluate()["eval_tokens"] == 3 * 4 * (LENGTH - 1)
    with pytest.raises(ValueError, match="ShearTrainer needs `train_dataset`, a dict of packed samples per domain"):
        without.train()


def test_training_works_with_gradient_checkpointing(tmp_path):
    changes = {"max_steps": 3}
    expected = trained(tmp_path, masked_model("relaxed_topk"), **changes)
    found = trained(tmp_path, masked_model("relaxed_topk"), activation_checkpointing=True, **changes)
    assert [record["loss"] for record in found.records] == [record["loss"] for record in expected.records]
    assert differences(found.model, weights_of(expected.model)) == (0.0, 0.0)


def test_the_saved_masked_checkpoint_and_the_plain_one_load_alone(tmp_path):
    trained(tmp_path / "masks", masked_model(), max_steps=1, save_strategy="steps", save_steps=1)
    assert ShearingLlamaForCausalLM.from_pretrained(tmp_path / "masks" / "checkpoint-1").masks.log_alpha
    trained(tmp_path / "plain", plain_model(), max_steps=1, save_strategy="steps", save_steps=1)
    LlamaForCausalLM.from_pretrained(tmp_path / "plain" / "checkpoint-1")


def test_a_run_without_evaluations_has_a_record(tmp_path):
    references = dict.fromkeys(DOMAINS, 3.0)
    trainer = trained(tmp_path, plain_model(), max_steps=1, eval_strategy="no", reference_losses=references)
    assert trainer.stage_record("recovery")["eval_samples"] >= 1
