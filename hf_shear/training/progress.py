"""Progress that fits a terminal: one short line per log, in place of a dict with dozens of entries."""

from __future__ import annotations

import time

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..core import BETWEEN_LINES, WORTH_TELLING, duration_text
from .history import EXPECTED, MIXTURE, TARGET


class ShearProgressCallback(ProgressCallback):
    """The progress bar of transformers, with logs as readable lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            line = log_line(state.global_step, state.max_steps, logs or {})
            if line:
                self.training_bar.write(line)


class LinePrinterCallback(TrainerCallback):
    """The same lines without a bar (``disable_tqdm``), where transformers would print dicts, with the time that is left.

    The first step says how long the training will take. After it there is a line of the log, or one of the step alone, at
    least each half minute.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self._begun = self._told = time.perf_counter()
        self._first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        now, is_first = time.perf_counter(), state.global_step == self._first_step + 1
        seconds = (now - self._begun) / (state.global_step - self._first_step) * (state.max_steps - self._first_step)
        if state.is_world_process_zero and seconds >= WORTH_TELLING and (is_first or now - self._told >= BETWEEN_LINES):
            self._tell(args, state, _head(state.global_step, state.max_steps))

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = log_line(state.global_step, state.max_steps, logs or {})
        if state.is_world_process_zero and line:
            self._tell(args, state, line, "loss" in (logs or {}))

    def _tell(self, args, state, line: str, with_time: bool = True) -> None:
        self._told, done = time.perf_counter(), state.global_step - self._first_step
        left = (self._told - self._begun) / max(done, 1) * (state.max_steps - state.global_step)
        tell(args, f"{line}  about {duration_text(left)} left" if with_time and done and left >= 1 else line)


def tell(args, text: str) -> None:
    """Print, above the progress bar if there is one."""
    if not text:
        return
    if args.disable_tqdm:
        print(text, flush=True)
    else:
        tqdm.write(text)


def log_line(step: int, max_steps: int, logs: dict) -> str:
    """One line for a training log, an evaluation or the end; empty for anything else."""
    head = _head(step, max_steps)
    if "loss" in logs:
        line = f"{head}  loss {logs['loss']:.4f}  lr {logs.get('learning_rate', 0.0):.2e}"
        if "grad_norm" in logs:
            line += f"  grad norm {logs['grad_norm']:.2f}"
        if "divergence" in logs:
            line += f"  cross-entropy {logs['cross_entropy']:.4f}  KL {logs['divergence']:.4f}"
        return line + (f"  lagrangian {logs['lagrangian_loss']:+.4f}" if "lagrangian_loss" in logs else "")
    if "eval_loss" in logs and "num_tokens" in logs:
        domains = [key.removeprefix(MIXTURE) for key in logs if key.startswith(MIXTURE)]
        parts = [f"{name} {logs[f'eval_{name}_loss']:.3f} ({logs[MIXTURE + name]:.0%})" for name in domains]
        line = f"{head}  evaluation loss {logs['eval_loss']:.4f} = " + ", ".join(parts)
        sizes = [
            f"{label} {logs[EXPECTED + name]:.1f}/{logs[TARGET + name]:.1f}"
            for name, label in _SHORT_NAMES.items()
            if EXPECTED + name in logs
        ]
        return line + ("\n  expected/target " + ", ".join(sizes) if sizes else "")
    if "law/final_loss" in logs:  # of hf_shear.scaling_law.ScalingLawCallback
        gain = logs["law/doubling_gain"]
        return f"{head}  predicted final loss {logs['law/final_loss']:.4f}; twice the tokens would gain {gain:.4f}"
    if "train_runtime" in logs:
        return f"{head}  done in {logs['train_runtime']:.0f} s, mean training loss {logs['train_loss']:.4f}"
    return ""


def _head(step: int, max_steps: int) -> str:
    return f"step {step:>{len(str(max_steps))}}/{max_steps}"


_SHORT_NAMES = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "intermediate_size": "MLP",
    "num_experts": "experts",
}
