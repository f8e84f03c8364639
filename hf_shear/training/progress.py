"""Progress that fits a terminal: one short line per log, in place of a dict with dozens of entries."""

from __future__ import annotations

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback


class ShearProgressCallback(ProgressCallback):
    """The progress bar of transformers, with logs as readable lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            line = log_line(state.global_step, state.max_steps, logs or {})
            if line:
                self.training_bar.write(line)


class LinePrinterCallback(TrainerCallback):
    """The same lines without a bar (``disable_tqdm``), where transformers would print dicts."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            tell(args, log_line(state.global_step, state.max_steps, logs or {}))


def tell(args, text: str) -> None:
    """Print, above the progress bar if there is one."""
    if not text:
        return
    if args.disable_tqdm:
        print(text, flush=True)
    else:
        tqdm.write(text)


class EpochCallback(TrainerCallback):
    """Keeps ``state.epoch`` the share of the run that is done, also after a resume without replayed data."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps


def log_line(step: int, max_steps: int, logs: dict) -> str:
    """One line for a training log, an evaluation or the end; empty for anything else."""
    head = f"step {step:>{len(str(max_steps))}}/{max_steps}"
    if "loss" in logs:
        line = f"{head}  loss {logs['loss']:.4f}  lr {logs.get('learning_rate', 0.0):.2e}"
        if "grad_norm" in logs:
            line += f"  grad norm {logs['grad_norm']:.2f}"
        if "divergence" in logs:
            line += f"  cross-entropy {logs['cross_entropy']:.4f}  KL {logs['divergence']:.4f}"
        return line + (f"  lagrangian {logs['lagrangian_loss']:+.4f}" if "lagrangian_loss" in logs else "")
    if "eval_loss" in logs and "num_tokens" in logs:
        domains = [key.removeprefix("mixture/") for key in logs if key.startswith("mixture/")]
        parts = [f"{name} {logs[f'eval_{name}_loss']:.3f} ({logs['mixture/' + name]:.0%})" for name in domains]
        line = f"{head}  held-out {logs['eval_loss']:.4f} = " + ", ".join(parts)
        sizes = [
            f"{label} {logs['expected/' + name]:.1f}/{logs['target/' + name]:.1f}"
            for name, label in _SHORT_NAMES.items()
            if "expected/" + name in logs
        ]
        return line + ("\n  expected/target " + ", ".join(sizes) if sizes else "")
    if "law/final_loss" in logs:  # of hf_shear.scaling_law.ScalingLawCallback
        gain = logs["law/doubling_gain"]
        return f"{head}  predicted final loss {logs['law/final_loss']:.4f}; twice the tokens would gain {gain:.4f}"
    if "train_runtime" in logs:
        return f"{head}  done in {logs['train_runtime']:.0f} s, mean training loss {logs['train_loss']:.4f}"
    return ""


_SHORT_NAMES = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "intermediate_size": "MLP",
    "num_experts": "experts",
}
