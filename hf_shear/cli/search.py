"""``hf-shear search``: which shape of a budget loses least, before anything is pruned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import runs
from ..core import UsageError, check_parents, duration_text, read_json_object
from ..core.defaults import COMPENSATION, default_criterion_words

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from ..publishing import CheckpointFacts
    from ..search import Accepts, ShapeBudget, ShapeCandidate, ShapeFilter
    from ..shapes import TargetShape

SUMMARY = "Find the shape of a budget (parameters, FLOPs, memory, latency) whose model loses least."
EXAMPLE = "hf-shear search path/to/llama --data_dir text --max_parameters 100000000 --output_dir searched"
POSITIONAL = ("model_name_or_path",)
PICTURE, RECORD = "search.png", "search.json"
MOST_CUTS, PASSES_OF_A_CUT = 12, 3  # forwards over the calibration text: one of the source, two of the cut model
CHOSEN_ON = 8_192  # held-out tokens of all domains together that shapes are judged by


@dataclass(kw_only=True)
class Arguments(runs.DataArguments):
    """What is searched, within which limits, on which text."""

    model_name_or_path: str = field(metadata={"help": "A plain checkpoint of a supported family."})
    output_dir: str = field(metadata={"help": "Folder for search.json and search.png."})
    max_parameters: int | None = field(default=None, metadata={"help": "Embeddings included, tied ones counted once."})
    max_flops: float | None = field(
        default=None, metadata={"help": "Of a forward pass for each token, at --context tokens."}
    )
    max_memory: str | None = field(
        default=None, metadata={"help": "Of weights and key/value cache, such as 500MB or 2GiB."}
    )
    max_latency: float | None = field(
        default=None, metadata={"help": "Milliseconds per token of decoding, measured here with transformers."}
    )
    context: int = field(default=1024, metadata={"help": "Tokens of a sequence, for FLOPs, cache and latency."})
    serving_batch_size: int = field(default=1, metadata={"help": "Sequences at once, for cache and latency."})
    serving_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="bfloat16", metadata={"help": "Of weights and cache, for --max_memory."}
    )
    engines: list[str] | None = field(
        default=None, metadata={"help": "That must load the result, as hf-shear inspect names them: llama.cpp vLLM"}
    )
    multiple_of: list[str] | None = field(
        default=None, metadata={"help": "Sizes in multiples: hidden_size=64 intermediate_size=128"}
    )
    at_least: list[str] | None = field(default=None, metadata={"help": "Smallest sizes: num_hidden_layers=12"})
    tensor_parallel: int = field(default=1, metadata={"help": "Devices that heads and MLP are split over evenly."})
    num_finalists: int = field(default=3, metadata={"help": "Shapes that are cut and judged themselves."})
    finalist_tokens: int = field(
        default=0, metadata={"help": "Training tokens of each finalist. 0: the score decides."}
    )
    num_generations: int = field(
        default=0, metadata={"help": "Of a search by mutation for layers of different widths, to prune alone. 0: none."}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Of training finalists."})
    recovery_tokens: int = field(
        default=752_000, metadata={"help": "Of the recovery that the search is for; its cost is compared with it."}
    )
    criterion: list[str] = field(
        default_factory=default_criterion_words, metadata={"help": "Scores of the units, as in hf-shear prune."}
    )
    compensation: str = field(default=COMPENSATION, metadata={"help": "As in hf-shear prune."})
    calibration_batches: int = field(default=2, metadata={"help": "Batches behind scores and compensation."})
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "To compute in. auto: the checkpoint's, or float32 on a processor that lacks it."},
    )
    seed: int = field(default=42, metadata={"help": "Of calibration batches, training finalists and mutations."})
    resume: bool = field(default=False, metadata={"help": "Go on with the search in --output_dir."})
    dry_run: bool = runs.dry_run_field()

    def __post_init__(self):
        super().__post_init__()
        check_parents("output_dir", self.output_dir)
        if (Path(self.output_dir) / RECORD).exists() and not self.resume:
            raise UsageError(
                f"`output_dir` {self.output_dir!r} holds a search. Go on with it by `--resume`, or name another folder."
            )

    def budget(self) -> ShapeBudget:
        """The limits."""
        import torch
        from accelerate.utils.modeling import convert_file_size_to_int

        from ..search import ShapeBudget

        memory = None
        if self.max_memory is not None:
            try:
                memory = convert_file_size_to_int(self.max_memory)
            except ValueError:
                raise UsageError(
                    f"`max_memory` must be a number of bytes such as 500MB or 2GiB, but it is {self.max_memory!r}."
                ) from None
        return ShapeBudget(
            max_parameters=self.max_parameters, max_flops=self.max_flops, max_memory=memory, max_latency=self.max_latency,
            context=self.context, batch_size=self.serving_batch_size, dtype=getattr(torch, self.serving_dtype),
        )  # fmt: skip

    def shape_filter(self, accepts: Accepts | None = None) -> ShapeFilter:
        """What shapes are looked at."""
        from ..search import ShapeFilter

        return ShapeFilter(
            multiple_of=_sizes("multiple_of", self.multiple_of), at_least=_sizes("at_least", self.at_least),
            tensor_parallel=self.tensor_parallel, accepts=accepts,
        )  # fmt: skip

    def chosen_engines(self) -> list:
        """Those that must load the result."""
        from ..publishing import ENGINES

        known = {engine.name.lower(): engine for engine in ENGINES}
        for name in self.engines or ():
            if name.lower() not in known:
                raise UsageError(f"`engines` must name some of {', '.join(one.name for one in ENGINES)}, not {name!r}.")
        return [known[name.lower()] for name in self.engines or ()]


def _sizes(argument: str, words: list[str] | None) -> dict[str, int]:
    found = {}
    for word in words or ():
        name, separator, value = word.partition("=")
        if not separator or not value.isdecimal():
            raise UsageError(f"`{argument}` must be written as hidden_size=64, but it has {word!r}.")
        found[name] = int(value)
    return found


def run(arguments: Arguments) -> None:
    """Search, and print what was found."""
    import torch

    from ..report import plot_search, require_matplotlib, search_table
    from ..search import ShortRecovery, search_shapes
    from ..shapes import training_flops_per_token
    from ..slicing import check_saves
    from ..sources import dtype_note, open_source, ready_to_compute
    from ..training import ShearTrainingArguments
    from .inspect import engine_facts

    require_matplotlib()
    budget, engines, choices = arguments.budget(), arguments.chosen_engines(), runs.config_from_flags(arguments)
    opened = open_source("model_name_or_path", arguments.model_name_or_path)
    print(*opened.notes, sep="\n", end="\n" if opened.notes else "")
    config, tokenizer = opened.config, opened.load_tokenizer()
    wanted = arguments.shape_filter(_accepts(engines, engine_facts(opened)) if engines else None)
    args = ShearTrainingArguments(
        arguments.output_dir, report_to="none", seed=arguments.seed, per_device_eval_batch_size=arguments.batch_size
    )
    check_saves(arguments.output_dir)
    domains = runs.read_domains(arguments, args)
    num_samples = arguments.calibration_batches * arguments.batch_size
    chosen_on = max((arguments.eval_tokens or CHOSEN_ON // len(domains)) // arguments.max_length, 1)
    most = None if arguments.finalist_tokens else num_samples + chosen_on * len(domains)
    data = runs.pack(arguments, domains, tokenizer, config, most)
    held_out, data = _set_apart(data, chosen_on)
    if arguments.dry_run:
        judging = sum(map(len, held_out.values())) * arguments.max_length
        runs.tell_costs(_work(arguments, config, budget, wanted, judging), config, args, arguments.max_length)
        return
    model = opened.load_model()
    stored = model.dtype
    source = ready_to_compute(
        model, args.device, None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    )
    if note := dtype_note(stored, source.dtype):
        print(note)
    recover, flops = None, 0.0
    if arguments.finalist_tokens:
        recover = ShortRecovery(
            data.train, arguments.learning_rate, arguments.batch_size, arguments.max_length, arguments.seed
        )
        flops = arguments.finalist_tokens * training_flops_per_token(config, arguments.max_length)
    text = data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed)
    found = search_shapes(
        source, text, held_out, budget, config=choices, wanted=wanted, num_finalists=arguments.num_finalists,
        recover=recover, finalist_flops=flops, num_generations=arguments.num_generations, seed=arguments.seed,
        batch_size=arguments.batch_size, output_dir=arguments.output_dir, resume=arguments.resume,
    )  # fmt: skip
    folder = Path(arguments.output_dir)
    content = read_json_object(folder / RECORD)
    plot_search(content["candidates"], content["front"], content["single_cuts"], budget.limits, folder / PICTURE)
    print()
    print(search_table(content["candidates"], list(budget.limits)))
    number = sum(one.layers is None for one in found)
    print(f"Rises of the held-out loss above the source's, in nats per token. {number:,} shapes fill the budget.")
    print(_cost_note(content, config, found[0], arguments))
    print(f"Wrote {folder / RECORD} and {folder / PICTURE}.")
    print(
        f"Cut the first with: hf-shear prune {arguments.model_name_or_path} --from_search {folder} --data_dir"
        f" {arguments.data_dir} --output_dir PRUNED (--search_rank 2 takes the second)"
    )


def _work(
    arguments: Arguments, config: PretrainedConfig, budget: ShapeBudget, wanted: ShapeFilter, judging: int
) -> dict[str, float]:
    """FLOPs of the steps of a search: with a latency to measure, of as many cuts as there can be."""
    from ..search import shapes_within, single_cuts
    from ..search.mutation import ROUNDS
    from ..shapes import forward_flops_per_token, training_flops_per_token

    number = MOST_CUTS
    if budget.max_latency is None:
        number = sum(map(len, single_cuts(config, shapes_within(config, budget, wanted)).values()))
    forward = forward_flops_per_token(config, arguments.max_length)
    read = arguments.calibration_batches * arguments.batch_size * arguments.max_length
    cut = (PASSES_OF_A_CUT * read + judging) * forward
    work = {"ranking": (3 * read + judging) * forward, "cuts of one size": number * cut}
    work["finalists"] = (arguments.num_finalists + 1) * cut
    if arguments.num_generations:
        cuts, passes = sum(number for number, _ in ROUNDS), sum(number * share for number, share in ROUNDS)
        of_one = cuts * PASSES_OF_A_CUT * read * forward + passes * judging * forward
        work["mutations"] = arguments.num_generations * of_one
    if arguments.finalist_tokens:
        trained = arguments.finalist_tokens * training_flops_per_token(config, arguments.max_length)
        work["training finalists"] = (arguments.num_finalists + 1) * trained
    return work


def _set_apart(data: runs.DomainData, number: int) -> tuple[dict[str, Dataset], runs.DomainData]:
    """The last held-out samples of each domain that are not judged, to choose shapes by; and the rest of the data.

    They are neither trained nor calibrated on, and no final model is reported on them.
    """
    chosen, left = {}, {}
    for name, samples in data.steering.items():
        taken = min(number, max(len(samples) // 2, 1))
        chosen[name] = samples.select(range(len(samples) - taken, len(samples)))
        left[name] = samples.select(range(max(len(samples) - taken, 1)))
    return chosen, replace(data, steering=left)


def _accepts(engines: list, facts: CheckpointFacts) -> Accepts:
    """What engines say of a shape."""
    from ..publishing import REFUSED, WRONG, where_it_loads

    def refusal(shape: TargetShape) -> str | None:
        for row in where_it_loads(engines, facts.resized(**shape.sizes())):
            if row.verdict in (WRONG, REFUSED):
                return f"{row.engine}: {row.verdict} ({'; '.join(row.notes)})"
        return None

    return refusal


def _cost_note(content: dict, config: PretrainedConfig, best: ShapeCandidate, arguments: Arguments) -> str:
    """What the search took, and its share of the recovery that it is for."""
    from ..shapes import TargetShape, config_for_shape, training_flops_per_token

    flops = sum(content["flops"].values())
    small = config_for_shape(config, TargetShape.from_dict(config, best.sizes))
    recovery = arguments.recovery_tokens * training_flops_per_token(small, arguments.max_length)
    return (
        f"The search took {duration_text(content['seconds'])} and {flops:.1e} FLOPs, {flops / recovery:.0%} of a recovery"
        f" on {arguments.recovery_tokens:,} tokens (`recovery_tokens`)."
    )
