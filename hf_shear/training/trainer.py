"""ShearTrainer: a transformers Trainer that learns masks, mixes domains and trains a pruned model back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..core import UsageError, locked_run, noted_signals, stop_of
from ..data import (
    TEACHER_COLUMNS,
    DynamicBatchSampler,
    DynamicDataLoader,
    StreamDataLoader,
    check_mixture_weights,
    collate_domain_samples,
    first_sample,
    is_stream,
    update_mixture_weights,
    warn_of_runaway,
)
from ..modeling import ShearingMixin
from ..slicing import check_saves
from ..sources import savable_generation_config
from .arguments import ShearTrainingArguments
from .backends import check_backend, check_optimizer, keep_masks_float32
from .checkpoint_room import check_checkpoints
from .checkpoints import last_whole_checkpoint
from .checks import check_datasets
from .cost import CostCallback, evaluation_samples_per_domain, measures_references
from .distilling import make_distiller
from .domain_evaluation import evaluate_domains
from .errors import TrainingDivergedError
from .history import EvaluationLog
from .mask_optimizer import MASKS, MULTIPLIERS, MaskOptimizer
from .mask_report import mask_report, warn_if_off_target
from .model_to_train import drop_unknown_tokens, model_to_train, special_token_ids
from .progress import EpochCallback, LinePrinterCallback, ShearProgressCallback, tell
from .resumable_trainer import ResumableTrainer
from .schedules import peak_share
from .stopping import StopRequest

logger = logging.get_logger(__name__)


class ShearTrainer(ResumableTrainer):
    """Learns the masks of a masked model, or continues pre-training of a plain one, with dynamic batches.

    Args:
        model: a masked model (``ShearingLlamaForCausalLM``) for mask learning, or any plain causal language model for
            recovery (the paper: continued pre-training).
        args: :class:`ShearTrainingArguments`, with ``num_tokens`` or ``max_steps``.
        train_dataset, eval_dataset: packed samples per domain (``hf_shear.data.pack_domains``), with the same names.
        processing_class: the tokenizer, saved with every checkpoint.
        callbacks, optimizers: as for ``Trainer``.
        peft_config: a config object of ``peft`` for ``recovery_method="lora"``; wins over the one in ``args``.
        teacher: for ``args.distillation``: the model that was pruned, or a :class:`~hf_shear.distillation.Teacher` to say
            where it lives. None where the samples carry stored teacher logits.

    Raises:
        ValueError: data, model and arguments do not fit each other; each message says what to change.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: ShearTrainingArguments,
        train_dataset: Mapping | None = None,
        eval_dataset: Mapping | None = None,
        processing_class=None,
        callbacks: list | None = None,
        peft_config=None,
        teacher=None,
        **kwargs,
    ):
        check_datasets(model, args, train_dataset, eval_dataset)
        if kwargs.get("compute_metrics") is not None:
            raise UsageError(
                "`compute_metrics` has no effect: evaluation keeps token losses per domain, and no logits. Leave it out;"
                " compute other metrics from the saved checkpoint."
            )
        if args.dynamic_batches and train_dataset and args.eval_strategy == IntervalStrategy.NO:
            logger.warning_once(
                "Domain weights stay as they are: they change at evaluations, and `eval_strategy` is 'no'."
                " `dynamic_batches=False` says that this is meant, and silences this."
            )
        self.sample_length = len(first_sample(next(iter(train_dataset.values())))["input_ids"]) if train_dataset else 0
        if args.num_tokens is not None and train_dataset:
            steps = args.steps_for_tokens(args.num_tokens, self.sample_length)
            if args.max_steps not in (-1, steps):
                raise UsageError(
                    f"`num_tokens={args.num_tokens}` is {steps} steps, but `max_steps` is {args.max_steps}. Give one of"
                    " the two."
                )
            args.max_steps = steps
        self._use_cache = model.config.use_cache  # transformers switches it off for training
        self.learns_masks = isinstance(model, ShearingMixin) and bool(model.masks.constrained)
        if getattr(model, "generation_config", None) is not None:  # training changes it, and it is saved with the model
            model.generation_config = savable_generation_config(model.generation_config)
        check_saves(args.output_dir)  # transformers makes the folder next
        self._special_token_ids = special_token_ids(model)
        model, self.base_digest = model_to_train(model, args, peft_config)
        super().__init__(
            model=model,
            args=args,
            data_collator=kwargs.pop("data_collator", collate_domain_samples),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[EpochCallback(), CostCallback(self), MaskStepCallback(self), *(callbacks or [])],
            **kwargs,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ShearProgressCallback())
        if self.pop_callback(PrinterCallback) is not None:
            self.add_callback(LinePrinterCallback())
        self.distiller = make_distiller(
            args.distillation_settings(), model, teacher, train_dataset, self.sample_length, self.accelerator.autocast,
            args.device,
        )  # fmt: skip
        if self.distiller is not None:
            self.compute_loss_func = self.distiller.loss
        check_backend(self, self.learns_masks)
        if self.learns_masks and self.optimizer is not None:
            check_optimizer(self.optimizer, model)
        keep_masks_float32(self)
        if self.learns_masks:
            model.masks.rank = args.process_index
        self.schedule = None
        if self.learns_masks and args.max_steps > 0:
            self.schedule = args.mask_schedule(args.max_steps, model.masks.settings.method)
        self.sampler: DynamicBatchSampler | None = None
        self.train_loader: DynamicDataLoader | StreamDataLoader | None = None
        self.reference_losses = dict(args.reference_losses) if args.reference_losses else None
        self.reference_tokens = 0
        self.mask_optimizer: MaskOptimizer | None = None
        self.mask_report: dict | None = None
        self._good_checkpoint: str | None = None
        self._decides_result: dict | None = None
        self._stop_request: StopRequest | None = None
        self.not_finite: Tensor | None = None
        self.lagrangian_total: Tensor | None = None
        self.micro_batch = 0
        self._lagrangian_logged_at = self._parts_logged_at = 0
        self._unlogged_loss: tuple[float, int] | None = None

    # ---- data -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DynamicDataLoader | StreamDataLoader:
        """Overridden: batches follow the domain weights, and a weight change reaches the very next batch."""
        if self.train_dataset is None:
            raise UsageError("ShearTrainer needs `train_dataset`, a dict of packed samples per domain, to train.")
        args = self.args
        streams = {name for name, dataset in self.train_dataset.items() if is_stream(dataset)}
        self.sampler = DynamicBatchSampler(
            {name: None if name in streams else len(dataset) for name, dataset in self.train_dataset.items()},
            args.train_batch_size,
            mixture_weights=check_mixture_weights(args.mixture_weights, list(self.train_dataset)),
            seed=args.data_seed if args.data_seed is not None else args.seed,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            on_new_pass=partial(tell, args),
        )
        self.train_loader = (StreamDataLoader if streams else DynamicDataLoader)(
            self.train_dataset,
            self.sampler,
            self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.train_loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Overridden: a global batch counts as consumed once it is handed to training."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed at the last step: transformers would train one step more.
            logger.info("The checkpoint is of the last step; there is nothing left to train.")
            self.control.should_epoch_stop = self.control.should_training_stop = True
            return [], None
        if self._unlogged_loss is not None:
            total, self._globalstep_last_logged = self._unlogged_loss
            self._tr_loss.fill_(total)
            self._total_loss_scalar -= total  # the mean over this call of train() is of its own steps
            self._unlogged_loss = None
        batch_samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.sampler.commit()
        self.micro_batch = 0
        return batch_samples, num_items

    # ---- optimisation -----------------------------------------------------------------------------------------

    @property
    def _mask_rate(self) -> float:
        return self.args.mask_rate(self.masked_model.masks.settings.method) if self.learns_masks else 0.0

    def _create_mask_optimizer(self) -> MaskOptimizer:
        """The optimizer of masks and multipliers: a constant rate until they harden, unless told otherwise."""
        args, start = self.args, self.schedule.hardening_start
        factor = (lambda step: 1.0 if step < start else 0.0) if args.mask_scheduler == "constant" else peak_share(args)
        return MaskOptimizer(
            self.masked_model.masks.to(args.device),
            {MASKS: self._mask_rate, MULTIPLIERS: args.multiplier_learning_rate},
            factor,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )

    def _clip_grad_norm(self, model):
        """Overridden: ``clip_masks`` clips weights, masks and multipliers by one common norm (the paper)."""
        if not (self.learns_masks and self.args.clip_masks):
            return super()._clip_grad_norm(model)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norm = torch.linalg.vector_norm(torch.stack([norm, self.mask_optimizer.gradient_norm()]))
        scale = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(scale)
        self.mask_optimizer.scale_gradients(scale)
        return norm

    def _get_grad_norm(self, model, grad_norm=None):
        """Overridden: every gradient is looked at, also those that are not clipped, before anything is saved."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP2
        if self.is_deepspeed_enabled and norm is not None and norm < 0:
            norm = float("nan")  # how DeepSpeed says it; its norm is a number on the host already
        if norm is not None and not self._scales_loss:  # DeepSpeed has none before its first step
            self._note_not_finite(norm)
        if self.learns_masks:
            for parameter in self.masked_model.masks.parameters():
                if parameter.grad is not None:
                    self._note_not_finite(parameter.grad.sum())
        return norm

    @property
    def _scales_loss(self) -> bool:
        """Whether fp16 scales the loss: a gradient that overflows is then part of the search for the scale."""
        return self.accelerator.mixed_precision == "fp16"

    def _prepare_input(self, data):
        """Overridden: copies to the device without waiting for it; the loader pins its memory."""
        if isinstance(data, Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Overridden: sets the masks' phase, and keeps the reported loss free of the Lagrangian."""
        self._set_phase(self.state.global_step, self.micro_batch)
        self.micro_batch += 1
        lagrangian_before = self.lagrangian_total.clone() if self.lagrangian_total is not None else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._note_not_finite(loss)
        if self.learns_masks and self.accelerator.sync_gradients:
            self.mask_optimizer.reduce_gradients()
        return loss if lagrangian_before is None else loss - (self.lagrangian_total - lagrangian_before)

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
        penalty = getattr(outputs, "lagrangian_loss", None)
        if penalty is not None and model.training:
            # transformers sums micro-batch losses that are already divided by the step's token count.
            share = penalty / self.current_gradient_accumulation_steps
            loss = loss + share
            if self.lagrangian_total is not None:
                self.lagrangian_total += share.detach()
        return (loss, outputs) if return_outputs else loss

    def _set_phase(self, step: int, micro_batch: int = 0) -> None:
        if self.schedule is not None:
            self.masked_model.set_mask_phase(self.masked_model.masks.strategy.phase(self.schedule, step, micro_batch))

    @property
    def masked_model(self) -> ShearingMixin:
        """The masked model without what a backend wraps around it."""
        return self.accelerator.unwrap_model(self.model)

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
            raise UsageError("ShearTrainer needs `train_dataset`, a dict of packed samples per domain, to train.")
        if self.args.max_steps <= 0:
            raise UsageError(
                "ShearTrainer draws batches without end, so it needs `num_tokens` (or `max_steps`) to know when to stop."
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
        if self.learns_masks and self.state.global_step < self.args.max_steps:
            warnings.warn(
                f"Mask learning stopped at step {self.state.global_step} of {self.args.max_steps}, before its masks were"
                " settled: a slice now differs from what was trained. Resume from a checkpoint to finish.",
                UserWarning,
                stacklevel=2,
            )
        return output

    def _train(self, resume_from_checkpoint, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, self._tell)
            if resume_from_checkpoint is None:
                raise UsageError(f"No checkpoint to resume from in `output_dir` {self.args.output_dir!r}.")
        if resume_from_checkpoint:
            self.check_resume(str(resume_from_checkpoint))
        check_checkpoints(self)
        self.model.config.use_cache = self.args.use_cache
        if self.distiller is not None:
            self.distiller.start()
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.model.config.use_cache = self._use_cache
            if self.distiller is not None:
                self.distiller.stop()
            if self.learns_masks and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                self.masked_model.put_masks_back()  # those go on owning every parameter they find
            if self.train_loader is not None:
                self.train_loader.close()
        self._set_phase(self.state.global_step)
        self._read_not_finite()
        return output

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """Overridden: device-side counters, and the reference losses of the model as it comes."""
        drop_unknown_tokens(self.model, self._special_token_ids)
        self.not_finite = torch.zeros((), dtype=torch.bool, device=self.args.device)
        self.lagrangian_total = torch.zeros((), device=self.args.device)
        self.mask_report, self._lagrangian_logged_at, self._parts_logged_at = None, 0, 0
        if self.distiller is not None:
            self.distiller.load_state(None, self.args.device)
        if self.learns_masks:
            self.masked_model.take_masks_apart()
            self.mask_optimizer = self._create_mask_optimizer()
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.learns_masks:
            self.mask_optimizer.share()
        if self.reference_losses is None and measures_references(self.args) and self.eval_dataset:
            self.reference_losses, self.reference_tokens = self._source_losses()
        if self._stop_request.agree() is not None:
            raise stop_of(
                self._stop_request.agreed, " before the first step of this call: there is nothing new to save"
            )
        return prepared

    def _source_losses(self) -> tuple[dict[str, float], int]:
        """Held-out losses of the model before any training, with all masks open."""
        if not self.learns_masks:
            return self._domain_losses(self._training_eval_dataset())
        with self.masked_model.use_gates({}):
            return self._domain_losses(self._training_eval_dataset())

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Overridden: NaN is looked for here, before anything is logged or saved, and not in every step."""
        if self.learns_masks and self.mask_report is None and self.state.global_step >= self.schedule.hardening_start:
            self._report_masks()
        control = self.control
        if control.should_log or control.should_save or control.should_evaluate:
            self._read_not_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._stop_request.agreed is None and self._stop_request.agree() is not None:
            self._read_not_finite()
            if self._good_checkpoint != self._checkpoint_folder():
                self._save_checkpoint(*args[2:4])  # the model, the trial
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self.control.should_training_stop = True

    def _report_masks(self) -> None:
        """Compare expected and target size just before masks harden (or at the end, if they never do)."""
        self._set_phase(self.schedule.hardening_start - (1 if self.schedule.hardening_steps else 0))
        self.mask_report = mask_report(self.masked_model.masks)
        warn_if_off_target(self.mask_report, self.args.shape_gap_tolerance)

    def _note_not_finite(self, value) -> None:
        if self.not_finite is not None:
            self.not_finite |= ~torch.isfinite(torch.as_tensor(value, device=self.not_finite.device))

    def _read_not_finite(self) -> None:
        if self.not_finite is None:
            return
        # One process alone may have met it; all of them stop, or the others would wait for it.
        if not self.accelerator.reduce(self.not_finite.float(), reduction="sum").item():
            return
        stage = "mask learning" if self.learns_masks else "training"
        lower = [f"`learning_rate` ({self.args.learning_rate})"]
        if self.learns_masks:
            lower.append(f"`mask_learning_rate` ({self._mask_rate})")
        if self.args.max_grad_norm:
            lower.append(f"`max_grad_norm` ({self.args.max_grad_norm})")
        rescue = "No checkpoint was written before that: start again"
        if self._good_checkpoint is not None:
            rescue = f"The last good checkpoint is {self._good_checkpoint}: resume from it"
        raise TrainingDivergedError(
            f"The loss or a gradient became NaN or infinite during {stage}, by step {self.state.global_step}. {rescue}"
            f" with a lower {' or '.join(lower)}" + (", or with `bf16` in place of `fp16`." if self.args.fp16 else ".")
        )

    # ---- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Overridden: all domains in one pass, the Lagrangian left out; then the domain weights are updated.

        Returns:
            ``eval_loss`` (unweighted mean over domains), ``eval_<domain>_loss`` in nats per token, ``eval_tokens``.
        """
        in_training = self.is_in_train and eval_dataset is None
        datasets = eval_dataset
        if datasets is None:
            datasets = self._training_eval_dataset() if in_training else self.eval_dataset
        if not isinstance(datasets, Mapping):
            raise UsageError("`eval_dataset` must be a dict of packed samples per domain.")
        self._set_phase(self.state.global_step)
        start = time.perf_counter()
        losses, num_tokens = self._domain_losses(datasets)
        metrics = {f"{metric_key_prefix}_loss": sum(losses.values()) / len(losses)}
        metrics |= {f"{metric_key_prefix}_{name}_loss": loss for name, loss in losses.items()}
        seconds = round(time.perf_counter() - start, 4)
        metrics |= {f"{metric_key_prefix}_tokens": num_tokens, f"{metric_key_prefix}_runtime": seconds}
        if in_training:
            self._update_mixture(losses)
            metrics |= EvaluationLog.extra(self)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs):
        """Not offered: logits of packed text are large, and of no use by themselves."""
        raise NotImplementedError(
            "ShearTrainer gives no predictions: `evaluate` gives the loss of each domain, the model's `generate` text."
        )

    def _domain_losses(self, datasets: Mapping) -> tuple[dict[str, float], int]:
        reduce = partial(self.accelerator.reduce, reduction="sum") if self.args.world_size > 1 else None
        return evaluate_domains(
            self.model_wrapped if self.is_deepspeed_enabled else self.model,
            datasets,
            self.args.eval_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            reduce=reduce,
            context=self.accelerator.autocast,
        )

    def _training_eval_dataset(self) -> dict:
        """The first samples of each held-out domain, as many as ``eval_token_share`` pays for."""
        limit = evaluation_samples_per_domain(self)
        return {name: dataset.select(range(min(limit, len(dataset)))) for name, dataset in self.eval_dataset.items()}

    def _update_mixture(self, losses: dict[str, float]) -> None:
        """Dynamic batch loading (arXiv 2310.06694, section 2.2)."""
        if not self.args.dynamic_batches:
            return
        weights = update_mixture_weights(
            self.sampler.mixture_weights,
            losses,
            self.reference_losses,
            clamp_excess=self.args.clamp_excess,
            floor=self.args.mixture_floor,
            ceiling=self.args.mixture_ceiling,
        )
        warn_of_runaway(self.sampler.mixture_weights, weights, self.args.mixture_ceiling)
        self.sampler.set_mixture_weights(weights)

    def log(self, logs, start_time=None):
        """Overridden: adds the Lagrangian, the masks' sizes, and the two parts of a distillation loss, if there are any."""
        if "loss" in logs and self.distiller is not None:
            steps = self.state.global_step - self._parts_logged_at
            # Where every process divides by its own tokens, the step's loss is the mean over processes.
            reduction = "sum" if self.args.average_tokens_across_devices else "mean"
            logs |= self.distiller.log_entries(steps, partial(self.accelerator.reduce, reduction=reduction))
            self._parts_logged_at = self.state.global_step
        if "loss" in logs and self.learns_masks and self.masked_model.masks.has_multipliers:
            steps = max(self.state.global_step - self._lagrangian_logged_at, 1)
            logs["lagrangian_loss"] = self.lagrangian_total.item() / steps
            self.lagrangian_total.zero_()
            self._lagrangian_logged_at = self.state.global_step
        if "loss" in logs and self.learns_masks:
            logs |= EvaluationLog.sizes(self)
        super().log(logs, start_time)

    def tokens_seen(self) -> int:
        """Training tokens of this stage so far, over all processes."""
        return self.state.global_step * self.args.samples_per_step() * self.sample_length

    def stage_record(self, stage: str) -> dict:
        """JSON-ready facts of a finished stage: tokens, history, passes per domain, weights, references."""
        return {
            "tokens": self.tokens_seen(),
            "history": EvaluationLog.read(self.state.log_history, stage, list(self.train_dataset)),
            "sizes": EvaluationLog.read_sizes(self.state.log_history),
            "passes": self.sampler.passes,
            "mixture_weights": self.sampler.mixture_weights,
            "reference_losses": self.reference_losses,
            "reference_tokens": self.reference_tokens,
            "eval_samples": evaluation_samples_per_domain(self) if self.eval_dataset else 0,
        }


class MaskStepCallback(TrainerCallback):
    """Takes the step of masks and multipliers with that of the weights."""

    def __init__(self, trainer: ShearTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.mask_optimizer is not None:
            self.trainer.mask_optimizer.step(state.global_step)
