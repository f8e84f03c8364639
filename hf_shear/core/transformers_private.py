"""Private names of transformers that this library uses: a table of them, and the Trainer's private methods as hooks.

Another release may move a private name without a word. Each stands here with its reason and the releases it was read in,
and ``tests/test_transformers_private.py`` looks for each in the installed one, and for private names that are not here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .errors import UsageError

READ_IN = "5.17 to 5.24"  # releases of transformers


@dataclass(frozen=True)
class PrivateName:
    """A private name of another library.

    Attributes:
        owner: the module, or the class with its module.
        name: of the attribute.
        use: what it is used for.
        parameters: of a method or a function, without self; a last "..." stands for any number more. None for a value.
        read_in: releases of transformers, or of the library that is named there.
        gone_after: a release behind which it is no longer there, and not needed.
    """

    owner: str
    name: str
    use: str
    parameters: tuple[str, ...] | None = None
    read_in: str = READ_IN
    gone_after: str | None = None

    def fault(self) -> str | None:
        """How the installed release differs from the ones that were read, in one line; None if it does not."""
        where = f"`{self.owner}.{self.name}`, read in {self.read_in} and used for {self.use},"
        mend = "Read the new release, and mend hf_shear/core/transformers_private.py and its users."
        module, _, kind = self.owner.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, kind, None) if kind else owner
        if owner is None:
            return f"{where} is gone with its owner. {mend}"
        found = getattr(owner, self.name, None)
        if self.parameters is None:
            there = hasattr(owner, self.name) or f".{self.name}" in inspect.getsource(owner)
            return None if there or self.gone_after is not None else f"{where} is gone. {mend}"
        if found is None:
            return f"{where} is gone. {mend}"
        parameters = tuple(name for name in inspect.signature(found).parameters if name != "self")
        wanted = self.parameters
        if wanted[-1:] == ("...",):
            wanted = wanted[:-1]
            parameters = parameters[: len(wanted)]
        if parameters != wanted:
            return f"{where} takes {', '.join(parameters)} now, no longer {', '.join(self.parameters)}. {mend}"
        return None


_TRAINER, _MODEL, _CONFIG = (
    "transformers.trainer:Trainer",
    "transformers:PreTrainedModel",
    "transformers:PretrainedConfig",
)
_LOG = ("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate")

PRIVATE_NAMES = (
    # ---- TrainerHooks, below
    PrivateName(_TRAINER, "_prepare_for_training", "what starts once the weights are loaded, and once they are wrapped",
                ("max_steps", "train_dataloader", "resume_from_checkpoint")),
    PrivateName(_TRAINER, "_maybe_log_save_evaluate", "looking for NaN before anything is logged or saved", _LOG),
    PrivateName(_TRAINER, "_clip_grad_norm", "one norm over weights and masks", ("model",)),
    PrivateName(_TRAINER, "_get_grad_norm", "looking at every gradient", ("model", "grad_norm")),
    PrivateName(_TRAINER, "_prepare_input", "copies that nothing waits for", ("data",)),
    PrivateName(_TRAINER, "_save_checkpoint", "an error that names the last good checkpoint", ("model", "trial")),
    PrivateName(_TRAINER, "_save", "files beside saved weights", ("output_dir", "state_dict")),
    PrivateName(_TRAINER, "_save_optimizer_and_scheduler", "state of our own in a checkpoint", ("output_dir",)),
    PrivateName(_TRAINER, "_save_rng_state", "the last of a checkpoint's parts, before its mark", ("output_dir",)),
    PrivateName(_TRAINER, "_load_from_checkpoint", "a refusal in one line", ("resume_from_checkpoint", "model")),
    PrivateName(_TRAINER, "_load_optimizer_and_scheduler", "state of our own in a checkpoint", ("checkpoint",)),
    PrivateName(_TRAINER, "_load_rng_state", "a refusal in one line", ("checkpoint",)),
    PrivateName(_TRAINER, "_load_scaler", "a refusal in one line", ("checkpoint",)),
    PrivateName(_TRAINER, "_load_best_model", "a check of what is loaded", ()),
    PrivateName(_TRAINER, "_tr_loss", "the loss since the last log, which no checkpoint of transformers holds"),
    PrivateName(_TRAINER, "_total_loss_scalar", "the mean loss of one call of train"),
    PrivateName(_TRAINER, "_globalstep_last_logged", "the step of the last log"),
    # ---- elsewhere
    PrivateName("transformers:TrainingArguments", "_VALID_DICT_FIELDS", "JSON for arguments of our own"),
    PrivateName(_MODEL, "_init_weights", "initial masks", ("module",)),
    PrivateName(_MODEL, "_keep_in_fp32_modules_strict", "masks in float32"),
    PrivateName(_MODEL, "_set_gradient_checkpointing", "refusing the re-entrant kind",
                ("enable", "gradient_checkpointing_func", "...")),
    PrivateName(_CONFIG, "_attn_implementation", "the same attention in a model made of another"),
    PrivateName(_CONFIG, "_experts_implementation", "the same experts in a model made of another"),
    PrivateName(_CONFIG, "_name_or_path", "where a model is from"),
    PrivateName(_CONFIG, "_commit_hash", "the revision that a model is from", gone_after="5.19"),
    PrivateName("transformers.core_model_loading", "_weight_conversions", "saving under the model's own names"),
    PrivateName("transformers.core_model_loading:WeightTransform", "_original_source_patterns",
                "saving under the model's own names"),
    PrivateName("transformers.integrations.deepspeed", "_hf_deepspeed_config_weak_ref", "whole models under ZeRO-3"),
    PrivateName("transformers.models.auto.configuration_auto:CONFIG_MAPPING", "_extra_content",
                "classes of masked models that are loaded when transformers asks for one"),
    # ---- of other libraries
    PrivateName("torch.optim.lr_scheduler:LRScheduler", "_last_lr", "another rate after a resume", read_in="torch 2.13"),
    PrivateName("torch.nn:Module", "_modules", "masks apart from a model's modules", read_in="torch 2.13"),
    PrivateName("torch.nn:Module", "_parameters", "releasing weights while they are cut", read_in="torch 2.13"),
    PrivateName("torch.nn:Module", "_apply", "moving masks that are apart", ("fn", "recurse"), "torch 2.13"),
    PrivateName("torch.utils.data:DataLoader", "_iterator", "ending persistent workers", read_in="torch 2.13"),
    PrivateName("datasets:IterableDataset", "_distributed", "refusing a stream that is split already",
                read_in="datasets 4.4 to 5.0"),
    PrivateName("evaluate:Metric", "_info", "metrics of our own", (), "evaluate 0.4.6"),
    PrivateName("evaluate:Metric", "_compute", "metrics of our own", read_in="evaluate 0.4.6"),
)  # fmt: skip


class TrainerHooks(Trainer):
    """transformers' Trainer, whose private methods call hooks with public names; by themselves the hooks do nothing."""

    _tr_loss: Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int

    # ---- hooks ------------------------------------------------------------------------------------------------

    def weights_are_loaded(self) -> None:
        """Called when a checkpoint's weights are loaded (but DeepSpeed's and FSDP's) and before anything is wrapped."""

    def model_is_wrapped(self) -> None:
        """Called when the model is wrapped and all state of a checkpoint is loaded, before the first step."""

    def clip_gradients(self, model: nn.Module) -> Tensor | None:
        """Clip the gradients and return their norm before; None leaves both to transformers."""
        return None

    def gradients_are_ready(self, norm: Tensor | float | None) -> None:
        """Called with the gradients' norm before each optimizer step."""

    def before_log_and_save(self) -> None:
        """Called after each step and each epoch, before anything of it is logged, evaluated or saved."""

    def after_log_and_save(self) -> None:
        """Called after that."""

    def saving(self, checkpoint: str) -> AbstractContextManager[None]:
        """A context in which a checkpoint is written."""
        return nullcontext()

    def model_is_saved(self, folder: str) -> None:
        """Called on processes that save, when weights, config and tokenizer are in a folder."""

    def save_parts(self, checkpoint: str) -> None:
        """Write state to a checkpoint, beside that of the optimizer."""

    def load_parts(self, checkpoint: str) -> None:
        """Read what ``save_parts`` wrote."""

    def state_is_saved(self, checkpoint: str) -> None:
        """Called when every part of this process is written; only ``trainer_state.json`` comes after."""

    def before_loading(self, checkpoint: str) -> None:
        """Called before the best checkpoint is loaded, which a file of another checkpoint names."""

    # ---- for subclasses ---------------------------------------------------------------------------------------

    def checkpoint_folder(self) -> str:
        """The folder of this step's checkpoint."""
        return os.path.join(str(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def save_checkpoint(self) -> None:
        """Write the checkpoint of this step, whatever ``save_strategy`` is."""
        self._save_checkpoint(self.model_wrapped, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def unlogged_loss(self) -> tuple[Tensor, int]:
        """The sum of this process's losses since the last log, a scalar, and the step of that log."""
        return self._tr_loss, self._globalstep_last_logged

    def put_back_loss(self, total: float, logged_at: int) -> None:
        """Go on with ``unlogged_loss`` of a checkpoint."""
        self._globalstep_last_logged = logged_at
        self._tr_loss.fill_(total)
        self._total_loss_scalar -= total  # the mean over this call of train() is of its own steps

    # ---- overrides of private methods -------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self.weights_are_loaded()
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.model_is_wrapped()
        return prepared

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.before_log_and_save()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.after_log_and_save()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = self.clip_gradients(model)
        return super()._clip_grad_norm(model) if norm is None else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP2
        if self.is_deepspeed_enabled and norm is not None and norm < 0:
            norm = float("nan")  # how DeepSpeed says it; its norm is a number on the host already
        self.gradients_are_ready(norm)
        return norm

    def _prepare_input(self, data: Any) -> Any:
        """Copies to the device without waiting for it; the loader pins its memory."""
        if isinstance(data, Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.saving(self.checkpoint_folder()):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # the main process alone makes the folder
            self.model_is_saved(str(output_dir if output_dir is not None else self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.save_parts(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.state_is_saved(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _refusing_code(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _refusing_code(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _refusing_code(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _refusing_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_parts(checkpoint)

    def _load_best_model(self) -> None:
        self.before_loading(str(self.state.best_model_checkpoint))
        super()._load_best_model()


@contextmanager
def _refusing_code(checkpoint: str | None) -> Iterator[None]:
    """torch loads these files with ``weights_only``; what it then refuses is the user's to know, in one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"`resume_from_checkpoint` {str(checkpoint)!r} has a file that holds other than tensors and numbers, which"
            " nothing of ours writes there. It was not loaded, and no code of it was run: do not trust this folder."
        ) from error
