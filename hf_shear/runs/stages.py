"""The stages of a run: each trains, saves a plain checkpoint, and returns a JSON-ready record of what it did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..compensation import resolve_compensation
from ..core import StoppedBySignal, UsageError, by_main_process, count_over_ranks, counted_flops, duration_text
from ..criteria import criteria_by_kind, criteria_from_words, mask_start_importance
from ..data import Calibration, check_max_length, load_domains, warn_of_shared_text
from ..distillation.teachers import STORED
from ..masks import STRATEGIES, MaskSettings, unit_kinds
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..pruning import make_plan, prune_one_shot, score_units
from ..shapes import (
    TargetShape,
    as_family,
    config_for_shape,
    count_parameters,
    family_named,
    family_of,
    training_flops_per_token,
)
from ..slicing import (
    UNFINISHED,
    begin_folder,
    provenance_record,
    put_in_place,
    read_provenance,
    save_checkpoint,
    slice_model,
)
from ..sources import Source, on_device, open_source, whole_models
from ..training import (
    PAPER_MASK_LEARNING,
    STEERING_SAMPLES,
    ShearTrainer,
    ShearTrainingArguments,
    check_domain_arguments,
    check_mask_options,
    evaluate_samples,
    merge_adapter,
    plan_evaluations,
    save_adapter_record,
)
from ..training.same_run import deciding_samples
from .baselines import baseline_model
from .checkpoint_digest import checkpoint_digests
from .domain_data import DomainData, judged_tokens, prepare_domain_data
from .dry_run import tell_costs
from .learned_arm import mask_stage
from .learned_cut import check_learned_cut, cut_learned_masks
from .live_page import LivePage
from .origin import COMMANDS, commands_for, with_command
from .pipeline_arguments import (
    MASK_STARTS,
    PAPER,
    PipelineArguments,
    ShearArguments,
    TextArguments,
    baseline_learning_rates,
)
from .places import check_places
from .report import judge_checkpoint, run_results, write_report
from .run_folder import RunFolder, finished_stages, run_settings
from .run_time import (
    MASK_LEARNING,
    PAPER_MASK_SHARE,
    PAPER_MASKS,
    PRUNING,
    RECOVERY,
    SOURCE,
    TEACHER_LOGITS,
    Work,
    judging_note,
    planned_work,
    seconds_left,
)
from .saves import check_run
from .target_choice import choose_target
from .teaching import check_teaching, load_teacher, store_logits, stored_logits

DRAWN_FROM = 8  # samples that are tokenised for each that is drawn, where nothing is trained
TRAINED_DTYPE = torch.float32  # AdamW loses small steps in half precision; --bf16 still computes in bfloat16


@dataclass(frozen=True)
class Run:
    """What the stages of one run share.

    Attributes:
        pipeline, args: what was asked for.
        source: the checkpoint that is sheared.
        teacher: that of a distillation; None without one.
        target: the shape to reach.
        data: packed samples per domain.
        train: those to train on, with stored teacher logits where there are any.
        continued_by: what to add to the command, for it to go on after a stop; "" if nothing.
        live: the page that shows the run while it goes.
    """

    pipeline: PipelineArguments
    args: ShearTrainingArguments
    source: Source
    teacher: Source | None
    target: TargetShape
    data: DomainData
    train: Mapping[Any, Dataset]
    tokenizer: PreTrainedTokenizerBase
    folder: RunFolder
    continued_by: str = ""
    live: LivePage = field(default_factory=partial(LivePage, False))

    def stage(self, name: str, run, *arguments) -> dict:
        """Run a stage, or return what it recorded when it ran before."""
        PartialState().print(f"\n== {name}{self._where(name)}")
        with self.live.stage(self, name):
            try:
                return self.folder.stage(name, lambda: run(self, *arguments))
            except StoppedBySignal as stop:
                stop.advice = f"To go on: the same command{self.continued_by}."
                raise

    def _where(self, name: str) -> str:
        """Whether a stage ran before; or how long the run still takes."""
        records = self.folder.records
        if name in records:
            return " (finished before)"
        planned = {stage: work.flops for stage, work in self.planned().items()}
        left = seconds_left(planned, {stage: records[stage]["stage_seconds"] for stage in planned if stage in records})
        return "" if left is None else f" (about {duration_text(left)} left of the run)"

    def planned(self) -> dict[str, Work]:
        """Work of the stages that this run is to go through, by name."""
        teacher = None if self.teacher is None else self.teacher.config
        return planned_work(
            self.pipeline, self.data, self.source.config, self.target, teacher, self.args.samples_per_step()
        )

    def tell_costs(self) -> None:
        """Print what the stages that are not finished would cost here, for ``--dry_run``."""
        left = {name: work.flops for name, work in self.planned().items() if name not in self.folder.records}
        small = config_for_shape(self.source.config, self.target)
        trained = {MASK_LEARNING: self.source.config, RECOVERY: small}
        trained = {name: config for name, config in trained.items() if name in left}
        tell_costs(left, self.source.config, self.args, self.pipeline.max_length, trained)

    @property
    def stop_after(self) -> str | None:
        """The last stage that was asked for; None: all of them."""
        return self.pipeline.stop_after

    def training_flops(self, config: PretrainedConfig) -> float:
        """FLOPs of a token of full training, forward and backward, with those of a teacher if there is one."""
        teacher = None if self.teacher is None or self.pipeline.teacher_placement == STORED else self.teacher.config
        return training_flops_per_token(config, self.pipeline.max_length, teacher=teacher)

    @property
    def source_dtype(self) -> torch.dtype:
        """In which every model of the run is saved."""
        return getattr(torch, self.folder.records[SOURCE]["dtype"])


def open_model(pipeline) -> Source:
    """The checkpoint that arguments with ``model_name_or_path`` and ``as_family`` name."""
    return open_source("model_name_or_path", pipeline.model_name_or_path, as_family=pipeline.as_family)


def open_run(pipeline: PipelineArguments, args: ShearTrainingArguments, default_domains=None) -> Run:
    """Check everything that can be checked, open the run's folder, read and pack the text.

    Args:
        pipeline, args: as parsed.
        default_domains: makes the text per domain where no ``data_dir`` is given.

    Raises:
        ValueError: anything that does not fit; nothing has been trained or deleted then.
    """
    learns = pipeline.learns_masks
    if learns and (pipeline.overwrite or MASK_LEARNING not in (finished_stages(args.output_dir) or ())):
        check_mask_options(args)
    source, teacher = open_model(pipeline), None
    config = source.config
    target, reasons = choose_target(pipeline, config)
    tokenizer = source.load_tokenizer()
    if args.distillation != "none":
        named = pipeline.teacher_name_or_path
        teacher = source if named is None else open_source("teacher_name_or_path", named)
    check_teaching(pipeline, args, teacher, config, tokenizer)
    if learns:
        _check_masks(pipeline, args, config, target)
    settings = run_settings(pipeline, target, args)
    if isinstance(pipeline, ShearArguments) and not learns:
        pipeline = pipeline.for_target(count_parameters(config, target))
        make_plan(config, target, pipeline.prune_config())
    check_max_length(pipeline.max_length, source.config.max_position_embeddings)
    check_run(pipeline, args, source, target, tokenizer)
    domains = read_domains(pipeline, args, default_domains)
    settings |= read_checkpoints(pipeline, source, teacher)
    folder = RunFolder(args.named_output_dir, pipeline.resume, pipeline.overwrite, settings, dry=pipeline.dry_run)
    said = (*source.notes, reasons, f"Target: {target}", f"Run folder: {folder.path}")
    PartialState().print("\n".join(filter(None, said)))
    data = pack(pipeline, domains, tokenizer, config)
    require_same_text(folder, data)
    flags = ["--resume"] * (not pipeline.resume) + [f"--output_dir {folder.path}"] * (args.named_output_dir is None)
    again = f" with `{' '.join(flags)}`" if flags else ""
    run = Run(pipeline, args, source, teacher, target, data, data.train, tokenizer, folder, again,
              LivePage(pipeline.live_page))  # fmt: skip
    PartialState().print(judging_note(run.planned(), data, pipeline.max_length))
    return run


def _check_masks(
    pipeline: PipelineArguments, args: ShearTrainingArguments, config: PretrainedConfig, target: TargetShape
) -> None:
    """Refuse what mask learning, or the cut after it, would refuse."""
    always_binary = STRATEGIES[pipeline.mask_method].deterministic_is_binary
    hardened = not pipeline.paper and (always_binary or args.hardening_ratio > 0)
    sharded = PartialState().distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    family = family_named(pipeline.as_family, "`as_family`: ") if pipeline.as_family is not None else family_of(config)
    check_learned_cut(pipeline.compensation, as_family(config, family), hardened, sharded)
    if pipeline.mask_start not in MASK_STARTS:
        kinds = [kind.name for kind in unit_kinds(target.source, target).values() if not kind.frozen]
        criteria_by_kind(criteria_from_words(pipeline.mask_start.split()), kinds)


def require_same_text(folder: RunFolder, data: DomainData) -> None:
    """Note the digests of the packed text in the run's folder, or refuse to continue a run on other text."""
    folder.require(by_main_process(lambda: deciding_samples(data.train, data.held_out)))


def read_checkpoints(pipeline, source: Source, teacher: Source | None = None) -> dict[str, str]:
    """Digests of the checkpoints that a run reads, to compare on resume."""
    found = checkpoint_digests("source (`model_name_or_path`)", source, tokenizer=True)
    if getattr(pipeline, "pruned", None) is not None:
        found |= checkpoint_digests("pruned checkpoint (`pruned`)", open_source("pruned", pipeline.pruned))
    if teacher is not None:
        found |= checkpoint_digests("teacher (`teacher_name_or_path`)", teacher)
    return found


def read_domains(pipeline, args: ShearTrainingArguments, default_domains=None):
    """Text per domain, checked against the arguments."""
    if pipeline.data_dir is None and default_domains is None:
        raise _no_data_dir()
    check_places(pipeline, args.named_output_dir)
    with PartialState().local_main_process_first():  # reads; the others find it cached
        domains = default_domains() if not pipeline.data_dir and default_domains is not None else load_text(pipeline)
    check_domain_arguments(args, [str(name) for name in domains])
    return domains


def _no_data_dir() -> UsageError:
    return UsageError(
        "`data_dir` is needed, but it was not given. Name a folder with one sub-folder or file of text per domain."
    )


def load_text(arguments: TextArguments):
    """Text per domain, as the arguments say."""
    if arguments.data_dir is None:
        raise _no_data_dir()
    return load_domains(
        arguments.data_dir, arguments.text_field, skip_unreadable=arguments.skip_unreadable,
        skip_null_text=arguments.skip_null_text,
    )  # fmt: skip


def pack(pipeline, domains, tokenizer, config: PretrainedConfig, num_samples: int | None = None) -> DomainData:
    """Split, tokenise and pack, as the pipeline's arguments say.

    Args:
        num_samples: that are drawn for calibration, where nothing is trained. They are drawn from eight times as many, and
            no more text is tokenised than that takes.
    """
    judged = judged_tokens(pipeline.eval_tokens, pipeline.max_length, len(domains))
    with PartialState().local_main_process_first():
        return prepare_domain_data(
            domains, tokenizer, config, max_length=pipeline.max_length, held_out_fraction=pipeline.held_out_fraction,
            eval_tokens=judged, block_diagonal=pipeline.block_diagonal, num_proc=pipeline.num_proc,
            parse_special_tokens=pipeline.parse_special_tokens,
            most_samples=None if num_samples is None else max(DRAWN_FROM * num_samples // len(domains), STEERING_SAMPLES),
        )  # fmt: skip


def judge_source(run: Run) -> dict:
    """The source as it comes."""
    return judge_checkpoint(run.source, run.data.judged, run.args)


def with_teacher_logits(run: Run) -> Run:
    """The run with stored teacher logits in its training samples, if it is to have them; stored first if need be."""
    if run.teacher is None or run.pipeline.teacher_placement != STORED:
        return run
    run.stage(TEACHER_LOGITS, store_logits)
    return replace(run, train=stored_logits(run.folder.path))


def masked_source(run: Run) -> ShearingModel:
    """The source with masks towards the target."""
    pipeline, seed = run.pipeline, run.args.seed
    settings = MaskSettings(method=pipeline.mask_method, draw=pipeline.mask_draw, seed=seed)
    settings = MaskSettings.paper(seed) if pipeline.paper else settings
    options = {"dtype": TRAINED_DTYPE, "target_shape": run.target, "mask_settings": settings}
    options |= {"as_family": pipeline.as_family}
    return AutoShearingModelForCausalLM.from_pretrained(run.source, **options)


def calibration(run: Run) -> list[dict]:
    """Batches of one optimizer step's size, whatever its micro-batches."""
    args = run.args
    size, num_batches = args.samples_per_step(), run.pipeline.calibration_batches
    batches = run.data.calibration(size, num_batches, args.seed).batches
    if args.process_index == 0:
        judged = (row for samples in run.data.judged.values() for row in samples["input_ids"])
        warn_of_shared_text((row for batch in batches for row in batch["input_ids"]), judged)
    return batches


def prune_or_learn(run: Run) -> dict:
    """The stage that ends with the exact target shape in <output_dir>/pruned: at once, or by masks learned in training."""
    if run.pipeline.learns_masks:
        return run.stage(MASK_LEARNING, learn_masks)
    return run.stage(PRUNING, prune_at_once)


def prune_at_once(run: Run) -> dict:
    """Choose by scores what to keep, make up for the rest, cut; a record as that of ``learn_masks``, without masks."""
    assert isinstance(run.pipeline, ShearArguments)
    start, args = time.perf_counter(), run.args
    text = Calibration.from_batches(calibration(run), args.train_batch_size, args.seed)
    with whole_models():
        source = on_device(run.source.load_model(TRAINED_DTYPE), args.device)
    references = source_references(run, source)
    pruning = prune_one_shot(source, run.target, text, run.pipeline.prune_config(), release_source=True)
    pruned = time.perf_counter()
    commands = commands_for(run.source.name)
    pruning.save(run.folder.path / "pruned", run.tokenizer, run.source_dtype, seed=args.seed, commands=commands)
    exported = time.perf_counter()
    return {
        "masks": None,
        "prune_config": pruning.config.to_dict(),
        "kept": pruning.kept.to_dict(),
        "tokens": 0,
        "history": [],
        "sizes": [],
        "passes": {},
        "mixture_weights": args.mixture_weights,
        "calibration_tokens": text.num_tokens,
        "flops": pruning.cost.flops,
        "model": judge_checkpoint(run.folder.path / "pruned", run.data.judged, args),
        "seconds": pruned - start,
        "export_seconds": exported - pruned,
    } | references


def source_references(run: Run, source: PreTrainedModel | None = None) -> dict:
    """What recovery steers domain weights to: losses of the source on its steering samples, if it has the budget.

    Args:
        source: loaded if it is not given.
    """
    recovery = replace(run.args, num_tokens=run.pipeline.recovery_tokens)
    recovery.set_steps(run.pipeline.max_length)
    plan, found = plan_evaluations(recovery, len(run.data.steering)), {}
    if plan.steers and not recovery.reference_losses:
        if source is None:
            with whole_models():
                source = on_device(run.source.load_model(TRAINED_DTYPE), recovery.device)
        found = evaluate_samples(source, run.data.first_steering(plan.samples_per_domain), recovery.eval_batch_size)
    return {
        "reference_losses": {name: losses.mean for name, losses in found.items()} or recovery.reference_losses,
        "reference_samples": {name: losses.sums for name, losses in found.items()} or None,
        "reference_tokens": sum(sum(losses.num_tokens) for losses in found.values()),
        "eval_samples": plan.samples_per_domain,
    }


def learn_masks(run: Run, name: str = MASK_LEARNING, place: str = "pruned") -> dict:
    """Learn the masks, slice, and export to <output_dir>/pruned.

    Args:
        name: of the stage.
        place: of the result, in <output_dir>.
    """
    pipeline, folder = run.pipeline, run.folder
    checkpoint, importance, choosing = folder.last_checkpoint(name), None, 0.0
    calibrated = pipeline.mask_start != "uniform" and not pipeline.paper
    if calibrated and checkpoint is None:
        with whole_models(), counted_flops() as counted:
            importance = _mask_start(run)
        folder.record(f"{name}_start", {"flops": count_over_ranks(counted.total, run.args.device)})
    if calibrated:
        begun = folder.records.get(f"{name}_start")  # by the process that made it
        if begun is None:
            raise UsageError(
                f"The run in {str(folder.path)!r} does not say what its masks' start cost, as one of another"
                " version of hf_shear. Go on with that version, or start a run in another folder."
            )
        choosing += begun["flops"]
    model = masked_source(run)
    if importance is not None:
        model.masks.start_from_importance(importance, pipeline.mask_start_spread)
    args = replace(run.args, output_dir=str(folder.path / name), num_tokens=pipeline.mask_tokens,
                   recovery_method="full", peft_config=None, **mask_stage(pipeline.paper))  # fmt: skip
    start = time.perf_counter()
    teacher = load_teacher(pipeline, args, run.teacher)
    trainer = ShearTrainer(model, args, run.train, run.data.steering, run.tokenizer, teacher=teacher)
    run.live.watch(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    learned = time.perf_counter()
    with counted_flops() as counted:
        sliced, kept, compensation = _cut(run, trainer)
    choosing += count_over_ranks(counted.total, run.args.device)
    record = trainer.stage_record(name)
    if record["reference_samples"] is None:
        record |= source_references(run)
    facts = {"masks": trainer.mask_report, "kept": kept.to_dict(), **compensation}
    found = {name: record[name] for name in ("reference_losses", "mixture_weights")}  # what recovery starts from
    found[COMMANDS] = commands_for(run.source.name)
    provenance = provenance_record(model, seed=args.seed, mask_learning=record["tokens"], **found, **facts)
    save_checkpoint(sliced, folder.path / place, run.tokenizer, provenance)
    exported = time.perf_counter()
    choosing += record["tokens"] * run.training_flops(run.source.config)
    return facts | record | {
        "calibration_tokens": pipeline.calibration_batches * args.samples_per_step() * pipeline.max_length
        * (calibrated or "compensation" in facts),
        "flops": choosing,
        "model": judge_checkpoint(folder.path / place, run.data.judged, args),
        "seconds": learned - start, "export_seconds": exported - learned,
    }  # fmt: skip


def learn_paper_masks(run: Run, learned: dict) -> dict:
    """Learn masks as the paper does, for a rival, to <output_dir>/paper/start."""
    rate, num_tokens = _terms(run, PAPER, learned)
    num_tokens = round(PAPER_MASK_SHARE * num_tokens)
    pipeline = replace(run.pipeline, paper=True, mask_tokens=num_tokens, compensation="none", mask_start="uniform")
    rival = replace(run, pipeline=pipeline, args=replace(run.args, learning_rate=rate))
    return learn_masks(rival, PAPER_MASKS, f"{PAPER}/start")


def _mask_start(run: Run) -> dict[str, Tensor]:
    """Scores that log_alpha starts from."""
    source, text = on_device(masked_source(run), run.args.device), calibration(run)
    if run.pipeline.mask_start == "taylor":
        return mask_start_importance(source, text, run.args.train_batch_size)
    choice = criteria_from_words(run.pipeline.mask_start.split())
    kinds = [kind.name for kind in source.masks.constrained]
    with source.use_gates({}):
        return score_units(
            source, choice, Calibration.from_batches(text, run.args.train_batch_size, run.args.seed), kinds
        )


def _cut(run: Run, trainer: ShearTrainer):
    """The sliced model, the kept units, and what compensation did, if it was asked for."""
    method = run.pipeline.compensation
    if resolve_compensation(method).does_nothing:
        return *slice_model(trainer.masked_model, dtype=run.source_dtype), {}
    text = Calibration.from_batches(calibration(run), run.args.train_batch_size, run.args.seed)
    source = run.source.load_model(TRAINED_DTYPE)
    sliced, kept, report = cut_learned_masks(trainer.masked_model, method, text, source, run.source_dtype)
    return sliced, kept, {"compensation": {"method": method, **asdict(report)}}


def load_trained(path, quantize: str = "none"):
    """A plain checkpoint to be trained: in float32, or with frozen weights quantised by bitsandbytes."""
    options = {}
    if quantize != "none":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantize == "8bit", load_in_4bit=quantize == "4bit", bnb_4bit_quant_type="nf4"
        )
    return open_source("pruned", path).load_model(TRAINED_DTYPE, **options)


def train_plain(run: Run, name: str, model, start_path: Path | None, num_tokens: int, learned: dict, saved_as: Path,
                provenance: dict | None = None, **changes) -> dict:  # fmt: skip
    """Recover a plain model with dynamic batches: checkpoints in <output_dir>/<name>, the result in ``saved_as``.

    Args:
        start_path: the checkpoint that ``model`` is of, into which adapters are merged; None: saved first, if needed.
        learned: the record with the domains' reference losses.
    """
    folder = run.folder
    if run.pipeline.paper or name == PAPER:
        changes["mixture_update"] = PAPER_MASK_LEARNING["mixture_update"]
    args = replace(run.args, output_dir=str(folder.path / name), num_tokens=num_tokens,
                   reference_losses=learned["reference_losses"], **changes)  # fmt: skip
    adapts = args.recovery.adapts
    if start_path is None:
        start_path = folder.path / name / "start"
        if adapts:
            save_checkpoint(model, start_path)
            model = load_trained(start_path, run.pipeline.quantize)
    start = time.perf_counter()
    teacher = load_teacher(run.pipeline, args, run.teacher)
    number = learned["eval_samples"]  # those that references are known of; 0 without evaluations
    steering = run.data.first_steering(number) if number else None
    trainer = ShearTrainer(
        model, args, run.train, steering, run.tokenizer, teacher=teacher,
        reference_samples=learned.get("reference_samples"),
    )  # fmt: skip
    run.live.watch(trainer)
    trainer.train(resume_from_checkpoint=folder.last_checkpoint(name))
    record = trainer.stage_record(name) | {
        "seconds": time.perf_counter() - start, "learning_rate": args.learning_rate,
        "flops": trainer.tokens_seen() * run.training_flops(model.config),
    }  # fmt: skip
    if provenance is not None:
        provenance = provenance | {name: record["tokens"], COMMANDS: with_command(*provenance.get(COMMANDS, ()))}
    if adapts:
        kept = saved_as.with_name("adapter") if run.pipeline.keep_adapter else folder.path / name / "adapter"
        trained = _merged(trainer, start_path, kept)
    else:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        assert isinstance(trained, PreTrainedModel)
    save_checkpoint(trained, saved_as, run.tokenizer, provenance, dtype=run.source_dtype)
    return record | {"model": judge_checkpoint(saved_as, run.data.judged, args)}


def _merged(trainer: ShearTrainer, start_path: Path, adapter: Path):
    """The plain model that an adapter and the checkpoint it was trained on make together; the adapter is saved."""
    unfinished = adapter.with_name(adapter.name + UNFINISHED)
    by_main_process(lambda: begin_folder(adapter))
    trainer.save_model(str(unfinished))
    trainer.accelerator.wait_for_everyone()
    with whole_models():
        base = load_trained(start_path)

    def complete() -> None:
        if trainer.base_digest is None:  # quantised or partitioned; else noted by now
            save_adapter_record(unfinished, base)
        put_in_place(unfinished, adapter)

    by_main_process(complete)
    return merge_adapter(base, adapter)


def recover(run: Run, learned: dict) -> dict:
    """Train the pruned model back to strength, to <output_dir>/recovered."""
    pruned = run.folder.path / "pruned"
    model, provenance = load_trained(pruned, run.pipeline.quantize), read_provenance(pruned)
    return train_plain(run, RECOVERY, model, pruned, run.pipeline.recovery_tokens, learned,
                       run.folder.path / "recovered", provenance, mixture_weights=learned["mixture_weights"])  # fmt: skip


def train_baseline(run: Run, name: str, learned: dict) -> dict:
    """A baseline at the tokens of mask learning plus recovery, to <output_dir>/<name>/trained.

    It is recovered in the same way; but random weights ("scratch") are always trained in full.
    """
    rate, num_tokens = _terms(run, name, learned)
    saved_as, start, chosen, changes = run.folder.path / name / "trained", None, {}, {}
    if name == PAPER:
        chosen = run.folder.records[PAPER_MASKS]
        start, num_tokens = run.folder.path / PAPER / "start", num_tokens - chosen["tokens"]
        changes["mixture_weights"] = chosen["mixture_weights"]
        model = load_trained(start, run.pipeline.quantize)
    else:
        with whole_models():
            source = on_device(masked_source(run), run.args.device)
            model, chosen["flops"] = baseline_model(
                name, source, calibration(run), run.args.seed, run.args.train_batch_size
            )
    if name == "scratch":
        changes |= {"recovery_method": "full", "peft_config": None}
    record = train_plain(run, name, model, start, num_tokens, learned, saved_as, learning_rate=rate, **changes)
    record["flops"] += chosen["flops"]
    return record | {"tokens": record["tokens"] + chosen.get("tokens", 0)}


def _terms(run: Run, name: str, learned: dict) -> tuple[float, int]:
    """Learning rate and training tokens of a baseline."""
    rate = baseline_learning_rates(run.pipeline.baseline_learning_rates).get(name, run.args.learning_rate)
    return rate, learned["tokens"] + run.folder.records[RECOVERY]["tokens"]


def conclude(run: Run, learned: dict, recovered: dict, started: float) -> None:
    """Train the baselines, if they are asked for; write the results and the report, and print the table.

    Args:
        learned, recovered: records of the two stages.
        started: ``time.perf_counter()`` when this process began.
    """
    names = run.pipeline.rivals if run.pipeline.baselines else ()
    if PAPER in names:
        run.stage(PAPER_MASKS, learn_paper_masks, learned)
    baselines = {name: run.stage(name, train_baseline, name, learned) for name in names}
    commands = commands_for(run.folder.path / "recovered")
    results = run_results(run.folder.records[SOURCE], learned, recovered, baselines, run.target, run.args, commands)
    results["seconds"]["total"] = run.folder.total_seconds(started)
    if run.args.process_index == 0:
        print(write_report(run.folder.path, results))
