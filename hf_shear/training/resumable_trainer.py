"""Checkpoints that hold all that a run needs to go on exactly, and are whole or recognised as not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..core import UsageError, by_main_process
from ..slicing import write_for_older_readers
from .backends import backend_name
from .checkpoints import CheckpointError, check_resumable, note_files, unmark
from .progress import tell
from .same_run import (
    DIGEST,
    changing_arguments,
    check_same_run,
    deciding_arguments,
    deciding_model,
    deciding_samples,
    differences,
)
from .schedules import set_peak_rate
from .state_file import read_process_state, read_state, write_process_state, write_state
from .trusted_files import check_trusted, note_trusted, record_folder


class ResumableTrainer(Trainer):
    """What :class:`~hf_shear.training.ShearTrainer` does with checkpoints; of no use by itself."""

    def _save_checkpoint(self, model, trial):
        """Overridden: masks are compared over processes first; a failure to write names the last good checkpoint."""
        if self.learns_masks and self.mask_optimizer.drifted():
            raise RuntimeError(
                f"Masks differ between processes at step {self.state.global_step}; they are kept equal by construction,"
                " so a device computes wrongly, or something else wrote to them. No checkpoint was written."
            )
        folder = self._checkpoint_folder()
        if self.args.should_save:
            unmark(folder)  # one of an earlier run is not whole while it is written over
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            good = (
                f"The last good one is {self._good_checkpoint}" if self._good_checkpoint else "There is none before it"
            )
            raise CheckpointError(
                f"The checkpoint {folder} could not be written: {error}. {good}. Once what stopped it is mended (room"
                " on the disk, a process that died), resume (`resume_from_checkpoint=True`)."
            ) from error
        self._good_checkpoint = folder

    def _checkpoint_folder(self) -> str:
        return os.path.join(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _save(self, output_dir=None, state_dict=None):
        """Overridden: older readers find a tokenizer they know; adapters have a note of the weights they belong to."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # the main process alone makes the folder
            return
        folder = output_dir if output_dir is not None else self.args.output_dir
        if self.processing_class is not None:
            write_for_older_readers(self.processing_class, Path(folder))
        self.args.recovery.save_record(folder, self.model, self.base_digest)

    def _save_rng_state(self, output_dir):
        """Overridden: waits for all processes, so that what the main one writes next marks a whole checkpoint."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            note_files(output_dir)
        try:
            note_trusted(output_dir, backend_name(self))
        except OSError as error:  # the checkpoint is as good; only this user's next resume has to say that it is theirs
            self._tell(f"{record_folder()} could not be written ({error}): resuming will need `--trust_checkpoint`.")

    # ---- what is continued ------------------------------------------------------------------------------------

    def check_resume(self, checkpoint: str) -> None:
        """Refuse, on every process and before anything of it is loaded, a checkpoint that is not of this run.

        Raises:
            ValueError: it is not whole, or of another launch; it holds pickles that this user did not write; or something
                that decides the result has changed.
        """
        state = check_resumable(checkpoint, backend_name(self), self.args.world_size)
        if not self.args.trust_checkpoint:
            check_trusted(checkpoint, backend_name(self))
        told = check_same_run(state["decides"], self._decides(), f"{checkpoint!r} would be continued")
        told += differences(state["may_change"], self._may_change())
        if told:
            self._tell(f"Since {checkpoint} was written, {', '.join(told)}.")

    def more_that_decides(self) -> dict:
        """JSON-ready values that decide the result beside arguments, model, teacher and samples; for subclasses."""
        return {}

    def _decides(self) -> dict:
        """What decides the result, by name; read once, since training changes some of it. All processes must ask."""
        if self._decides_result is None:
            teacher = self.distiller.teacher if self.distiller is not None else None
            self._decides_result = (
                deciding_arguments(self.args)
                | deciding_model(self.accelerator.unwrap_model(self.model))
                | {"optimizer steps": self.args.max_steps}
                | ({} if self.base_digest is None else {"the base's weights": DIGEST + self.base_digest})
                | ({} if teacher is None else {"the teacher": DIGEST + teacher.digest})
                | by_main_process(lambda: deciding_samples(self.train_dataset, self.eval_dataset))
                | self.more_that_decides()
            )
        return self._decides_result

    def _may_change(self) -> dict:
        return {name: value for name, value in changing_arguments(self.args).items() if "learning_rate" not in name}

    def _load_best_model(self):
        """Overridden: the checkpoint is named by a file of the one that was resumed from."""
        if not self.args.trust_checkpoint:
            check_trusted(self.state.best_model_checkpoint, backend_name(self))
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Overridden: what is refused, is refused in one line."""
        with _refusing_code(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint):
        """Overridden: what is refused, is refused in one line."""
        with _refusing_code(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint):
        """Overridden: what is refused, is refused in one line."""
        with _refusing_code(checkpoint):
            super()._load_scaler(checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir):
        """Overridden: our small state (sampler, reference losses) is part of every checkpoint."""
        super()._save_optimizer_and_scheduler(output_dir)
        loss_total, decides = self.accelerator.gather(self._tr_loss).mean().item(), self._decides()
        distillation = None
        if self.distiller is not None and self.distiller.sums is not None:
            distillation = self.accelerator.reduce(self.distiller.sums, reduction="mean").tolist()
        if self.args.should_save:
            write_state(
                output_dir,
                {
                    "sampler": self.sampler.state_dict(),
                    "reference_losses": self.reference_losses,
                    "reference_tokens": self.reference_tokens,
                    "mask_report": self.mask_report,
                    "lagrangian_total": self.lagrangian_total.item(),
                    "lagrangian_logged_at": self._lagrangian_logged_at,
                    "loss_total": loss_total,
                    "distillation": distillation,
                    "parts_logged_at": self._parts_logged_at,
                    "loss_logged_at": self._globalstep_last_logged,
                    "rates": self._peak_rates(),
                    "backend": backend_name(self),
                    "num_processes": self.args.world_size,
                    "decides": decides,
                    "may_change": self._may_change(),
                },
            )
            if self.learns_masks:
                self.mask_optimizer.save(output_dir)
        os.makedirs(output_dir, exist_ok=True)  # on machines without a part of it yet
        own = {"streams": self.train_loader.state_dict()}
        if self.args.world_size > 1:
            own["loss_total"] = self._tr_loss.item()
            own["distillation"] = self.distiller and self.distiller.state()
        write_process_state(output_dir, self.args.process_index, own)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Overridden: restores our small state."""
        with _refusing_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = read_state(checkpoint)
            self.sampler.load_state_dict(state["sampler"])
            own = read_process_state(checkpoint, self.args.process_index)
            self.train_loader.load_state_dict(own["streams"])
            self.reference_losses = state["reference_losses"]
            self.reference_tokens = state["reference_tokens"]
            self._good_checkpoint = checkpoint
            self.mask_report = state["mask_report"]
            self.lagrangian_total.fill_(state["lagrangian_total"])
            self._lagrangian_logged_at = state["lagrangian_logged_at"]
            # On as many processes as before each goes on with its own sum, on others with the mean over processes.
            same = state["num_processes"] == self.args.world_size
            loss_total = own.get("loss_total", state["loss_total"]) if same else state["loss_total"]
            self._unlogged_loss = (loss_total, state["loss_logged_at"])
            self._parts_logged_at = state["parts_logged_at"]
            if self.distiller is not None:
                sums = own.get("distillation", state["distillation"]) if same else state["distillation"]
                self.distiller.load_state(sums, self.args.device)
            if self.learns_masks:
                self.mask_optimizer.load(checkpoint)
            self._apply_changed_rates(state["rates"])

    def _tell(self, text: str) -> None:
        if self.is_world_process_zero():
            tell(self.args, text)

    def _peak_rates(self) -> dict[str, float]:
        rates = {"weights": self.args.learning_rate}
        return rates | (self.mask_optimizer.rates if self.learns_masks else {})

    def _apply_changed_rates(self, before: dict[str, float]) -> None:
        """Learn at the rates of ``args`` where they differ from the checkpoint's: after a NaN, a lower one is asked for.

        Masks take their rates from ``args`` in any case.
        """
        set_peak_rate(self.lr_scheduler, self.optimizer, self.args.learning_rate)
        for role, now in self._peak_rates().items():
            if before[role] != now:
                self._tell(f"The checkpoint's learning rate of {role} was {before[role]:g}; it goes on with {now:g}.")


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
