"""Does the search of shapes win? Shapes of one budget, recovered for the same FLOPs, on several sources and seeds.

    python -m examples.research.shape_search measure --stories STORIES260K TINYSTORIES --data_dir SEVEN_DOMAINS
    python -m examples.research.shape_search confirm ...  # the first budget's search again, after a change of code
    python -m examples.research.shape_search page         # build the page anew, and measure nothing

For each source and budget: the shape that ``search_shapes`` predicts to be best, the weighted and the proportional one of
``shape_for_budget``, one with fewer layers alone, one that is narrower alone, and ten drawn at random from all that fill
the budget. Every shape is cut from the same ranked source and trained for the FLOPs that ``num_tokens`` cost the
proportional shape. The first seed trains all; the others train those that have names, and the random one that did best on
the first. Runs are kept one by one, in model_cards/search.json: a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import kendalltau

from hf_shear import PruneConfig, evaluate_samples, open_source
from hf_shear.core.defaults import TARGET_BALANCES
from hf_shear.data import load_domains
from hf_shear.report import paired_difference
from hf_shear.runs import prepare_domain_data
from hf_shear.search import ShapeBudget, ShapeCandidate, ShortRecovery, search_shapes, shapes_within
from hf_shear.search.ranked_source import RankedSource
from hf_shear.shapes import (
    ModelShape,
    TargetShape,
    config_for_shape,
    count_parameters,
    shape_for_budget,
    training_flops_per_token,
)
from hf_shear.shapes.budget import WEIGHTS
from hf_shear.sources import ready_to_compute

from . import kept_runs
from .claims.claim_results import STORIES, markdown_table
from .provenance import MadeAgain, code_digest, confirm, made_by, noted, stale_note
from .shared import RESEARCH, ROOT, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "search.json", ROOT / "model_cards" / "search.md"
LISTS = ("runs",)
FAMILY = "family-128"
LENGTH, BATCH, CALIBRATION_BATCHES = 256, 8, 2
SEARCHED, RANDOM, DEPTH, WIDTH = "searched", "random", "fewer layers", "narrower"
WEIGHTED, PROPORTIONAL = TARGET_BALANCES
NUM_RANDOM, SEEDS = 10, (0, 1, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    STORIES: {
        "sizes": (64, 5, 8, 4, 172),
        "budgets": (0.75, 0.5, 0.35),
        "num_tokens": 102_400,
        "learning_rate": 4e-3,
        "judged": 32_768,
    },
    FAMILY: {
        "sizes": (128, 4, 8, 4, 352),
        "budgets": (0.75, 0.6, 0.4),
        "num_tokens": 102_400,
        "learning_rate": 1e-3,
        "judged": 8_192,
    },
}  # fmt: skip
"""Sizes are the source's, budgets shares of its parameters; the rates are where the sweeps of main_job.md start."""


class Source:
    """A source, its text, and shapes cut from it."""

    def __init__(self, name: str, path: Path, data_dir: Path):
        self.name, self.settings = name, SETTINGS[name]
        self.opened = open_source("path", path)
        self.config = self.opened.config
        assert (*ModelShape.from_config(self.config).sizes().values(),) == self.settings["sizes"], f"another {name}"
        self.data = prepare_domain_data(
            load_domains(data_dir), self.opened.load_tokenizer(), self.config, max_length=LENGTH, held_out_fraction=0.1,
            eval_tokens=self.settings["judged"],
        )  # fmt: skip
        self._ranked: dict[tuple[int, float], RankedSource] = {}

    @cached_property
    def model(self):
        """The source, in float32 on the CPU."""
        return ready_to_compute(self.opened.load_model(), "cpu", torch.float32)

    def budget(self, share: float) -> ShapeBudget:
        """A share of the source's parameters."""
        return ShapeBudget(max_parameters=int(share * count_parameters(self.config)))

    def calibration(self, seed: int):
        """The text that units are ranked and compensated on."""
        return self.data.calibration(BATCH, CALIBRATION_BATCHES, seed)

    def search(self, share: float, seed: int) -> tuple[list[ShapeCandidate], float]:
        """What a search finds without training, and its FLOPs."""
        apart = {name: part.select(range(-8 % len(part), len(part))) for name, part in self.data.steering.items()}
        with tempfile.TemporaryDirectory() as folder:
            found = search_shapes(
                self.model, self.calibration(seed), apart, self.budget(share), num_finalists=1, batch_size=2 * BATCH,
                output_dir=folder,
            )  # fmt: skip
            return found, sum(json.loads((Path(folder) / "search.json").read_text())["flops"].values())

    def shapes(self, share: float, found: list[ShapeCandidate]) -> dict[str, TargetShape]:
        """All that are trained, by name."""
        listed = shapes_within(self.config, self.budget(share))
        named = {SEARCHED: self.target(found[0])}
        for balance in TARGET_BALANCES:
            named[balance] = shape_for_budget(self.config, fraction_kept=share, balance=balance).shape
        source = ModelShape.from_config(self.config)
        kept = {name: [one for one in listed if name(one)] for name in (_loses_depth_alone, _keeps_depth)}
        shallow = [
            TargetShape.from_source(self.config, num_hidden_layers=layers)
            for layers in range(1, source.num_hidden_layers)
        ]
        fits = [
            one for one in shallow if count_parameters(self.config, one) <= self.budget(share).limits["num_parameters"]
        ]
        deep = kept[_loses_depth_alone] or fits[-1:]
        named |= {DEPTH: max(deep, key=lambda one: one.num_hidden_layers)} if deep else {}
        if kept[_keeps_depth]:
            named[WIDTH] = min(kept[_keeps_depth], key=_imbalance)
        drawn = random.Random(0).sample(listed, min(NUM_RANDOM, len(listed)))
        return named | {f"{RANDOM} {number}": shape for number, shape in enumerate(drawn)}

    def target(self, candidate: ShapeCandidate) -> TargetShape:
        return TargetShape.from_dict(self.config, candidate.sizes)

    def loss(self, model) -> float:
        """Mean over the domains."""
        return fmean(one.mean for one in evaluate_samples(model, self.data.judged, 2 * BATCH).values())

    def ranked(self, share: float, seed: int) -> RankedSource:
        """From which all shapes of a budget are cut."""
        if (seed, share) not in self._ranked:
            listed = shapes_within(self.config, self.budget(share))
            least = TargetShape.from_source(self.config, **_least(listed))
            self._ranked = {(seed, share): RankedSource(self.model, self.calibration(seed), PruneConfig(), [least])}
        return self._ranked[seed, share]

    def run(self, shape: TargetShape, share: float, seed: int, flops: float) -> dict:
        """Cut, judge, train, judge."""
        return self.trained(self.ranked(share, seed).cut(shape), seed, flops)

    def trained(self, model, seed: int, flops: float) -> dict:
        """Judge, train, judge."""
        cut = self.loss(model)
        recovery = ShortRecovery(self.data.train, self.settings["learning_rate"], BATCH // 2, LENGTH, seed)
        model, tokens = recovery(model, flops)
        return {"cut": cut, "loss": self.loss(model), "tokens": tokens, "parameters": count_parameters(model.config)}


def _least(shapes: list[TargetShape]) -> dict[str, int]:
    """Sizes below those of all, so that every kind of unit is ranked."""
    source = shapes[0].source
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    hidden = min(min(shape.hidden_size for shape in shapes), source.hidden_size - 8)
    return heads | {"hidden_size": hidden, "num_hidden_layers": 1, "intermediate_size": 8}


def _loses_depth_alone(shape: TargetShape) -> bool:
    whole = shape.source
    same = all(getattr(shape, name) == getattr(whole, name) for name in ("hidden_size", "num_attention_heads"))
    return (
        same
        and shape.num_hidden_layers < whole.num_hidden_layers
        and shape.intermediate_size == whole.intermediate_size
    )


def _keeps_depth(shape: TargetShape) -> bool:
    return shape.num_hidden_layers == shape.source.num_hidden_layers


def _imbalance(shape: TargetShape) -> float:
    """How far the shares of the sizes that are kept lie apart."""
    shares = [size / getattr(shape.source, name) for name, size in shape.sizes().items() if name != "num_hidden_layers"]
    return max(shares) - min(shares)


def measure(source: Source, kept: dict[str, Any]) -> None:
    """Every run that is not kept yet."""
    for share in source.settings["budgets"]:
        runs = [one for one in kept["runs"] if (one["source"], one["budget"]) == (source.name, share)]
        found, spent = source.search(share, SEEDS[0])
        shapes = source.shapes(share, found)
        rises = {tuple(one.sizes.items()): one.predicted_rise for one in found}
        config = config_for_shape(source.config, shapes[PROPORTIONAL])
        flops = source.settings["num_tokens"] * training_flops_per_token(config, LENGTH)
        for seed in SEEDS:
            names = list(shapes)
            if seed != SEEDS[0]:
                first = {one["shape"]: one["loss"] for one in runs if one["seed"] == SEEDS[0]}
                best = min((name for name in first if name.startswith(RANDOM)), key=first.__getitem__)
                names = [name for name in shapes if not name.startswith(RANDOM)] + [best]
            for name in names:
                key = {"source": source.name, "budget": share, "seed": seed, "shape": name}
                if kept_runs.find(runs, **key):
                    continue
                sizes = shapes[name].sizes()
                run = key | {"sizes": list(sizes.values()), "predicted": rises.get(tuple(sizes.items()))}
                same = [one for one in runs if one["seed"] == seed and one["sizes"] == run["sizes"]]
                made = {key: same[0][key] for key in MADE} if same else source.run(shapes[name], share, seed, flops)
                run |= made | {"search_flops": spent, "recovery_flops": flops}
                runs.append(kept_runs.add(RESULTS, kept, "runs", run, todays_code()))


MADE = ("cut", "loss", "tokens", "parameters")


def made_again(source: Source, kept: dict[str, Any]) -> Iterator[MadeAgain]:
    """The loss of what a search of the first budget finds, which must be the kept shape."""
    share = source.settings["budgets"][0]
    run = kept_runs.find(kept["runs"], source=source.name, budget=share, seed=SEEDS[0], shape=SEARCHED)
    assert run is not None, f"{source.name} has runs, but none of {SEARCHED}"
    found, _ = source.search(share, SEEDS[0])
    if [*found[0].sizes.values()] != run["sizes"]:
        raise ValueError(f"{source.name}: {run['sizes']} was found, {found[0].sizes} is. Measure anew.")
    made = source.run(source.target(found[0]), share, SEEDS[0], run["recovery_flops"])
    yield source.name, [run["loss"]], [made["loss"]]


def todays_code() -> str:
    """Digest of the code that makes the runs."""
    return code_digest("examples.research.shape_search", ("measure", "SETTINGS"))


INTRODUCTION = """# Shapes of one budget, searched and not

A budget is a share of the source's parameters. Each shape is cut from the same ranked source, compensated, and trained for
the FLOPs that {tokens:,} tokens cost the proportional shape. `weighted` is what `--target_num_parameters` picks, and
`proportional` what it picks with `--target_balance proportional`; `searched` is what `hf-shear search` scores best, without
training any; `fewer layers` and `narrower` lose depth or width alone; `best of ten random` is that of the first seed,
trained on the other seeds too. Held-out loss in nats per token, mean over the domains, and over seeds with their standard
deviation. Sizes: hidden, layers, heads, KV heads, MLP."""


def page(kept: dict) -> str:
    """The page, from what is kept."""
    parts, verdicts = [INTRODUCTION.format(tokens=SETTINGS[STORIES]["num_tokens"])], []
    keys = list(dict.fromkeys((one["source"], one["budget"]) for one in kept["runs"]))
    taus = []
    for source, share in keys:
        runs = [one for one in kept["runs"] if (one["source"], one["budget"]) == (source, share)]
        first = [one for one in runs if one["seed"] == SEEDS[0]]
        best = min((one for one in first if one["shape"].startswith(RANDOM)), key=lambda one: one["loss"])["shape"]
        rows, losses = [], {}
        for name in (SEARCHED, WEIGHTED, PROPORTIONAL, DEPTH, WIDTH, best):
            own = [one for one in runs if one["shape"] == name]
            if not own:
                continue
            losses[name] = {one["seed"]: one["loss"] for one in own}
            label = f"best of {NUM_RANDOM} random" if name == best else name
            sizes = " ".join(map(str, own[0]["sizes"]))
            cut = mean_and_spread([one["cut"] for one in own])
            rows.append((label, sizes, f"{own[0]['parameters']:,}", cut, mean_and_spread(list(losses[name].values()))))
        parts.append(f"## {source}, {share:.0%} of the parameters")
        parts.append(markdown_table(("shape", "sizes", "parameters", "at the cut", "trained"), rows))
        said = []
        for name, of_seed in losses.items():
            if name == SEARCHED:
                continue
            seeds = sorted(of_seed.keys() & losses[SEARCHED].keys())
            gap = paired_difference([losses[SEARCHED][seed] for seed in seeds], [of_seed[seed] for seed in seeds])
            label = "the best random" if name == best else name
            said.append(f"{label} {gap.mean:+.3f} ({gap.low:+.3f}, {gap.high:+.3f})")
            verdicts.append((name if name != best else RANDOM, gap.mean, gap.low, gap.high))
        spent = 100 * runs[0]["search_flops"] / runs[0]["recovery_flops"]
        parts.append(
            f"Above the searched shape, paired by seed, with 95 % intervals: {'; '.join(said)}. The search cost {spent:.0f}"
            " % of this recovery's FLOPs."
        )
        known = [one for one in {tuple(one["sizes"]): one for one in first}.values() if one["predicted"] is not None]
        end = [one["loss"] for one in known]
        distance = [_distance(source, one["sizes"]) for one in known]
        guides = {
            "score": [one["predicted"] * far for one, far in zip(known, distance, strict=True)],
            "predicted": [one["predicted"] for one in known],
            "distance": distance,
            "cut": [one["cut"] for one in known],
        }
        tau = [f"{kendalltau(guide, end)[0]:.2f}" for guide in guides.values()]
        taus.append((source, f"{share:.0%}", str(len(known)), *tau))
    parts.append("## What tells the order after training")
    head = ("source", "budget", "shapes", "score", "predicted rise", "weighted distance", "loss at the cut")
    parts.append(markdown_table(head, taus))
    parts.append(
        "Kendall's tau with the loss after training, first seed (1: the same order, 0: none). The score, by which the"
        " search sorts, is the product of the next two. The predicted rise needs some twelve cuts, the weighted distance"
        " none; its weights were chosen on the budgets of 75, 60 and 50 % of this page."
    )
    worse = [one for one in verdicts if one[2] <= 0 <= one[3]], [one for one in verdicts if one[3] < 0]
    won = len(verdicts) - len(worse[0]) - len(worse[1])
    parts.append(
        f"The searched shape is ahead in {won} of {len(verdicts)} comparisons, level in {len(worse[0])} (0 lies in the"
        f" interval) and behind in {len(worse[1])}."
    )
    command = (
        "python -m examples.research.shape_search measure --stories STORIES260K TINYSTORIES --data_dir SEVEN_DOMAINS"
    )
    code = made_by(kept["code"], "a search of each source")
    parts.append(f"Again: `{command}`. Runs: [`search.json`](search.json). {code}")
    return noted(stale_note(kept["code"], todays_code(), command), "\n\n".join(parts) + "\n")


def _distance(source: str, sizes: Sequence[int]) -> float:
    """``weighted_distance`` of a shape from its source."""
    logarithms = [math.log(own / whole) for own, whole in zip(sizes, SETTINGS[source]["sizes"], strict=True)]
    return sum(weight * value**2 for weight, value in zip(WEIGHTS.values(), logarithms, strict=True))


def run_study(study, command_line: list[str] | None = None) -> None:
    """The command of a study of these sources: measure or confirm each that is given, then build the page.

    Args:
        study: a module with ``RESULTS``, ``LISTS`` of them, ``Source``, ``measure``, ``made_again``, ``todays_code``,
            ``page`` and ``PAGE``.
    """
    parser = argparse.ArgumentParser(description=study.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "confirm", "page"))
    parser.add_argument("--stories", nargs=2, type=Path, metavar=("STORIES260K", "TINYSTORIES"))
    parser.add_argument("--data_dir", type=Path, help="Seven domains, for family-128.")
    options = parser.parse_args(command_line)
    given = {STORIES: options.stories} if options.stories else {}
    given |= {FAMILY: (RESEARCH / "family" / "models" / "128", options.data_dir)} if options.data_dir else {}
    kept = kept_runs.read(study.RESULTS, *study.LISTS)
    if options.what == "measure":
        for name, place in given.items():
            study.measure(study.Source(name, *place), kept)
    elif options.what == "confirm":
        names = sorted({run["source"] for run in kept["runs"]})
        made_again = (one for name in names for one in study.made_again(study.Source(name, *given[name]), kept))
        confirm(kept, study.todays_code(), made_again, names, given)
        kept_runs.write(study.RESULTS, kept)
    if not kept["runs"]:
        parser.error("nothing was measured yet.")
    study.PAGE.write_text(study.page(kept), encoding="utf-8")


if __name__ == "__main__":
    run_study(sys.modules[__name__])
