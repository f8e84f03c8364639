"""Do several nested sizes from one run pay? Against a run of its own for each size, on stories260K.

    python -m examples.research.nested_sizes measure STORIES260K TINYSTORIES   # minutes; goes on where it was stopped
    python -m examples.research.nested_sizes confirm STORIES260K TINYSTORIES   # two runs again, after a change of code
    python -m examples.research.nested_sizes page                              # build the page anew, and measure nothing

A single run cuts one size out of the source, with compensation, and trains it on ``NUM_TOKENS``. A nested run cuts the
largest, ranks its units once more, and trains all sizes in turns; every step costs the largest size's FLOPs. It is
measured twice: with the FLOPs of all single runs together, cuts and ranking included (``TOTAL``); and with
``NUM_TOKENS`` for each of its sizes, so that each gets the FLOPs that it gets in its own run, whatever the masks cost on
top (``EACH``). Shapes are the same in both.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_shear import prune_one_shot
from hf_shear.pruning import NestedTrainer, nested_shapes, rank_nested
from hf_shear.pruning.cost import CalibrationCost
from hf_shear.report import paired_difference
from hf_shear.shapes import TargetShape, count_parameters, forward_flops_per_token, training_flops_per_token
from hf_shear.training import ShearTrainer, ShearTrainingArguments

from . import kept_runs
from .claims.claim_results import STORIES, markdown_table
from .provenance import MadeAgain, code_digest, confirm, made_by, noted, stale_note
from .shape_search import BATCH, LENGTH, SEEDS, Source
from .shared import ROOT, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "nested.json", ROOT / "model_cards" / "nested.md"
NUM_TOKENS, RATE = 102_400, 4e-3
SETS = {2: (0.75, 0.35), 3: (0.75, 0.5, 0.35), 5: (0.75, 0.65, 0.55, 0.45, 0.35)}
"""Sizes of a run, by their number."""
TOTAL, EACH, SINGLE = "total", "each", "single"
MOST = 0.05
"""Nats that nesting may cost at the smallest size before the page has to say so."""


class NestedSource(Source):
    """With runs of one size, and of several."""

    def cut(self, shape, seed: int):
        """A size cut out of the source, with the defaults of pruning."""
        return prune_one_shot(self.model, shape, self.calibration(seed))

    def arguments(self, folder: str, num_tokens: float, seed: int) -> ShearTrainingArguments:
        steps = max(round(num_tokens / (BATCH // 2 * LENGTH)), 1)
        return ShearTrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH // 2, learning_rate=RATE,
            lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 0.5, "lr_end": 0.0}, warmup_steps=0.05,
            dynamic_batches=False, eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, seed=seed,
        )  # fmt: skip

    def single(self, shape: TargetShape, seed: int) -> dict[str, Any]:
        """One size in a run of its own."""
        pruning = self.cut(shape, seed)
        model = pruning.model
        found = {"cut": self.loss(model), "parameters": count_parameters(model.config)}
        with tempfile.TemporaryDirectory() as folder:
            trainer = ShearTrainer(model, self.arguments(folder, NUM_TOKENS, seed), self.data.train)
            trainer.train()
        flops = trainer.tokens_seen() * training_flops_per_token(model.config, LENGTH)
        return found | {"loss": self.loss(model), "flops": flops + pruning.cost.flops, "tokens": trainer.tokens_seen()}

    def nested(self, sizes: Sequence[float], seed: int, teacher: bool, flops: float | None) -> dict[str, Any]:
        """All sizes from one run: of these FLOPs with its cut and ranking; or of ``NUM_TOKENS`` for each size."""
        shapes = nested_shapes(self.config, sizes)
        calibration = self.calibration(seed)
        pruning = self.cut(next(iter(shapes.values())), seed)
        cost = CalibrationCost.on(calibration)
        nested = rank_nested(pruning.model, shapes, calibration, cost=cost)
        chosen = pruning.cost.flops + cost.flops
        config, tokens = pruning.model.config, NUM_TOKENS * len(sizes)
        if flops is not None:
            taught = (len(sizes) - 1) / len(sizes) * forward_flops_per_token(config, LENGTH) * teacher
            tokens = (flops - chosen) / (training_flops_per_token(config, LENGTH) + taught)
        with tempfile.TemporaryDirectory() as folder:
            trainer = NestedTrainer(
                pruning.model, self.arguments(folder, tokens, seed), self.data.train, sizes=nested,
                size_teacher="largest" if teacher else "none",
            )  # fmt: skip
            cut = [self.loss(trainer.cut(name)[0]) for name in nested.names]
            trainer.train()
        return {
            "shapes": [list(shape.sizes().values()) for shape in shapes.values()],
            "cut": cut,
            "loss": [self.loss(trainer.cut(name)[0]) for name in nested.names],
            "flops": trainer.flops() + chosen,
            "tokens": trainer.tokens_seen(),
        }


PLAN = ((3, TOTAL, False), (2, TOTAL, False), (3, EACH, False), (3, TOTAL, True), (5, TOTAL, False))
"""What is measured, in this order: number of sizes, budget, whether the largest size teaches the others."""


def measure(source: NestedSource, kept: dict[str, Any]) -> None:
    """Every run that is not kept yet."""
    kept.setdefault("source", source.loss(source.model))

    def run(key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = kept_runs.find(kept["runs"], **key)
        return found or kept_runs.add(RESULTS, kept, "runs", key | make(), todays_code())

    for number, kind, teacher in PLAN:
        sizes = SETS[number]
        shapes = nested_shapes(source.config, sizes)
        for seed in SEEDS:
            spent = 0.0
            for shape in shapes.values():
                key = {"kind": SINGLE, "shape": list(shape.sizes().values()), "seed": seed}
                spent += run(key, partial(source.single, shape, seed))["flops"]
            key = {"kind": kind, "sizes": list(sizes), "teacher": teacher, "seed": seed}
            run(key, partial(source.nested, sizes, seed, teacher, spent if kind == TOTAL else None))


def todays_code() -> str:
    """Digest of the code that makes the runs."""
    return code_digest("examples.research.nested_sizes", ("measure", "NestedSource", "SETS", "PLAN"))


COMMAND = "python -m examples.research.nested_sizes measure STORIES260K TINYSTORIES"
INTRODUCTION = """# Several nested sizes from one run

stories260K (TinyStories; held-out loss {source}). A single run cuts one size out of the source, with compensation, and
trains it on {tokens:,} tokens. A nested run cuts the largest size, ranks its units once more, and trains one size in each
step (`hf-shear recover --sizes`); a smaller size is a part of the larger one. Every step costs the largest size's FLOPs,
and with the largest as teacher (`--size_teacher largest`) a forward pass more. Cuts and rankings are charged. Both ways
have the same shapes, learning rate ({rate:g}, not tuned for either) and schedule. Nats per token, means and standard
deviations over seeds. Differences are nested less single, paired by seed, with 95 % intervals: below 0, nesting is
ahead."""
TITLES = {
    TOTAL: "equal total FLOPs",
    EACH: f"{NUM_TOKENS:,} tokens for each size, whatever it costs",
}


def page(kept: dict) -> str:
    """The page, from what is kept."""
    runs = kept["runs"]
    parts = [INTRODUCTION.format(source=f"{kept['source']:.3f}", tokens=NUM_TOKENS, rate=RATE)]
    smallest = []
    for number, sizes in sorted(SETS.items()):
        own = [one for one in runs if one["kind"] != SINGLE and one["sizes"] == list(sizes)]
        if not own:
            continue
        parts.append(f"## {number} sizes: {', '.join(f'{size:.0%}' for size in sizes)} of the parameters")
        rows = []
        alone = [_alone(runs, shape) for shape in own[0]["shapes"]]
        shapes = [" ".join(map(str, shape)) for shape in own[0]["shapes"]]
        rows.append(("single runs", "", _flops([sum(of.values()) for of in _by_seed(runs, own[0]["shapes"])]),
                     *(mean_and_spread([one["loss"] for one in of.values()]) for of in alone)))  # fmt: skip
        for kind, teacher in dict.fromkeys((one["kind"], one["teacher"]) for one in own):
            of_kind = sorted((o for o in own if (o["kind"], o["teacher"]) == (kind, teacher)), key=lambda o: o["seed"])
            losses = list(zip(*(one["loss"] for one in of_kind), strict=True))
            name = f"nested, {TITLES[kind]}{', largest as teacher' * teacher}"
            rows.append((name, f"{of_kind[0]['tokens']:,}", _flops([one["flops"] for one in of_kind]),
                         *map(mean_and_spread, losses)))  # fmt: skip
            gaps = [
                paired_difference(found, [singles[one["seed"]]["loss"] for one in of_kind])
                for found, singles in zip(losses, alone, strict=True)
            ]
            rows.append(
                (f"less single ({len(of_kind)} seed{'s' * (len(of_kind) > 1)})", "", "", *map(_difference, gaps))
            )
            smallest.append((number, name, gaps[-1], gaps[0]))
        parts.append(markdown_table(("run", "tokens", "FLOPs", *shapes), rows))
        cuts = [fmean(one["cut"][place] for one in own) for place in range(len(sizes))]
        before = [fmean(one["cut"] for one in of.values()) for of in alone]
        parts.append(
            f"Columns are the sizes: hidden, layers, heads, KV heads, MLP. Before any training the nested sizes are at"
            f" {', '.join(f'{cut:.2f}' for cut in cuts)}, the single cuts, which are compensated, at"
            f" {', '.join(f'{cut:.2f}' for cut in before)}."
        )
    parts += ["## Does it pay?", "\n".join(map(_verdict, smallest)), _least_number(smallest)]
    code = made_by(kept["code"], "a single and a nested run")
    parts.append(f"Again: `{COMMAND}`. Runs: [`nested.json`](nested.json). {code}")
    return noted(stale_note(kept["code"], todays_code(), COMMAND), "\n\n".join(parts) + "\n")


def _alone(runs: list[dict], shape: list[int]) -> dict[int, dict]:
    """Single runs of one shape, by seed."""
    return {one["seed"]: one for one in runs if one["kind"] == SINGLE and one["shape"] == shape}


def _by_seed(runs: list[dict], shapes: list[list[int]]) -> list[dict[int, float]]:
    """For each seed, the FLOPs of the single runs by place."""
    of = [_alone(runs, shape) for shape in shapes]
    return [
        {place: one[seed]["flops"] for place, one in enumerate(of)} for seed in of[0] if all(seed in one for one in of)
    ]


def _flops(values: list[float]) -> str:
    return f"{fmean(values) / 1e9:,.0f} G"


def _difference(gap) -> str:
    ends = "" if gap.low is None else f" ({-gap.high:+.3f}, {-gap.low:+.3f})"
    return f"{-gap.mean:+.3f}{ends}"


def _verdict(found: tuple) -> str:
    number, name, smallest, largest = found
    costs = -smallest.mean
    said = f"costs {costs:.3f} nats" if costs > 0 else f"gains {-costs:.3f} nats"
    rule = f", more than the {MOST} that were allowed" if costs > MOST else ""
    return (
        f"- {number} sizes, {name}: nesting {said} at the smallest size{rule}. At the largest: {_difference(largest)}."
    )


def _least_number(found: list[tuple]) -> str:
    """From how many sizes on nesting pays, at equal total FLOPs, by what was measured."""
    total = [(number, small, large) for number, name, small, large in found if TITLES[TOTAL] in name]
    measured = ", ".join(map(str, sorted({number for number, *_ in total})))
    gains = sorted({number for number, small, _ in total if small.is_ahead})
    loses = sorted({number for number, _, large in total if large.is_behind})
    first = f"the smallest size gains from {gains[0]} sizes on" if gains else "no smallest size gains for certain"
    then = (
        f"the largest loses for certain with {', '.join(map(str, loses))}"
        if loses
        else "no largest size loses for certain"
    )
    return f"At equal total FLOPs, {first}, and {then} (intervals without 0). Measured were {measured} sizes."


def made_again(source: NestedSource, kept: dict[str, Any]) -> Iterator[MadeAgain]:
    """The losses of a single and of a nested run."""
    nested = next(one for one in kept["runs"] if one["kind"] == TOTAL and one["seed"] == SEEDS[0])
    shapes = list(nested_shapes(source.config, nested["sizes"]).values())
    single = _alone(kept["runs"], list(shapes[-1].sizes().values()))[SEEDS[0]]
    budget = sum(_alone(kept["runs"], list(shape.sizes().values()))[SEEDS[0]]["flops"] for shape in shapes)
    yield "single", [single["loss"]], [source.single(shapes[-1], SEEDS[0])["loss"]]
    again = source.nested(nested["sizes"], SEEDS[0], nested["teacher"], budget)
    yield "nested", nested["loss"], again["loss"]


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "confirm", "page"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="STORIES260K TINYSTORIES")
    options = parser.parse_args(command_line)
    kept = kept_runs.read(RESULTS, "runs")
    if options.what != "page":
        if len(options.paths) != 2:
            parser.error("give the folders of the source and of its text.")
        source = NestedSource(STORIES, *options.paths)
        if options.what == "measure":
            measure(source, kept)
        else:
            confirm(kept, todays_code(), made_again(source, kept))
            kept_runs.write(RESULTS, kept)
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
