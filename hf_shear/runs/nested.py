"""Several nested sizes from one run: cut the largest, at once or by learned masks, rank its units, train all in turns."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..core import UsageError, by_main_process, write_json_atomically
from ..core.defaults import TARGET_BALANCES
from ..data import Calibration
from ..distillation import check_teacher
from ..modeling import AutoShearingModelForCausalLM
from ..pruning import NestedSizes, NestedTrainer, nested_shapes, rank_nested
from ..pruning.cost import CalibrationCost
from ..pruning.nested import LARGEST, NO_TEACHER
from ..shapes import TARGET_NAMES, TargetShape, count_parameters
from ..slicing import KeptUnits, read_provenance, save_checkpoint
from ..sources import on_device, whole_models
from ..training import ShearTrainingArguments, check_mask_options
from .origin import COMMANDS, commands_for, with_command
from .pipeline_arguments import ShearArguments
from .report import judge, judge_checkpoint, run_results, write_report
from .run_folder import finished_stages, settings_of_run
from .run_time import RECOVERY
from .stages import TRAINED_DTYPE, Run, calibration, load_trained, open_model, open_run
from .target_choice import OTHER_WAYS
from .teaching import load_teacher

SIZES = "sizes"
"""The folder of the results."""


@dataclass(kw_only=True)
class NestedArguments(ShearArguments):
    """As ``ShearArguments``, towards several sizes."""

    sizes: str = field(metadata={"help": "Of hf-shear recover."})
    size_teacher: str = field(default=NO_TEACHER, metadata={"help": "Of hf-shear recover."})

    @property
    def num_sizes(self) -> int:
        """How many sizes are trained."""
        return len(read_sizes(self.sizes))

    @property
    def teaches_sizes(self) -> bool:
        """Whether ``size_teacher`` is the largest."""
        return self.size_teacher != NO_TEACHER

    @property
    def rivals(self) -> tuple[str, ...]:
        """None: they have one size."""
        return ()


def read_sizes(text: str) -> list[float | int]:
    """Sizes of a flag: "0.75,0.5" are shares, "1_000_000,500_000" numbers of parameters."""
    found: list[float | int] = []
    for word in text.split(","):
        number = word.strip().replace("_", "")
        try:
            found.append(int(number) if number.isdecimal() else float(number))
        except ValueError:
            raise UsageError(
                f"`sizes` must be numbers with commas in between, such as 0.75,0.5,0.35, but it is {text!r}, which holds"
                f" {word.strip()!r}."
            ) from None
    return found


def open_nested_run(pipeline, args: ShearTrainingArguments) -> Run:
    """As ``open_run``, towards the largest of the sizes; a run that is there is continued.

    Args:
        pipeline: arguments of ``hf-shear recover`` with ``sizes``.
        args: of the training.

    Raises:
        UsageError: sizes that are not nested, or flags that contradict them; or as ``open_run``.
    """
    _refuse_contradictions(pipeline, args)
    config = open_model(pipeline).config
    shapes = nested_shapes(config, read_sizes(pipeline.sizes))
    if pipeline.size_teacher == LARGEST:
        check_teacher(config, config)
    finished = finished_stages(args.output_dir)
    if finished is not None and SIZES not in settings_of_run(args.output_dir):
        raise UsageError(
            f"The run in {str(args.output_dir)!r} is one of a single size. Name another `--output_dir` for `--sizes`."
        )
    known = {one.name for one in fields(NestedArguments)}
    given: dict[str, Any] = {one.name: getattr(pipeline, one.name) for one in fields(pipeline) if one.name in known}
    given |= {"mask_tokens": pipeline.mask_tokens or 0}
    given |= {"compensation": None if pipeline.compensation == "none" else pipeline.compensation}
    given |= {"resume": finished is not None, "stop_after": RECOVERY, "baselines": False}
    given |= next(iter(shapes.values())).sizes()
    nested = NestedArguments(**given)
    return replace(open_run(nested, args), continued_by="")


def _refuse_contradictions(pipeline, args: ShearTrainingArguments) -> None:
    named = [name for name in ("pruned", *TARGET_NAMES, *OTHER_WAYS) if getattr(pipeline, name) is not None]
    if named:
        raise UsageError(
            f"`sizes` {pipeline.sizes!r} says what is cut out of the source: leave out"
            f" {', '.join(f'`--{name}`' for name in named)}."
        )
    if pipeline.target_balance != TARGET_BALANCES[0]:
        raise UsageError(
            f"`target_balance` {pipeline.target_balance!r} is not taken beside `sizes`: their shapes are weighted. Leave it"
            " out; in Python, `nested_shapes` takes shapes."
        )
    if not args.recovery.trains_all:
        raise UsageError(
            f"`sizes` are trained with all weights, but `recovery_method` is {args.recovery_method!r}. Leave it out."
        )
    if pipeline.size_teacher == LARGEST and args.distillation != "none":
        raise UsageError(
            f"`size_teacher` 'largest' and `distillation` {args.distillation!r} give the smaller sizes two teachers. Leave"
            " one of them out."
        )
    check_mask_options(args)


def rank_sizes(run: Run, cut: dict) -> dict:
    """Rank the units of the largest size, and note those of each in <output_dir>/sizes.

    Args:
        cut: record of the stage that made the largest size, unused but for its being there.
    """
    start, args = time.perf_counter(), run.args
    text = Calibration.from_batches(calibration(run), args.train_batch_size, args.seed)
    with whole_models():
        model = on_device(load_trained(run.folder.path / "pruned"), args.device)
    cost = CalibrationCost.on(text)
    sizes = rank_nested(model, _shapes(run), text, cost=cost)
    cost.over_ranks(args.device)
    folder = run.folder.path / SIZES

    def note() -> None:
        folder.mkdir(exist_ok=True)
        sizes.save(folder)

    by_main_process(note)
    masked = AutoShearingModelForCausalLM.from_model(model)
    found = {}
    for name in sizes.names:
        sliced, kept = sizes.cut(masked, name, run.source_dtype)
        judged = judge(sliced, run.data.judged, args, with_samples=True)
        found[name] = {"model": judged, "kept": kept.to_dict()}
    return {"flops": cost.flops, "calibration_tokens": text.num_tokens, "seconds": time.perf_counter() - start,
            SIZES: found}  # fmt: skip


def _shapes(run: Run) -> dict[str, TargetShape]:
    assert isinstance(run.pipeline, NestedArguments)
    return nested_shapes(run.source.config, read_sizes(run.pipeline.sizes))


def recover_sizes(run: Run, cut: dict, ranked: dict) -> dict:
    """Train all sizes, and save each to <output_dir>/sizes/<name>/recovered.

    Args:
        cut, ranked: records of the stages before.
    """
    assert isinstance(run.pipeline, NestedArguments)
    folder, pipeline = run.folder, run.pipeline
    start = time.perf_counter()
    model = AutoShearingModelForCausalLM.from_pretrained(folder.path / "pruned", dtype=TRAINED_DTYPE, target_shape={})
    args = replace(run.args, output_dir=str(folder.path / RECOVERY), num_tokens=pipeline.recovery_tokens,
                   reference_losses=cut["reference_losses"], mixture_weights=cut["mixture_weights"])  # fmt: skip
    number = cut["eval_samples"]
    trainer = NestedTrainer(
        model, args, run.train, run.data.first_steering(number) if number else None, run.tokenizer,
        teacher=load_teacher(pipeline, args, run.teacher), reference_samples=cut.get("reference_samples"),
        sizes=NestedSizes.load(folder.path / SIZES, model.config),
        size_teacher=pipeline.size_teacher,
    )  # fmt: skip
    run.live.watch(trainer)
    trainer.train(resume_from_checkpoint=folder.last_checkpoint(RECOVERY))
    trained = time.perf_counter()
    record = trainer.stage_record(RECOVERY) | {"learning_rate": args.learning_rate}
    record["flops"] = trainer.flops()
    if run.teacher is not None:
        record["flops"] = trainer.tokens_seen() * run.training_flops(model.config)
    found = {}
    for name in trainer.sizes.names:
        saved = folder.path / SIZES / name / "recovered"
        sliced, kept = trainer.cut(name, run.source_dtype)
        save_checkpoint(sliced, saved, run.tokenizer, _provenance(run, trainer, name, kept))
        found[name] = {
            "model": judge_checkpoint(saved, run.data.judged, args),
            "history": trainer.history_of(name, RECOVERY),
        }
    largest = found[trainer.sizes.largest]["model"]
    return record | {"seconds": trained - start, "model": largest, "nested": found}


def _provenance(run: Run, trainer: NestedTrainer, name: str, kept: KeptUnits) -> dict:
    """That of the largest size's cut, as a smaller size has it: its units are named as those of the source."""
    record = read_provenance(run.folder.path / "pruned")
    shape = trainer.sizes.shapes[name]
    return record | {
        "target_shape": shape.sizes(),
        "kept": kept.within(KeptUnits.from_dict(record["kept"])).to_dict(),
        "num_parameters": count_parameters(trainer.masked_model.config, shape),
        "num_padded_parameters": count_parameters(trainer.masked_model.config, shape),
        "budget": None,
        "nested": {"size": name, "sizes": trainer.sizes.names, "size_teacher": trainer.size_teacher},
        RECOVERY: trainer.tokens_seen(),
        COMMANDS: with_command(*record.get(COMMANDS, ())),
    }  # fmt: skip


def conclude_sizes(run: Run, cut: dict, ranked: dict, recovered: dict, started: float) -> None:
    """Write results and a report for each size, and print a table of all.

    Args:
        cut, ranked, recovered: records of the stages.
        started: ``time.perf_counter()`` when this process began.
    """
    if run.args.process_index != 0:
        return
    source, total = run.folder.records["source"], run.folder.total_seconds(started)
    outer, shapes, rows = KeptUnits.from_dict(cut["kept"]), _shapes(run), {}
    for name, shape in shapes.items():
        before, after = ranked[SIZES][name], recovered["nested"][name]
        learned = cut | {
            "model": before["model"],
            "kept": KeptUnits.from_dict(before["kept"]).within(outer).to_dict(),
            "flops": cut["flops"] + ranked["flops"],
            "calibration_tokens": cut["calibration_tokens"] + ranked["calibration_tokens"],
            "seconds": cut["seconds"] + ranked["seconds"],
        }
        commands = commands_for(run.folder.path / SIZES / name / "recovered")
        results = run_results(source, learned, recovered | after, {}, shape, run.args, commands)
        results["seconds"]["total"] = total
        results["nested"] = {"size": name, "sizes": list(shapes)}
        folder = run.folder.path / SIZES / name
        write_report(folder, results)
        rows[name] = {
            "shape": shape.sizes(), "num_parameters": after["model"]["num_parameters"],
            "cut": before["model"]["mean"], "recovered": after["model"]["mean"], "folder": str(Path(SIZES) / name),
        }  # fmt: skip
    write_json_atomically(run.folder.path / "sizes.json", {"source": source["mean"], "sizes": rows})
    print(_table(source["mean"], rows, run.folder.path))


def _table(source: float, rows: dict[str, dict], folder: Path) -> str:
    lines = [f"Held-out loss, nats per token, mean over domains; the source's is {source:.3f}."]
    lines.append(f"{'size':>12}{'parameters':>14}{'cut':>8}{'recovered':>11}  checkpoint")
    for name, row in rows.items():
        lines.append(
            f"{name:>12}{row['num_parameters']:>14,}{row['cut']:>8.3f}{row['recovered']:>11.3f}"
            f"  {folder / row['folder'] / 'recovered'}"
        )
    return "\n".join(lines)
