"""Shear a pretrained Llama to the shape you choose: source -> learn masks -> export -> recover -> evaluate.

    accelerate launch examples/shear.py
    accelerate launch examples/shear.py --model_name_or_path LLAMA --data_dir TEXT --hidden_size 2048 --output_dir OUT

Without arguments it shears the tiny model in examples/embedded/model on text from Python's own library. `--help` lists
these arguments and those of transformers.TrainingArguments; `--config FILE.yaml` sets any of them.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from embedded.stdlib_domains import stdlib_domains
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_shear import MaskSettings, ShearingLlamaForCausalLM, ShearTrainer, ShearTrainingArguments, slice_model
from hf_shear.data import load_domains
from hf_shear.importance import mask_start_importance
from hf_shear.modeling import check_supported_source
from hf_shear.reporting import collect_versions
from hf_shear.runs import (
    BASELINES,
    RunFolder,
    baseline_model,
    judge,
    parse_arguments,
    prepare_domain_data,
    run_results,
    write_report,
)
from hf_shear.shapes import SHAPE_NAMES, TargetShape, preset_shape, shape_for_budget
from hf_shear.slicing import PROVENANCE_NAME, provenance_record, save_checkpoint
from hf_shear.training import PAPER_MASK_LEARNING

EMBEDDED = Path(__file__).resolve().parent / "embedded"
load_plain = AutoModelForCausalLM.from_pretrained  # in the dtype of the checkpoint


@dataclass
class PipelineArguments:
    """What is sheared, to which shape, on which text, for how long."""

    model_name_or_path: str = field(default=str(EMBEDDED / "model"), metadata={"help": "A plain Llama checkpoint."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder or file per domain."})
    preset: str | None = field(default=None, metadata={"help": "A shape of the paper, such as sheared-llama-1.3b."})
    hidden_size: int | None = field(default=None, metadata={"help": "Target size; the source's if not named."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Target size."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Target size."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Target size."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Target size."})
    target_num_parameters: int | None = field(default=None, metadata={"help": "Pick a shape of at most this size."})
    mask_tokens: int = field(default=160_000, metadata={"help": "Training tokens of mask learning."})
    recovery_tokens: int = field(default=640_000, metadata={"help": "Training tokens of recovery."})
    max_length: int = field(default=256, metadata={"help": "Tokens per sample."})
    eval_tokens: int = field(default=16_384, metadata={"help": "Held-out tokens per domain behind the results."})
    held_out_fraction: float = field(default=0.1, metadata={"help": "Share of the documents kept from training."})
    block_diagonal: bool = field(default=False, metadata={"help": "No attention across packed documents."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    mask_method: str = field(default="relaxed_topk", metadata={"help": "relaxed_topk, or hard_concrete (the paper)."})
    mask_draw: str = field(default="per_step", metadata={"help": "per_step, or per_micro_batch (reference code)."})
    mask_start: str = field(default="taylor", metadata={"help": "taylor, or uniform (the paper)."})
    mask_start_spread: float = field(default=4.0, metadata={"help": "Taylor start: log_alpha lies within +- this."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches behind Taylor scores."})
    paper: bool = field(default=False, metadata={"help": "The paper's mask learning, whatever else is set."})
    baselines: bool = field(default=True, metadata={"help": "Train random, Taylor and scratch at equal tokens."})
    baseline_learning_rates: str | None = field(default=None, metadata={"help": "JSON: rate by baseline."})
    stop_after: str | None = field(default=None, metadata={"help": "mask_learning or recovery; --resume goes on."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in --output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in --output_dir first."})


def run_settings(pipeline, args, target) -> dict:
    """What a resumed run must share with the run it continues."""
    free = {"num_proc", "baselines", "baseline_learning_rates", "stop_after", "resume", "overwrite", *SHAPE_NAMES}
    return {"target_shape": target.to_dict(), "seed": args.seed} | {
        name: value for name, value in asdict(pipeline).items() if name not in free
    }


def choose_target(pipeline: PipelineArguments, config) -> TargetShape:
    """The target from names, a preset or a budget; checked before any weight is loaded."""
    check_supported_source(config)
    named = {name: getattr(pipeline, name) for name in SHAPE_NAMES if getattr(pipeline, name) is not None}
    ways = [bool(named), pipeline.preset is not None, pipeline.target_num_parameters is not None]
    if sum(ways) != 1:
        raise ValueError(f"Name a target one way: {', '.join(SHAPE_NAMES)}, `--preset` or `--target_num_parameters`.")
    if pipeline.preset is not None:
        return preset_shape(pipeline.preset, config)
    if pipeline.target_num_parameters is not None:
        choice = shape_for_budget(config, num_parameters=pipeline.target_num_parameters)
        print(choice.describe())
        return choice.shape
    return TargetShape.from_source(config, **named)


def masked_source(pipeline, args, target) -> ShearingLlamaForCausalLM:
    settings = MaskSettings(method=pipeline.mask_method, draw=pipeline.mask_draw, seed=args.seed)
    settings = MaskSettings.paper(args.seed) if pipeline.paper else settings
    path = pipeline.model_name_or_path
    return ShearingLlamaForCausalLM.from_pretrained(path, target_shape=target, mask_settings=settings)


def learn_masks(pipeline, args, target, data, tokenizer, folder) -> dict:
    """Learn the masks, slice, and export to <output_dir>/pruned."""
    model, checkpoint = masked_source(pipeline, args, target), folder.last_checkpoint("mask_learning")
    calibrated = pipeline.mask_start == "taylor" and not pipeline.paper
    if calibrated and checkpoint is None:
        batches = data.calibration(args.train_batch_size, pipeline.calibration_batches, args.seed)
        model.masks.start_from_importance(mask_start_importance(model, batches), pipeline.mask_start_spread)
    stage = {"lr_scheduler_type": "constant_with_warmup"} if not pipeline.paper else PAPER_MASK_LEARNING
    args = replace(args, output_dir=str(folder.path / "mask_learning"), num_tokens=pipeline.mask_tokens, **stage)
    start = time.perf_counter()
    trainer = ShearTrainer(model, args, data.train, data.held_out, tokenizer)
    trainer.train(resume_from_checkpoint=checkpoint)
    learned = time.perf_counter()
    sliced, kept = slice_model(trainer.masked_model)
    facts = {"masks": trainer.mask_report, "kept": kept.to_dict()}
    if trainer.is_world_process_zero():
        record = provenance_record(model, versions=collect_versions(), seed=args.seed, **facts)
        save_checkpoint(sliced, folder.path / "pruned", tokenizer, record)
    exported = time.perf_counter()
    return facts | trainer.stage_record("mask_learning") | {
        "calibration_tokens": pipeline.calibration_batches * args.train_batch_size * pipeline.max_length * calibrated,
        "model": judge(sliced, data.judged, args),
        "seconds": learned - start, "export_seconds": exported - learned,
    }  # fmt: skip


def train_plain(name, model, args, num_tokens, data, tokenizer, folder, learned, **changes) -> dict:
    """Continue pre-training of a plain model with dynamic batches, checkpoints in <output_dir>/<name>."""
    args = replace(args, output_dir=str(folder.path / name), num_tokens=num_tokens,
                   reference_losses=learned["reference_losses"], **changes)  # fmt: skip
    start = time.perf_counter()
    trainer = ShearTrainer(model, args, data.train, data.first_held_out(learned["eval_samples"]), tokenizer)
    trainer.train(resume_from_checkpoint=folder.last_checkpoint(name))
    return trainer.stage_record(name) | {
        "seconds": time.perf_counter() - start, "learning_rate": args.learning_rate,
        "model": judge(model, data.judged, args),
    }  # fmt: skip


def recover(pipeline, args, data, tokenizer, folder, learned) -> dict:
    """Train the pruned model back to strength, to <output_dir>/recovered."""
    model, weights = load_plain(folder.path / "pruned"), learned["mixture_weights"]
    record = train_plain("recovery", model, args, pipeline.recovery_tokens, data, tokenizer, folder, learned,
                         mixture_weights=weights)  # fmt: skip
    if args.process_index == 0:
        provenance = json.loads((folder.path / "pruned" / PROVENANCE_NAME).read_text(encoding="utf-8"))
        save_checkpoint(model, folder.path / "recovered", tokenizer, provenance | {"recovery": record["tokens"]})
    return record


def train_baseline(name, pipeline, args, target, data, tokenizer, folder, learned) -> dict:
    """A baseline at the tokens of mask learning plus recovery."""
    batches = data.calibration(args.train_batch_size, pipeline.calibration_batches, args.seed)
    model = baseline_model(name, masked_source(pipeline, args, target), batches, args.seed)
    rate = json.loads(pipeline.baseline_learning_rates or "{}").get(name, args.learning_rate)
    num_tokens = learned["tokens"] + folder.finished("recovery")["tokens"]
    return train_plain(name, model, args, num_tokens, data, tokenizer, folder, learned, learning_rate=rate)


def main() -> None:
    started = time.perf_counter()
    pipeline, args = parse_arguments(
        (PipelineArguments, ShearTrainingArguments), default_config=EMBEDDED / "shear.yaml",
        unless=["model_name_or_path"], instead={"preset": SHAPE_NAMES, "target_num_parameters": SHAPE_NAMES},
    )  # fmt: skip
    config = AutoConfig.from_pretrained(pipeline.model_name_or_path)
    target = choose_target(pipeline, config)
    output_dir = None if args.output_dir == "trainer_output" else args.output_dir  # transformers' name for none given
    folder = RunFolder.open(output_dir, pipeline.resume, pipeline.overwrite, run_settings(pipeline, args, target))
    print(f"Target: {target}\nRun folder: {folder.path}")
    tokenizer = AutoTokenizer.from_pretrained(pipeline.model_name_or_path)
    data = prepare_domain_data(
        load_domains(pipeline.data_dir) if pipeline.data_dir else stdlib_domains(), tokenizer, config,
        max_length=pipeline.max_length, held_out_fraction=pipeline.held_out_fraction,
        eval_tokens=pipeline.eval_tokens, block_diagonal=pipeline.block_diagonal, num_proc=pipeline.num_proc,
    )  # fmt: skip
    common = (pipeline, args, target, data, tokenizer, folder)
    source = folder.stage("source", lambda: judge(load_plain(pipeline.model_name_or_path), data.judged, args))
    learned = folder.stage("mask_learning", lambda: learn_masks(*common))
    if pipeline.stop_after == "mask_learning":
        return
    recovered = folder.stage("recovery", lambda: recover(pipeline, args, data, tokenizer, folder, learned))
    if pipeline.stop_after == "recovery":
        return
    baselines = {
        name: folder.stage(name, lambda name=name: train_baseline(name, *common, learned))
        for name in (BASELINES if pipeline.baselines else ())
    }
    results = run_results(source, learned, recovered, baselines, target, args.seed)
    results["seconds"]["total"] = folder.total_seconds(started)
    print(write_report(folder.path, results))


if __name__ == "__main__":
    main()
