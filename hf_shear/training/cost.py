"""What a run will cost, told before it starts."""

from __future__ import annotations

import math
import warnings

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from .progress import tell

ADAM_STATES = 2  # first and second moment, each as large as the parameter


def num_evaluations(args) -> int:
    """Evaluations that happen during training."""
    if args.eval_strategy == IntervalStrategy.NO:
        return 0
    if args.eval_strategy != IntervalStrategy.STEPS:
        return 1
    every = args.eval_steps if args.eval_steps >= 1 else math.ceil(args.eval_steps * args.max_steps)
    return math.ceil(args.max_steps / int(every))  # transformers evaluates after the last step, too


def evaluation_samples_per_domain(trainer) -> int:
    """Held-out samples per domain and evaluation that ``eval_token_share`` pays for; at least one.

    The budget is eval_token_share x training tokens over all evaluations (with the one for reference losses, where
    they are to be measured) and over the domains, each of which gets the same number.
    """
    args = trainer.args
    samples = args.eval_token_share * args.max_steps * args.samples_per_step()
    return max(int(samples / _all_evaluations(args) / len(trainer.eval_dataset)), 1)


def _all_evaluations(args) -> int:
    return num_evaluations(args) + measures_references(args)


def measures_references(args) -> bool:
    """Whether training begins with an evaluation of the model as it comes."""
    return args.dynamic_batches and not args.reference_losses


def memory_estimate(trainer) -> dict[str, int]:
    """Bytes on one device without sharding: weights, gradients, optimizer, and the layers' activations.

    Activations: what sdpa attention and the MLP save per token and layer, or one hidden state per token and layer with
    gradient checkpointing, plus float32 logits and their gradient. An estimate.
    """
    model, args = trainer.model, trainer.args
    config, parameters = model.config, sum(p.numel() for p in model.parameters())
    size = next(model.parameters()).element_size()
    tokens = args.train_batch_size * trainer.sample_length
    per_layer = config.hidden_size
    if not args.activation_checkpointing:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries, groups = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        # Saved for backward: residuals and normed inputs (fp32 and cast), q, k, v and their rotations, attention
        # output, and gate, silu(gate), up and their product.
        per_layer = 6 * config.hidden_size + 3 * queries + 4 * groups + 4 * config.intermediate_size
    return {
        "weights": parameters * size,
        "gradients": parameters * size,
        "optimizer": parameters * size * ADAM_STATES,
        "activations": tokens * per_layer * config.num_hidden_layers * size + tokens * config.vocab_size * 4 * 2,
    }


def cost_report(trainer) -> str:
    """Tokens, steps, evaluation and memory, in a few lines."""
    args = trainer.args
    per_step = args.samples_per_step() * trainer.sample_length
    stage = "Mask learning" if trainer.learns_masks else "Training"
    lines = [
        f"{stage}: {args.max_steps * per_step:,} tokens in {args.max_steps:,} steps of {args.samples_per_step()} x"
        f" {trainer.sample_length} tokens ({args.world_size} process(es) x {args.train_batch_size} samples x"
        f" {args.gradient_accumulation_steps} accumulated)"
    ]
    if trainer.learns_masks:
        masks, schedule = trainer.masked_model.masks, trainer.schedule
        lines.append(
            f"  masks: {masks.settings.method}, {sum(p.numel() for p in masks.log_alpha.values()):,} units towards"
            f" {masks.target}; "
            + (
                f"hardened over the last {schedule.hardening_steps} steps"
                if schedule.hardening_steps
                else "never hardened"
            )
        )
    if trainer.eval_dataset and num_evaluations(args):
        per_domain = evaluation_samples_per_domain(trainer)
        used = sum(min(per_domain, len(dataset)) for dataset in trainer.eval_dataset.values()) * trainer.sample_length
        total = used * _all_evaluations(args)
        lines.append(
            f"  evaluation: {num_evaluations(args)} x {used:,} held-out tokens"
            + (f" and {used:,} for reference losses" if measures_references(args) else "")
            + f", {total / (args.max_steps * per_step):.1%} of the training tokens"
        )
    parts = memory_estimate(trainer)
    text = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())
    lines.append(f"  memory per device, unsharded, about {_gib(sum(parts.values()))}: {text}")
    return "\n".join(lines)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"


class CostCallback(TrainerCallback):
    """Prints the cost report when training starts."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            tell(args, cost_report(self.trainer))
        trainer = self.trainer
        if trainer.eval_dataset and num_evaluations(args) and evaluation_samples_per_domain(trainer) == 1:
            share = len(trainer.eval_dataset) * _all_evaluations(args) / (args.max_steps * args.samples_per_step())
            if share > args.eval_token_share * 1.001:
                warnings.warn(
                    f"Even one held-out sample per domain spends {share:.1%} of the training tokens on evaluation, more"
                    f" than `eval_token_share` ({args.eval_token_share:.1%}). Evaluate less often (`eval_steps`), or"
                    " raise `eval_token_share` to silence this.",
                    UserWarning,
                    stacklevel=2,
                )
