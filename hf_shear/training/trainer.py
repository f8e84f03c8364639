"""ShearTrainer: a transformers Trainer that learns masks, mixes domains and trains a pruned model back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..core import FailedError, UsageError, by_main_process, locked_run, noted_signals, stop_of
from ..core.transformers_private import TrainerHooks
from ..data import TEACHER_COLUMNS, DynamicDataLoader, StreamDataLoader, collate_domain_samples, first_sample
from ..modeling import ShearingMixin, ShearingModel
from ..slicing import check_saves, write_for_older_readers
from ..sources import savable_generation_config
from .arguments import ShearTrainingArguments
from .backends import backend_name, check_backend, check_optimizer, keep_masks_float32
from .checkpoint_room import check_checkpoints
from .checkpoints import (
    CheckpointError,
    check_resumable,
    last_whole_checkpoint,
    note_files,
    read_process_state,
    read_state,
    unmark,
    write_process_state,
    write_state,
)
from .checks import check_datasets
from .cost import cost_report, memory_line
from .distilling import Distiller, computing_of, make_distiller
from .domain_evaluation import SampleLosses, evaluate_samples
from .domain_mixture import DomainMixture
from .finite_guard import FiniteGuard
from .history import evaluation_history, size_history
from .mask_learning import MaskLearning
from .model_to_train import drop_unknown_tokens, model_to_train, special_token_ids
from .part import Part
from .progress import LinePrinterCallback, ShearProgressCallback, tell
from .recovery_methods import FULL, LORA
from .same_run import changing_arguments, check_same_run, deciding_samples, deciding_values, differences
from .schedules import set_peak_rate
from .stopping import StopRequest
from .trainer_inputs import check_keywords, load_named, packed_domains, shear_arguments
from .trusted_files import check_trusted, note_trusted, record_folder

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.get_logger(__name__)


class ShearTrainer(TrainerHooks):
    """Learns the masks of a masked model, or continues pre-training of a plain one, with dynamic batches.

    Args:
        model: a masked model (``ShearingLlamaForCausalLM``) for mask learning, or any plain causal language model for
            recovery (the paper: continued pre-training); or a folder or name on the Hub, which is loaded in float32.
        args: :class:`ShearTrainingArguments`, with ``num_tokens``, ``max_steps`` or ``num_train_epochs``;
            ``TrainingArguments`` are made such.
        train_dataset, eval_dataset: packed samples per domain (``hf_shear.data.pack_domains``), with the same names. One
            data set is one domain, "text". What has the column ``text`` or ``messages`` is packed.
        processing_class: the tokenizer, saved with every checkpoint; by default that of a model given by its name.
        callbacks, optimizers: as for ``Trainer``.
        peft_config: a config object of ``peft``, with which ``recovery_method="full"`` becomes ``"lora"``; wins over the
            one in ``args``.
        teacher: for ``args.distillation``: the model that was pruned, or a :class:`~hf_shear.distillation.Teacher` to say
            where it lives. None where the samples carry stored teacher logits.
        reference_samples: per domain the losses of the source in nats, summed over each of the first samples of
            ``eval_dataset``, of which ``args.reference_losses`` are the means (``SampleLosses.sums`` of
            ``evaluate_samples``). With them, domain weights follow differences sample by sample, which vary less.
        max_length: tokens of the samples that text is packed into; by default 256, or the model's positions if fewer.

    Attributes:
        parts: what the training is made of; the state of each is in every checkpoint.
        domains: the part that draws batches and weighs domains.
        mask_learning: the part that learns masks; None for a model without masks to learn.
        distiller: the part that compares with a teacher; None without one.
        guard: the part that looks for NaN.
        sample_length: tokens of a sample.
        base_digest: of the weights that adapters stand on; None without adapters.

    Raises:
        ValueError: data, model and arguments do not fit each other; each message says what to change.
    """

    args: ShearTrainingArguments
    model: PreTrainedModel  # or the PeftModel around one, or what FSDP2 makes of it
    model_wrapped: nn.Module
    train_dataset: Mapping[str, Any] | None
    eval_dataset: Mapping[str, Any] | None

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike,
        args: TrainingArguments | None = None,
        train_dataset: Mapping | Dataset | IterableDataset | None = None,
        eval_dataset: Mapping | Dataset | None = None,
        processing_class=None,
        callbacks: list | None = None,
        peft_config=None,
        teacher=None,
        reference_samples=None,
        max_length: int | None = None,
        **kwargs,
    ):
        check_keywords(kwargs)
        model, processing_class = self.load_model_and_tokenizer(model, processing_class)
        if max_length is None:
            max_length = getattr(args, "max_length", None)  # TRL's arguments have one
        args = shear_arguments(args)
        train_dataset = packed_domains("train_dataset", train_dataset, processing_class, max_length, model)
        eval_dataset = packed_domains("eval_dataset", eval_dataset, processing_class, max_length, model)
        check_datasets(model, args, train_dataset, eval_dataset)
        if peft_config is not None and args.recovery_method == FULL and not isinstance(model, ShearingMixin):
            args.recovery_method = LORA
        self.sample_length = len(first_sample(next(iter(train_dataset.values())))["input_ids"]) if train_dataset else 0
        if train_dataset:
            args.set_steps(self.sample_length)
        args.set_epochs(train_dataset or {})
        self._use_cache = model.config.use_cache  # transformers switches it off for training
        if getattr(model, "generation_config", None) is not None:  # training changes it, and it is saved with the model
            model.generation_config = savable_generation_config(model.generation_config)
        check_saves(args.output_dir)  # transformers makes the folder next
        self._special_token_ids = special_token_ids(model)
        trained, self.base_digest = model_to_train(model, args, peft_config)
        self.parts: list[Part] = []
        given: dict[str, Any] = {"data_collator": collate_domain_samples} | kwargs
        given |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processing_class}
        super().__init__(model=trained, args=args, callbacks=[TrainerMoments(self), *(callbacks or [])], **given)
        self._makes_optimizer = self.optimizer is None
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ShearProgressCallback())
        if self.pop_callback(PrinterCallback) is not None:
            self.add_callback(LinePrinterCallback())
        self.distiller = make_distiller(
            args, self.model, teacher, train_dataset, self.sample_length, **computing_of(self)
        )
        if self.distiller is not None:
            self._learn_from(self.distiller)
        learns_masks = isinstance(model, ShearingMixin) and bool(model.masks.constrained)
        check_backend(self, learns_masks)
        if learns_masks and self.optimizer is not None:
            check_optimizer(self.optimizer, model)
        keep_masks_float32(self)
        self.domains = DomainMixture(args, train_dataset, eval_dataset, reference_samples)
        self.mask_learning, rate = None, None
        if learns_masks:
            owns_parameters = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self.mask_learning = MaskLearning(args, lambda: self.masked_model, stay_apart=owns_parameters)
            rate = self.mask_learning.rate
        self.guard = FiniteGuard(args, rate, self.reduce)
        self._unlogged = UnloggedLoss(self)
        found = (self.domains, self.distiller, self.mask_learning, self.guard, self._unlogged)
        self.parts += [part for part in found if part is not None]
        self._good_checkpoint: str | None = None
        self._stop_request: StopRequest | None = None
        self.micro_batch = 0

    def load_model_and_tokenizer(
        self, model: PreTrainedModel | str | os.PathLike, processing_class
    ) -> tuple[PreTrainedModel, Any]:
        """The model to train and its tokenizer, of what ``__init__`` was given, as in ``load_named``."""
        return load_named(model, processing_class)

    @property
    def masked_model(self) -> ShearingModel:
        """The masked model without what a backend wraps around it."""
        unwrapped: Any = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The "sum" or "mean" of a tensor over processes."""
        reduced: Any = self.accelerator.reduce(tensor, reduction)
        return reduced

    @property
    def mask_report(self) -> dict | None:
        """How far masks were from the target's size before they hardened; None before that, and for a plain model."""
        return None if self.mask_learning is None else self.mask_learning.report

    # ---- data -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DynamicDataLoader | StreamDataLoader:
        """Overridden: batches follow the domain weights, and a weight change reaches the very next batch."""
        return self.domains.make_loader(self.data_collator)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Overridden: a global batch counts as consumed once it is handed to training."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed at the last step: transformers would train one step more.
            logger.info("The checkpoint is of the last step; there is nothing left to train.")
            self.control.should_epoch_stop = self.control.should_training_stop = True
            return [], None
        self._unlogged.put_back()
        batch_samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.domains.sampler.commit()
        self.micro_batch = 0
        return batch_samples, num_items

    # ---- a step -----------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Overridden: sets the masks' phase, and keeps the reported loss free of the Lagrangian."""
        masks, micro_batch = self.mask_learning, self.micro_batch
        self.micro_batch += 1
        if masks is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.guard.note(loss)
            return loss
        masks.set_phase(self.state.global_step, micro_batch)
        before = masks.lagrangian.clone()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.note(loss)
        if self.accelerator.sync_gradients:
            masks.optimizer.reduce_gradients()
        return loss - (masks.lagrangian - before)

    def _learn_from(self, distiller: Distiller) -> None:
        """Its loss is that of training."""
        if self.compute_loss_func is not None:
            raise UsageError(
                "`compute_loss_func` would take the place of the loss from the teacher. Give one of the two: a teacher, or"
                " a loss of your own."
            )
        self.compute_loss_func = distiller.loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Overridden: compares with the teacher; adds the Lagrangian, once per step whatever the accumulation."""
        if self.distiller is not None:
            self.distiller.set_target(inputs)
        else:
            inputs = {name: tensor for name, tensor in inputs.items() if name not in TEACHER_COLUMNS}
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            if self.distiller is not None:
                self.distiller.clear_target()
        if self.mask_learning is not None and model.training:
            loss = self.mask_learning.penalised(loss, outputs, self.current_gradient_accumulation_steps)
        return (loss, outputs) if return_outputs else loss

    def clip_gradients(self, model: nn.Module) -> Tensor | None:
        """Hook: ``clip_masks`` clips weights, masks and multipliers by one common norm (the paper)."""
        if self.mask_learning is None or not self.args.clip_masks:
            return None
        return self.mask_learning.clip(model, self.args.max_grad_norm)

    def gradients_are_ready(self, norm: Tensor | float | None) -> None:
        """Hook: every gradient is looked at, also those that are not clipped, before anything is saved."""
        # fp16 scales the loss: a gradient that overflows is then part of the search for the scale.
        # DeepSpeed has no norm before its first step.
        if norm is not None and self.accelerator.mixed_precision != "fp16":
            self.guard.note(norm)
        if self.mask_learning is not None:
            for parameter in self.mask_learning.masks.parameters():
                if parameter.grad is not None:
                    self.guard.note(parameter.grad.sum())

    # ---- the loop ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As ``Trainer.train``. A checkpoint of the last step is returned to, not trained beyond.

        SIGTERM and SIGINT end the step, in every process the same one, and save a checkpoint of it, whatever
        ``save_strategy`` is.

        Raises:
            StoppedBySignal: then; it is a ``SystemExit`` of 143 or 130, and for SIGINT a ``KeyboardInterrupt`` too.
            UsageError: another process trains in ``output_dir``.
        """
        if self.train_dataset is None:
            raise UsageError("`train_dataset` is needed to train: a data set, or a dict of packed samples per domain.")
        if self.args.max_steps <= 0:
            raise UsageError(
                "ShearTrainer draws batches without end, so it needs `num_tokens` (or `max_steps`, or `num_train_epochs`)"
                " to know when to stop."
            )
        with ExitStack() as ends:
            if self.args.save_strategy != SaveStrategy.NO:
                ends.enter_context(locked_run(self.args.output_dir))
            self._stop_request = StopRequest(self.args, ends.enter_context(noted_signals()))
            output = self._train(resume_from_checkpoint, **kwargs)
        if self._stop_request.agreed is not None:
            raise stop_of(
                self._stop_request.agreed,
                f" after step {self.state.global_step}, which is saved in {self._good_checkpoint}",
                "To go on: `trainer.train(resume_from_checkpoint=True)`.",
            )
        if self.mask_learning is not None:
            self.mask_learning.check_steps(self.state.global_step)
        return output

    def _train(self, resume_from_checkpoint, **kwargs):
        _ = self._deciding_values  # before DeepSpeed casts the weights, and transformers takes over special tokens
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, self._tell)
            if resume_from_checkpoint is None:
                raise UsageError(f"No checkpoint to resume from in `output_dir` {self.args.output_dir!r}.")
        if resume_from_checkpoint:
            self.check_resume(str(resume_from_checkpoint))
        check_checkpoints(self)
        self.model.config.use_cache = self.args.use_cache
        for part in self.parts:
            part.start()
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.model.config.use_cache = self._use_cache
            for part in reversed(self.parts):
                part.end()
        self._set_phase()
        self._check_finite()
        return output

    def weights_are_loaded(self) -> None:
        """Hook: special tokens that the model does not have are dropped, and parts begin."""
        drop_unknown_tokens(self.model, self._special_token_ids)
        for part in self.parts:
            part.weights_are_loaded()

    def model_is_wrapped(self) -> None:
        """Hook: reference losses of the model as it comes, and a signal that came before the first step."""
        if self.mask_learning is not None:
            self.mask_learning.optimizer.share()
        if self.domains.needs_references:
            self.domains.set_references(self.source_losses())
        signum = self._stop_request.agree() if self._stop_request is not None else None
        if signum is not None:
            raise stop_of(signum, " before the first step of this call: there is nothing new to save")

    def before_log_and_save(self) -> None:
        """Hook: NaN is looked for here, before anything is logged or saved, and not in every step."""
        if self.mask_learning is not None:
            self.mask_learning.report_if_due(self.state.global_step)
        control = self.control
        if control.should_log or control.should_save or control.should_evaluate:
            self._check_finite()

    def after_log_and_save(self) -> None:
        """Hook: a signal ends the training here, with a checkpoint."""
        request = self._stop_request
        if request is None or request.agreed is not None or request.agree() is None:
            return
        self._check_finite()
        if self._good_checkpoint != self.checkpoint_folder():
            self.save_checkpoint()
        self.control.should_training_stop = True

    def _set_phase(self) -> None:
        if self.mask_learning is not None:
            self.mask_learning.set_phase(self.state.global_step)

    def _check_finite(self) -> None:
        self.guard.check(self.state.global_step, self._good_checkpoint)

    def _tell(self, text: str) -> None:
        if self.is_world_process_zero():
            tell(self.args, text)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Overridden: all domains in one pass, the Lagrangian left out; then the domain weights are updated.

        Returns:
            ``eval_loss`` (unweighted mean over domains), ``eval_<domain>_loss`` in nats per token, ``eval_tokens``.
        """
        in_training = self.is_in_train and eval_dataset is None
        if in_training:
            datasets = self.domains.steering_samples()
        elif eval_dataset is None:
            datasets = self.eval_dataset
        else:
            length = self.sample_length or None
            datasets = packed_domains("eval_dataset", eval_dataset, self.processing_class, length, self.model)
        if datasets is None:
            raise UsageError("`evaluate` needs `eval_dataset`, which ShearTrainer was not given. Give it to either.")
        self._set_phase()
        start = time.perf_counter()
        found = self.domain_losses(datasets)
        losses = {name: it.mean for name, it in found.items()}
        num_tokens = sum(sum(it.num_tokens) for it in found.values())
        metrics = {f"{metric_key_prefix}_loss": sum(losses.values()) / len(losses)}
        metrics |= {f"{metric_key_prefix}_{name}_loss": loss for name, loss in losses.items()}
        seconds = round(time.perf_counter() - start, 4)
        metrics |= {f"{metric_key_prefix}_tokens": num_tokens, f"{metric_key_prefix}_runtime": seconds}
        metrics |= self.more_metrics(metric_key_prefix)
        if in_training:
            self.domains.update(found)
            metrics["num_tokens"] = self.tokens_seen()
            for part in self.parts:
                metrics |= part.evaluation_entries(self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs) -> NoReturn:
        """Not offered: logits of packed text are large, and of no use by themselves."""
        raise NotImplementedError(
            "ShearTrainer gives no predictions: `evaluate` gives the loss of each domain, the model's `generate` text."
        )

    def get_eval_dataloader(self, eval_dataset=None) -> NoReturn:
        """Not offered: ``evaluate`` reads each domain by itself."""
        raise NotImplementedError(
            "ShearTrainer has no loader to evaluate with: `evaluate(eval_dataset)` gives the loss of each domain."
        )

    def push_to_hub(self, *args, **kwargs):
        """As ``Trainer.push_to_hub``, for models without masks."""
        if isinstance(self.accelerator.unwrap_model(self.model), ShearingMixin):
            raise UsageError(
                "`push_to_hub` would publish a masked checkpoint, which plain transformers cannot use. Push the finished"
                " model with `hf-shear push` (this one all the same, with `--masked`)."
            )
        return super().push_to_hub(*args, **kwargs)

    def domain_losses(self, datasets: Mapping) -> dict[str, SampleLosses]:
        """Held-out losses of all samples, per domain, in the masks' present phase (``evaluate_samples``)."""
        reduce = partial(self.reduce, reduction="sum") if self.args.world_size > 1 else None
        autocast: Any = self.accelerator.autocast
        return evaluate_samples(
            self.model_wrapped if self.is_deepspeed_enabled else self.model,
            datasets,
            self.args.eval_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            reduce=reduce,
            context=autocast,
        )

    def more_metrics(self, prefix: str) -> dict[str, float]:
        """Entries to add to those of an evaluation, or to put in their place; for subclasses."""
        return {}

    def source_losses(self) -> dict[str, SampleLosses]:
        """Losses before any training, with all masks open."""
        if self.mask_learning is None:
            return self.domain_losses(self.domains.steering_samples())
        with self.masked_model.use_gates({}):
            return self.domain_losses(self.domains.steering_samples())

    # ---- what is told -----------------------------------------------------------------------------------------

    def log(self, logs, start_time=None):
        """Overridden: beside the loss, what the parts have to say."""
        if "loss" in logs:
            for part in self.parts:
                logs |= part.log_entries(self.state.global_step)
            if self.mask_learning is not None:
                logs["num_tokens"] = self.tokens_seen()
        super().log(logs, start_time)

    def tokens_seen(self) -> int:
        """Training tokens of this stage so far, over all processes."""
        return self.state.global_step * self.args.samples_per_step() * self.sample_length

    def memory_line(self) -> str:
        """The memory of a step in one line (``hf_shear.training.cost``)."""
        teaching = None
        if self.distiller is not None and self.train_dataset is not None:
            teaching = self.distiller.teaching_setup(first_sample(next(iter(self.train_dataset.values()))))
        return memory_line(self.args, self.model, self.sample_length, self.accelerator.state, teaching)

    def cost_report(self) -> str:
        """Tokens, steps, evaluation and memory of the training, in a few lines (``hf_shear.training.cost``)."""
        held_out = {name: len(dataset) for name, dataset in (self.eval_dataset or {}).items()}
        masks = self.mask_learning
        learned = {} if masks is None else {"masks": masks.masks, "schedule": masks.schedule}
        return cost_report(self.args, self.sample_length, held_out, self.memory_line(), **learned)

    def stage_record(self, stage: str) -> dict:
        """JSON-ready facts of a finished stage: tokens, history, passes per domain, weights, references."""
        domains, log_history = self.domains, self.state.log_history
        return {
            "tokens": self.tokens_seen(),
            "history": evaluation_history(log_history, stage, list(self.train_dataset or ())),
            "sizes": size_history(log_history),
            "passes": domains.sampler.passes,
            "mixture_weights": domains.sampler.mixture_weights,
            "reference_losses": domains.reference_losses,
            "reference_tokens": domains.reference_tokens,
            "reference_samples": domains.reference_samples,
            "eval_samples": domains.plan.samples_per_domain if self.eval_dataset else 0,
        }

    # ---- checkpoints ------------------------------------------------------------------------------------------

    @contextmanager
    def saving(self, checkpoint: str) -> Iterator[None]:
        """Hook: masks are compared over processes first; a failure to write names the last good checkpoint."""
        if self.mask_learning is not None and self.mask_learning.optimizer.drifted():
            raise RuntimeError(
                f"Masks differ between processes at step {self.state.global_step}; they are kept equal by construction,"
                " so a device computes wrongly, or something else wrote to them. No checkpoint was written."
            )
        if self.args.should_save:
            unmark(checkpoint)  # one of an earlier run is not whole while it is written over
        self.accelerator.wait_for_everyone()
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            good = (
                f"The last good one is {self._good_checkpoint}" if self._good_checkpoint else "There is none before it"
            )
            raise CheckpointError(
                f"The checkpoint {checkpoint} could not be written: {error}. {good}. Once what stopped it is mended (room"
                " on the disk, a process that died), resume (`resume_from_checkpoint=True`)."
            ) from error
        self._good_checkpoint = checkpoint

    def model_is_saved(self, folder: str) -> None:
        """Hook: older readers find a tokenizer they know; adapters have a note of the weights they belong to."""
        if self.processing_class is not None:
            write_for_older_readers(self.processing_class, Path(folder))
        self.args.recovery.save_record(folder, self.model, self.base_digest)

    def save_parts(self, checkpoint: str) -> None:
        """Hook: the state of all parts is in every checkpoint, with what a resumed run is compared by."""
        state = {part.name: part.state_dict() for part in self.parts if part.name}
        own = {part.name: part.own_state_dict() for part in self.parts if part.name}
        decides = self._decides  # asks all processes
        if self.args.should_save:
            facts = {
                "parts": state,
                "rates": self._peak_rates(),
                "backend": backend_name(self),
                "num_processes": self.args.world_size,
                "decides": decides,
                "may_change": self._may_change(),
            }
            write_state(checkpoint, facts)
            for part in self.parts:
                part.save_files(checkpoint)
        os.makedirs(checkpoint, exist_ok=True)  # on machines without a part of it yet
        write_process_state(checkpoint, self.args.process_index, own)

    def state_is_saved(self, checkpoint: str) -> None:
        """Hook: waits for all processes, so that what the main one writes next marks a whole checkpoint."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            note_files(checkpoint)
        try:
            note_trusted(checkpoint, backend_name(self))
        except (OSError, FailedError) as error:
            # The checkpoint is as good; only this user's next resume has to say that it is theirs.
            self._tell(f"{record_folder()} could not be written ({error}): resuming will need `--trust_checkpoint`.")

    def check_resume(self, checkpoint: str) -> None:
        """Refuse, on every process and before anything of it is loaded, a checkpoint that is not of this run.

        Raises:
            ValueError: it is not whole, or of another launch; it holds pickles that this user did not write; or something
                that decides the result has changed.
        """
        state = check_resumable(checkpoint, backend_name(self), self.args.world_size)
        self.before_loading(checkpoint)
        told = check_same_run(state["decides"], self._decides, f"{checkpoint!r} would be continued")
        told += differences(state["may_change"], self._may_change())
        if told:
            self._tell(f"Since {checkpoint} was written, {', '.join(told)}.")

    def before_loading(self, checkpoint: str) -> None:
        """Hook: files that run code when they are loaded must be this user's own."""
        if not self.args.trust_checkpoint:
            check_trusted(checkpoint, backend_name(self))

    def load_parts(self, checkpoint: str) -> None:
        """Hook: all parts go on where they were; at other learning rates, if those are asked for."""
        state, own = read_state(checkpoint), read_process_state(checkpoint, self.args.process_index)
        for part in self.parts:
            if part.name:
                same_processes = state["num_processes"] == self.args.world_size
                part.load_state_dict(state["parts"][part.name], own.get(part.name, {}), same_processes)
            part.load_files(checkpoint)
        self._good_checkpoint = checkpoint
        # After a NaN a lower rate is asked for; masks take theirs from `args` in any case, a given optimizer never.
        if self._makes_optimizer:
            set_peak_rate(self.lr_scheduler, self.optimizer, self.args.learning_rate)
        for role, now in self._peak_rates().items():
            before = state["rates"][role]
            if before != now:
                self._tell(f"The checkpoint's learning rate of {role} was {before:g}; it goes on with {now:g}.")

    def more_that_decides(self) -> dict:
        """JSON-ready values that decide the result beside arguments, model, teacher and samples; for subclasses."""
        return {}

    @cached_property
    def _deciding_values(self) -> dict:
        """What decides the result beside the samples, by name; read once, since training changes some of it."""
        teacher = self.distiller.teacher if self.distiller is not None else None
        model: Any = self.accelerator.unwrap_model(self.model)
        return deciding_values(
            self.args, model, base_digest=self.base_digest, teacher_digest=None if teacher is None else teacher.digest
        )

    @cached_property
    def _decides(self) -> dict:
        """All that decides the result, by name. All processes must ask."""
        samples = by_main_process(lambda: deciding_samples(self.train_dataset or {}, self.eval_dataset))
        return self._deciding_values | samples | self.more_that_decides()

    def _may_change(self) -> dict:
        """Arguments that may change on purpose; rates are compared by themselves."""
        return {name: value for name, value in changing_arguments(self.args).items() if "learning_rate" not in name}

    def _peak_rates(self) -> dict[str, float]:
        rates = {} if self.mask_learning is None else self.mask_learning.optimizer.rates
        return {"weights": self.args.learning_rate} | rates


class UnloggedLoss(Part):
    """The training loss since the last log, which transformers keeps in no checkpoint."""

    name = "unlogged_loss"

    def __init__(self, trainer: TrainerHooks):
        self.trainer = trainer
        self.start()

    def start(self) -> None:
        """Nothing is loaded."""
        self.loaded: tuple[float, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The mean over processes."""
        total, logged_at = self.trainer.unlogged_loss()
        totals: Any = self.trainer.accelerator.gather(total)
        return {"total": totals.mean().item(), "logged_at": logged_at}

    def own_state_dict(self) -> dict[str, Any]:
        """The sum of this process."""
        return {"total": self.trainer.unlogged_loss()[0].item()}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any], same_processes: bool) -> None:
        """Each process goes on with its own sum, or with the mean where their number is another."""
        total = own.get("total", state["total"]) if same_processes else state["total"]
        self.loaded = (total, state["logged_at"])

    def put_back(self) -> None:
        """Before the first batch: transformers sets its sums to zero after it has loaded a checkpoint."""
        if self.loaded is not None:
            self.trainer.put_back_loss(*self.loaded)
            self.loaded = None


class TrainerMoments(TrainerCallback):
    """The moments of a training that transformers tells its callbacks alone."""

    def __init__(self, trainer: ShearTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._tell(self.trainer.cost_report())

    def on_optimizer_step(self, args, state, control, **kwargs):
        for part in self.trainer.parts:
            part.after_optimizer_step(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps  # the share that is done, also where no data is replayed
        if self.trainer.args.has_planned_evaluations:
            control.should_evaluate = state.global_step in self.trainer.domains.plan.steps
