"""Do layers of different widths win? A mutation search, `global` allocation and uniform shapes, at equal forwards.

    python -m examples.research.layer_search measure --stories STORIES260K TINYSTORIES --data_dir SEVEN_DOMAINS
    python -m examples.research.layer_search confirm ...  # the first budget's search again, after a change of code
    python -m examples.research.layer_search page  # build the page anew, and measure nothing

For each source and budget of `shape_search`, from one ranked source (calibration of the first seed), judged at the cut on
the same held-out text: the uniform shape that is predicted to be best; the best of as many uniform shapes, in the order in
which they are predicted, as the mutation search reads the text; the best of `global` allocation with several kinds of
units; and what mutations find. Each is then cut and trained on three seeds, for a quarter of the tokens of `shape_search`.
Kept in model_cards/search_uneven.json: a call goes on where the last one stopped.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_shear.masks import INTERMEDIATE, KEY_VALUE_HEAD
from hf_shear.pruning.allocation import close_cheapest
from hf_shear.pruning.open_units import OpenUnits
from hf_shear.report import paired_difference
from hf_shear.search import search_shapes
from hf_shear.search.divergence import SourceDivergence
from hf_shear.search.mutation import ROUNDS
from hf_shear.search.ranked_source import RankedSource, shape_of_gates
from hf_shear.shapes import ModelShape, PerLayerShape, TargetShape, count_parameters, training_flops_per_token

from . import kept_runs
from .claims.claim_results import STORIES, markdown_table
from .provenance import MadeAgain, code_digest, made_by, noted, stale_note
from .shape_search import BATCH, FAMILY, LENGTH, MADE, SEEDS, Source, run_study
from .shared import ROOT, mean_and_spread

RESULTS, PAGE = ROOT / "model_cards" / "search_uneven.json", ROOT / "model_cards" / "search_uneven.md"
LISTS = ("found", "runs")
UNIFORM, JUDGED, GLOBAL, MUTATED = "uniform, predicted", "uniform, judged", "global", "mutations"
ARMS = (UNIFORM, JUDGED, GLOBAL, MUTATED)
NUM_GENERATIONS, NUM_TOKENS = 20, 25_600
CHOSEN_ON = {STORIES: 16, FAMILY: 2}
"""Held-out samples of each domain that shapes are judged by at the cut."""
GLOBAL_KINDS = ((INTERMEDIATE,), (KEY_VALUE_HEAD, INTERMEDIATE))


def found_shapes(source: Source, share: float) -> dict[str, Any]:
    """What each arm finds with the first seed: sizes, or sizes of each layer; and its divergence on that text."""
    ranked, seed, config = source.ranked(share, SEEDS[0]), SEEDS[0], source.config
    number = CHOSEN_ON[source.name]
    apart = {name: part.select(range(-number % len(part), len(part))) for name, part in source.data.steering.items()}
    with tempfile.TemporaryDirectory() as folder:
        searched = search_shapes(
            source.model, source.calibration(seed), apart, source.budget(share), num_finalists=1, batch_size=2 * BATCH,
            num_generations=NUM_GENERATIONS, seed=seed, output_dir=folder,
        )  # fmt: skip
        flops = json.loads((Path(folder) / "search.json").read_text())["flops"]
    uniform = [source.target(one) for one in searched if one.layers is None]
    (mutated,) = [
        PerLayerShape.from_list(config, one.sizes["hidden_size"], one.layers) for one in searched if one.layers
    ]

    divergence = SourceDivergence(source.model, apart, 2 * BATCH)
    passes = round(NUM_GENERATIONS * sum(number * part for number, part in ROUNDS))
    judged = [(divergence(ranked.cut(shape)), shape) for shape in uniform[:passes]]
    allocated = [(divergence(ranked.cut_layers(shape)), shape) for shape in _allocations(source, share, ranked)]
    best = {
        UNIFORM: judged[0],
        JUDGED: min(judged, key=lambda one: one[0]),
        GLOBAL: min(allocated, key=lambda one: one[0]),
        MUTATED: (divergence(ranked.cut_layers(mutated)), mutated),
    }
    found = {arm: {"divergence": at_cut, "shape": _as_list(shape)} for arm, (at_cut, shape) in best.items()}
    return {"passes": passes, "judged": len(judged), "flops": flops, "arms": found}


def _allocations(source: Source, share: float, ranked: RankedSource) -> list[PerLayerShape]:
    """What `global` makes of the budget, of several kinds of units, by scores per parameter and as they are."""
    shape, budget = ModelShape.from_config(source.config), int(source.budget(share).limits["num_parameters"])
    found = []
    for kinds in GLOBAL_KINDS:
        scores = {kind: ranked.scores[kind] for kind in kinds}
        for per_parameter in (True, False):
            units = OpenUnits(source.config, shape)
            try:
                close_cheapest(units, scores, budget, per_parameter=per_parameter)
            except ValueError:  # these kinds do not free so much
                continue
            found.append(shape_of_gates(units.gates(), shape))
    return found


def _as_list(shape: TargetShape | PerLayerShape) -> dict[str, Any]:
    if isinstance(shape, PerLayerShape):
        return {"hidden_size": shape.hidden_size, "layers": shape.to_list()}
    return shape.sizes()


def _from_list(config, shape: dict[str, Any]) -> TargetShape | PerLayerShape:
    if "layers" in shape:
        return PerLayerShape.from_list(config, shape["hidden_size"], shape["layers"])
    return TargetShape.from_dict(config, shape)


def measure(source: Source, kept: dict[str, Any]) -> None:
    """Every search and every run that is not kept yet."""
    for share in source.settings["budgets"]:
        key = {"source": source.name, "budget": share}
        found = kept_runs.find(kept["found"], **key) or kept_runs.add(
            RESULTS, kept, "found", key | found_shapes(source, share), todays_code()
        )
        for seed in SEEDS:
            for arm in ARMS:
                run = key | {"seed": seed, "arm": arm}
                if kept_runs.find(kept["runs"], **run):
                    continue
                shape = _from_list(source.config, found["arms"][arm]["shape"])
                same = [
                    one
                    for one in kept["runs"]
                    if (key | {"seed": seed}).items() <= one.items()
                    and found["arms"][one["arm"]]["shape"] == found["arms"][arm]["shape"]
                ]
                run |= {name: same[0][name] for name in MADE} if same else _run(source, shape, share, seed)
                kept_runs.add(RESULTS, kept, "runs", run, todays_code())


def made_again(source: Source, kept: dict[str, Any]) -> Iterator[MadeAgain]:
    """The loss of what mutations find for the first budget, which must be the kept shape."""
    share = source.settings["budgets"][0]
    was = kept_runs.find(kept["found"], source=source.name, budget=share)
    run = kept_runs.find(kept["runs"], source=source.name, budget=share, seed=SEEDS[0], arm=MUTATED)
    assert was is not None and run is not None, f"{source.name} has runs, but none of {MUTATED}"
    shape = found_shapes(source, share)["arms"][MUTATED]["shape"]
    if shape != was["arms"][MUTATED]["shape"]:
        raise ValueError(f"{source.name}: {was['arms'][MUTATED]['shape']} was found, {shape} is. Measure anew.")
    made = _run(source, _from_list(source.config, shape), share, SEEDS[0])
    yield source.name, [run["loss"]], [made["loss"]]


def _run(source: Source, shape: TargetShape | PerLayerShape, share: float, seed: int) -> dict[str, Any]:
    """Cut, judge, train, judge; parameters without padding."""
    ranked = source.ranked(share, seed)
    uneven = isinstance(shape, PerLayerShape)
    model = ranked.cut_layers(shape) if uneven else ranked.cut(shape)
    made = source.trained(model, seed, NUM_TOKENS * training_flops_per_token(model.config, LENGTH))
    own = shape.num_parameters(source.config) if uneven else count_parameters(model.config)
    return made | {"parameters": own}


def todays_code() -> str:
    """Digest of the code that makes the runs."""
    return code_digest(
        "examples.research.layer_search", ("measure", "NUM_GENERATIONS", "NUM_TOKENS", "CHOSEN_ON", "GLOBAL_KINDS")
    )


INTRODUCTION = """# Layers of different widths, searched and not

Budgets and sources of [search.md](search.md). All arms begin with one ranked source and are judged at the cut on the same
held-out text: the uniform shape that is predicted to be best; the best of the first {passes} uniform shapes, cut and judged
themselves; the best of `global` allocation (of MLP neurons, or of these and KV heads; by scores per parameter, or as they
are); and what {generations} generations of mutations find, which read that text {passes} times. Each is then cut and
trained on three seeds, for {tokens:,} tokens. Held-out loss on other text, nats per token, mean over the domains;
parameters without padding."""


FLOPS_PER_PARAMETER = 6
"""Of a training token, roughly."""


def page(kept: dict) -> str:
    """The page, from what is kept."""
    passes = kept["found"][0]["passes"]
    parts, verdicts = [INTRODUCTION.format(passes=passes, generations=NUM_GENERATIONS, tokens=NUM_TOKENS)], []
    for found in kept["found"]:
        source, share = found["source"], found["budget"]
        runs = [one for one in kept["runs"] if (one["source"], one["budget"]) == (source, share)]
        of = {arm: [one for one in runs if one["arm"] == arm] for arm in ARMS}
        if not all(of.values()):
            continue
        rows = [
            (arm, _shape_text(found["arms"][arm]["shape"]), f"{of[arm][0]['parameters']:,}",
             f"{found['arms'][arm]['divergence']:.3f}", mean_and_spread([one["cut"] for one in of[arm]]),
             mean_and_spread([one["loss"] for one in of[arm]]))
            for arm in ARMS
        ]  # fmt: skip
        parts.append(f"## {source}, {share:.0%} of the parameters")
        parts.append(markdown_table(("arm", "shape", "parameters", "divergence", "at the cut", "trained"), rows))
        said = []
        for stage, label in (("cut", "at the cut"), ("loss", "trained")):
            for arm in (JUDGED, GLOBAL):
                gap = paired_difference([one[stage] for one in of[MUTATED]], [one[stage] for one in of[arm]])
                verdicts.append((label, arm, gap.mean, gap.low, gap.high))
                interval = "" if gap.low is None else f" ({gap.low:+.3f}, {gap.high:+.3f})"
                said.append(f"{label}, {arm} {gap.mean:+.3f}{interval}")
        tokens = found["flops"]["mutations"] / (FLOPS_PER_PARAMETER * of[MUTATED][0]["parameters"])
        parts.append(
            f"Above the mutations, paired by seed, with 95 % intervals: {'; '.join(said)}. {found['judged']} uniform shapes"
            f" were judged. The mutations cost as much as training on about {tokens:,.0f} tokens."
        )
    rows = []
    for label in ("at the cut", "trained"):
        for arm in (JUDGED, GLOBAL):
            own = [one for one in verdicts if one[:2] == (label, arm) and one[3] is not None]
            ahead, behind = sum(one[3] > 0 for one in own), sum(one[4] < 0 for one in own)
            rows.append((label, arm, str(ahead), str(len(own) - ahead - behind), str(behind)))
    parts.append("## Mutations against the others")
    parts.append(markdown_table(("stage", "against", "ahead", "level", "behind"), rows))
    command = (
        "python -m examples.research.layer_search measure --stories STORIES260K TINYSTORIES --data_dir SEVEN_DOMAINS"
    )
    code = made_by(kept["code"], "a search of each source")
    parts.append(f"Again: `{command}`. Runs: [`search_uneven.json`](search_uneven.json). {code}")
    return noted(stale_note(kept["code"], todays_code(), command), "\n\n".join(parts) + "\n")


def _shape_text(shape: dict[str, Any]) -> str:
    """Of a uniform shape hidden, layers, heads, KV heads, MLP; else hidden: heads/KV heads/MLP of each layer."""
    if "layers" not in shape:
        return " ".join(map(str, shape.values()))
    return f"{shape['hidden_size']}: " + ", ".join("/".join(map(str, sizes)) for sizes in shape["layers"])


if __name__ == "__main__":
    run_study(sys.modules[__name__])
