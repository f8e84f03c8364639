"""Shear a pretrained Llama to the shape you choose: source -> learn masks -> export -> recover -> evaluate.

    accelerate launch examples/shear.py
    accelerate launch examples/shear.py --model_name_or_path LLAMA --data_dir TEXT --hidden_size 2048 --output_dir OUT

Without arguments it shears the tiny model in examples/embedded/model on text from Python's own library. `--help` lists
these arguments and those of transformers.TrainingArguments; `--config FILE.yaml` sets any of them.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from embedded.stdlib_domains import stdlib_domains
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_shear import MaskSettings, ShearingLlamaForCausalLM, ShearTrainer, ShearTrainingArguments, runs, slice_model
from hf_shear.data import load_domains
from hf_shear.importance import mask_start_importance
from hf_shear.masks import MASK_DRAWS, MASK_METHODS, START_SPREAD
from hf_shear.reporting import require_matplotlib
from hf_shear.shapes import SHAPE_NAMES
from hf_shear.slicing import provenance_record, read_provenance, save_checkpoint
from hf_shear.training import PAPER_MASK_LEARNING, check_domain_arguments

EMBEDDED = Path(__file__).resolve().parent / "embedded"
TOKENS = "give --mask_tokens and --recovery_tokens"
NOT_HERE = {"num_tokens": TOKENS, "max_steps": TOKENS, "num_train_epochs": TOKENS, "push_to_hub": "push OUT/recovered"}
TRAINED_DTYPE = torch.float32  # AdamW loses small steps in half precision; --bf16 still computes in bfloat16
load_plain = AutoModelForCausalLM.from_pretrained  # in the dtype of the checkpoint, if none is named


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
    mask_tokens: int = field(default=48_000, metadata={"help": "Training tokens of mask learning."})
    recovery_tokens: int = field(default=752_000, metadata={"help": "Training tokens of recovery."})
    max_length: int = field(default=256, metadata={"help": "Tokens per sample."})
    eval_tokens: int = field(default=16_384, metadata={"help": "Held-out tokens per domain behind the results."})
    held_out_fraction: float = field(default=0.1, metadata={"help": "Share of the documents kept from training."})
    block_diagonal: bool = field(default=False, metadata={"help": "No attention across packed documents."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    mask_method: Literal[MASK_METHODS] = field(default="relaxed_topk", metadata={"help": "hard_concrete: the paper."})
    mask_draw: Literal[MASK_DRAWS] = field(default="per_step", metadata={"help": "per_micro_batch: reference code."})
    mask_start: Literal["taylor", "uniform"] = field(default="taylor", metadata={"help": "uniform: the paper."})
    mask_start_spread: float = field(default=START_SPREAD, metadata={"help": "log_alpha starts within +- this."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches of a step's size, for Taylor scores."})
    paper: bool = field(default=False, metadata={"help": "The paper's mask learning, whatever else is set."})
    baselines: bool = field(default=True, metadata={"help": "Train random, Taylor and scratch at equal tokens."})
    baseline_learning_rates: str | None = field(default=None, metadata={"help": "JSON: rate by baseline."})
    stop_after: Literal["mask_learning", "recovery"] | None = field(
        default=None, metadata={"help": "--resume goes on."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue the run in --output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the run in --output_dir."})

    def __post_init__(self):
        for name in ("mask_tokens", "recovery_tokens", "calibration_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but it is {getattr(self, name)}.")
        runs.baseline_learning_rates(self.baseline_learning_rates)  # refused now, not after recovery


def masked_source(pipeline, args, target) -> ShearingLlamaForCausalLM:
    settings = MaskSettings(method=pipeline.mask_method, draw=pipeline.mask_draw, seed=args.seed)
    settings = MaskSettings.paper(args.seed) if pipeline.paper else settings
    options = {"dtype": TRAINED_DTYPE, "target_shape": target, "mask_settings": settings}
    return ShearingLlamaForCausalLM.from_pretrained(pipeline.model_name_or_path, **options)


def calibration(pipeline, args, data) -> list[dict]:
    """Batches of one optimizer step's size, whatever its micro-batches."""
    return list(data.calibration(args.samples_per_step(), pipeline.calibration_batches, args.seed))


def learn_masks(pipeline, args, target, data, tokenizer, folder) -> dict:
    """Learn the masks, slice, and export to <output_dir>/pruned."""
    model, checkpoint = masked_source(pipeline, args, target), folder.last_checkpoint("mask_learning")
    calibrated = pipeline.mask_start == "taylor" and not pipeline.paper
    if calibrated and checkpoint is None:
        batches = calibration(pipeline, args, data)
        importance = mask_start_importance(model.to(args.device), batches, args.train_batch_size)
        model.masks.start_from_importance(importance, pipeline.mask_start_spread)
    stage = {"lr_scheduler_type": "constant_with_warmup"} if not pipeline.paper else PAPER_MASK_LEARNING
    args = replace(args, output_dir=str(folder.path / "mask_learning"), num_tokens=pipeline.mask_tokens, **stage)
    start = time.perf_counter()
    trainer = ShearTrainer(model, args, data.train, data.held_out, tokenizer)
    trainer.train(resume_from_checkpoint=checkpoint)
    learned = time.perf_counter()
    sliced, kept = slice_model(trainer.masked_model)
    sliced.to(source_dtype(folder))
    facts = {"masks": trainer.mask_report, "kept": kept.to_dict()}
    record = provenance_record(model, seed=args.seed, **facts)
    save_checkpoint(sliced, folder.path / "pruned", tokenizer, record)
    exported = time.perf_counter()
    return facts | trainer.stage_record("mask_learning") | {
        "calibration_tokens": pipeline.calibration_batches * args.samples_per_step() * pipeline.max_length * calibrated,
        "model": runs.judge(sliced, data.judged, args),
        "seconds": learned - start, "export_seconds": exported - learned,
    }  # fmt: skip


def source_dtype(folder) -> torch.dtype:
    return getattr(torch, folder.finished("source")["dtype"])


def train_plain(name, model, args, num_tokens, data, tokenizer, folder, learned, **changes) -> dict:
    """Continue pre-training of a plain model with dynamic batches, checkpoints in <output_dir>/<name>."""
    args = replace(args, output_dir=str(folder.path / name), num_tokens=num_tokens,
                   reference_losses=learned["reference_losses"], **changes)  # fmt: skip
    start = time.perf_counter()
    trainer = ShearTrainer(model, args, data.train, data.first_held_out(learned["eval_samples"]), tokenizer)
    trainer.train(resume_from_checkpoint=folder.last_checkpoint(name))
    model.to(source_dtype(folder))
    return trainer.stage_record(name) | {
        "seconds": time.perf_counter() - start, "learning_rate": args.learning_rate,
        "model": runs.judge(model, data.judged, args),
    }  # fmt: skip


def recover(pipeline, args, target, data, tokenizer, folder, learned) -> dict:
    """Train the pruned model back to strength, to <output_dir>/recovered."""
    model = load_plain(folder.path / "pruned", dtype=TRAINED_DTYPE)
    record = train_plain("recovery", model, args, pipeline.recovery_tokens, data, tokenizer, folder, learned,
                         mixture_weights=learned["mixture_weights"])  # fmt: skip
    provenance = read_provenance(folder.path / "pruned") | {"recovery": record["tokens"]}
    save_checkpoint(model, folder.path / "recovered", tokenizer, provenance)
    return record


def train_baseline(name, pipeline, args, target, data, tokenizer, folder, learned) -> dict:
    """A baseline at the tokens of mask learning plus recovery."""
    source = masked_source(pipeline, args, target).to(args.device)
    model = runs.baseline_model(name, source, calibration(pipeline, args, data), args.seed, args.train_batch_size)
    rate = runs.baseline_learning_rates(pipeline.baseline_learning_rates).get(name, args.learning_rate)
    num_tokens = learned["tokens"] + folder.finished("recovery")["tokens"]
    return train_plain(name, model, args, num_tokens, data, tokenizer, folder, learned, learning_rate=rate)


def main() -> None:
    started = time.perf_counter()
    pipeline, args = runs.parse_arguments(
        (PipelineArguments, ShearTrainingArguments), default_config=EMBEDDED / "shear.yaml",
        unless=["model_name_or_path"], instead={"preset": SHAPE_NAMES, "target_num_parameters": SHAPE_NAMES},
        refused=NOT_HERE,
    )  # fmt: skip
    require_matplotlib()
    config = AutoConfig.from_pretrained(pipeline.model_name_or_path)
    target, reasons = runs.choose_target(pipeline, config)
    tokenizer = AutoTokenizer.from_pretrained(pipeline.model_name_or_path)
    domains = load_domains(pipeline.data_dir) if pipeline.data_dir else stdlib_domains()
    check_domain_arguments(args, list(domains))
    output_dir = None if args.output_dir == "trainer_output" else args.output_dir  # transformers' name for none given
    settings = runs.run_settings(pipeline, target, args.seed)
    folder = runs.RunFolder.open(output_dir, pipeline.resume, pipeline.overwrite, settings)
    tell = PartialState().print
    tell("\n".join(filter(None, (reasons, f"Target: {target}", f"Run folder: {folder.path}"))))
    data = runs.prepare_domain_data(
        domains, tokenizer, config, max_length=pipeline.max_length, held_out_fraction=pipeline.held_out_fraction,
        eval_tokens=pipeline.eval_tokens, block_diagonal=pipeline.block_diagonal, num_proc=pipeline.num_proc,
    )  # fmt: skip
    common = (pipeline, args, target, data, tokenizer, folder)

    def stage(name, run, *arguments) -> dict:
        tell(f"\n== {name}" + (" (finished before)" if folder.finished(name) else ""))
        return folder.stage(name, lambda: run(*arguments))

    stage("source", lambda: runs.judge(load_plain(pipeline.model_name_or_path), data.judged, args))
    learned = stage("mask_learning", learn_masks, *common)
    if pipeline.stop_after == "mask_learning":
        return
    recovered = stage("recovery", recover, *common, learned)
    if pipeline.stop_after == "recovery":
        return
    names = runs.BASELINES if pipeline.baselines else ()
    baselines = {name: stage(name, partial(train_baseline, name), *common, learned) for name in names}
    results = runs.run_results(folder.finished("source"), learned, recovered, baselines, target, args.seed)
    results["seconds"]["total"] = folder.total_seconds(started)
    if args.process_index == 0:
        print(runs.write_report(folder.path, results))


if __name__ == "__main__":
    main()
