"""What the LLM Surgeon's claims share: a source pruned without training, its loss right after, tables and pictures.

An arm is one way to prune; a cell is a structure and the share of the decoder's linear weights that goes. The config
names the cells (``cells``: shares by structure), and for structures that go in several shots the share that goes in each
(``removed_per_shot``). ``units`` are MLP neurons and KV groups, alike in all layers, which ``prune_one_shot`` cuts out;
other structures are the paper's own, which ``prune_to_zeros`` sets to zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.calibration import least_squares_columns
from hf_shear.pruning import OneShotPruning
from hf_shear.sparsity import SurgeonSettings, collect_factors, decoder_linears, prune_to_zeros

from ..shared import mean_and_spread, spread_of
from .claim_results import Check, SourceResults, calibration_tokens, compare, markdown_table
from .study import Study

UNITS = "units"
NAMES = {
    UNITS: "neurons and KV groups",
    "rows_and_columns": "rows and columns",
    "2:4": "weights in 2:4",
    "unstructured": "single weights",
}
FAMILY = "mistral"  # the same model; Llama's config refuses head counts that do not divide the width

Arm = Callable[[Study, str, float, int], PreTrainedModel]
"""From a structure, the share that goes and the seed of a draw of calibration text, to the pruned source."""


def surgeon(
    study: Study, structure: str, fraction: float, seed: int, num_shots: int | None = None, **options
) -> PreTrainedModel:
    """Costs by both factors that presume the update; and the update. It is joint, or as the options say."""
    if structure == UNITS:
        return prune_units(study, fraction, seed, "llm_surgeon", "least_squares", num_shots).model
    return to_zeros(study, structure, fraction, seed, num_shots, **options)


def kobd(study: Study, structure: str, fraction: float, seed: int) -> PreTrainedModel:
    """Costs by both factors for a removal without update; and none."""
    if structure == UNITS:
        return prune_units(study, fraction, seed, "kobd", "none").model
    return to_zeros(study, structure, fraction, seed, update="none")


def activations(study: Study, structure: str, fraction: float, seed: int, **options) -> PreTrainedModel:
    """The surgeon with the identity for the factor of the gradients: G = I."""
    if structure == UNITS:
        return prune_units(study, fraction, seed, "llm_surgeon:gradients=false", "least_squares").model
    return to_zeros(study, structure, fraction, seed, curvature="inputs", **options)


def magnitude(study: Study, structure: str, fraction: float, seed: int) -> PreTrainedModel:
    """The smallest go, without update: nothing depends on the calibration text."""
    if structure == UNITS:
        return prune_units(study, fraction, seed, "magnitude", "none").model
    return to_zeros(study, structure, fraction, seed, curvature="none", update="none")


def prune_units(
    study: Study, fraction: float, seed: int, criterion: str, compensation: str, num_shots: int | None = None
) -> OneShotPruning:
    """Neurons and KV groups, cut out, in the shots of the config unless told."""
    source = study.source()
    num_shots = num_shots or shots_of(study.settings, UNITS, fraction)
    config = PruneConfig(criterion, compensation, num_shots, as_family=FAMILY)
    return prune_one_shot(source, shape_without(source.config, fraction), study.calibration(seed), config)


def to_zeros(
    study: Study, structure: str, fraction: float, seed: int, num_shots: int | None = None, **options
) -> PreTrainedModel:
    """A structure of the paper, set to zero, in the shots of the config unless told."""
    model, num_shots = study.source(), num_shots or shots_of(study.settings, structure, fraction)
    prune_to_zeros(model, 1 - fraction, study.calibration(seed), SurgeonSettings(structure, **options), num_shots)
    return model


def shape_without(config: PretrainedConfig, fraction: float) -> dict[str, int]:
    """The target that lacks a share of the linear weights: KV groups as near to it as whole ones come, neurons exactly."""
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    per_neuron, per_group = 3 * width, 2 * width * config.head_dim * (heads // groups + 1)
    gone = round(fraction * groups)
    weights = fraction * (per_neuron * config.intermediate_size + per_group * groups) - gone * per_group
    return {
        "num_key_value_heads": groups - gone,
        "num_attention_heads": (groups - gone) * heads // groups,
        "intermediate_size": config.intermediate_size - round(weights / per_neuron),
    }


@torch.no_grad()
def units_updated_once(study: Study, fraction: float, seed: int, joint: bool) -> PreTrainedModel:
    """The surgeon's units cut out, and what stays updated by the activations of the unpruned source.

    Unlike the compensation of ``prune_one_shot``, which has only the joint update and follows the pruned layers below.
    """
    pruning, source = prune_units(study, fraction, seed, "llm_surgeon", "none"), study.source()
    inputs = {
        name: linear for name, linear in decoder_linears(source).items() if name.endswith(("o_proj", "down_proj"))
    }
    factors, _ = collect_factors(source, inputs, study.calibration(seed), False)
    updated = decoder_linears(pruning.model)
    for name, linear in inputs.items():
        layer = next(int(part) for part in name.split(".") if part.isdigit())
        kept = torch.tensor(pruning.kept.intermediate[layer])
        if name.endswith("o_proj"):
            columns = torch.arange(linear.in_features).view(-1, source.config.head_dim)  # [heads, head_dim]
            kept = columns[pruning.kept.heads[layer]].flatten()
        removed = torch.ones(linear.in_features, dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
        updated[name].weight.copy_(
            least_squares_columns(linear.weight, factors[name].inputs, kept, removed, joint=joint)
        )
    return pruning.model


def measure(study: Study, arms: Mapping[str, Arm], without_draws: Sequence[str] = ()) -> None:
    """Every arm in every cell on every draw; the arms ``without_draws`` on the first alone, as text changes nothing."""
    dense = statistics.fmean(study.source_losses.values())
    for seed in study.seeds:
        for structure, fraction in cells(study.settings):
            for name, arm in arms.items():
                if name in without_draws and seed != study.seeds[0]:
                    continue

                def judged(arm=arm, structure=structure, fraction=fraction, seed=seed) -> dict:
                    model = arm(study, structure, fraction, seed)
                    found = study.judged(model)
                    emptiest = {} if structure == UNITS else {"emptiest": largest_share_of_zeros(model)}
                    return found | {"rise": found["mean"] - dense} | emptiest

                study.run({"arm": name, "structure": structure, "fraction": fraction, "seed": seed}, judged)


def largest_share_of_zeros(model: PreTrainedModel) -> float:
    """Of one linear layer's weights, where one threshold over all layers has taken most."""
    return max(float((linear.weight == 0).float().mean()) for linear in decoder_linears(model).values())


def cells(settings: dict) -> list[tuple[str, float]]:
    """Structure and share, in the order of the config."""
    return [(structure, fraction) for structure, fractions in settings["cells"].items() for fraction in fractions]


def shots_of(settings: dict, structure: str, fraction: float) -> int:
    """One, unless the config says what share of the weights a shot removes."""
    per_shot = settings.get("removed_per_shot", {}).get(structure)
    return 1 if per_shot is None else max(1, round(fraction / per_shot))


def cell_name(structure: str, fraction: float) -> str:
    """As it is written in tables and checks."""
    return f"{fraction:.0%} of {NAMES[structure]}"


def rises(source: SourceResults, arm: str, cell: tuple[str, float]) -> list[float]:
    """Loss above the source's of each draw."""
    return source.values("rise", arm=arm, structure=cell[0], fraction=cell[1])


def lower_in_every_cell(source: SourceResults, pairs: Sequence[tuple[str, str]]) -> list[Check]:
    """Of each pair of arms the first one's loss below the second one's, cell by cell."""
    found = []
    for cell in cells(source.settings):
        for pair in pairs:
            text = f"{cell_name(*cell)}: {pair[0]} below {pair[1]}"
            found.append(compare(text, *(rises(source, arm, cell) for arm in pair), digits_of(source, cell)))
    return found


def digits_of(source: SourceResults, cell: tuple[str, float]) -> int:
    """Decimals that tell the arms of a cell apart: four where the smallest rise is below .01 nats."""
    arms = {run["arm"] for run in source.select(structure=cell[0], fraction=cell[1])}
    return 4 if min(statistics.fmean(rises(source, arm, cell)) for arm in arms) < 0.01 else 3


def rise_table(source: SourceResults, arms: Sequence[str]) -> str:
    """A row per cell, a column per arm."""
    dense, settings = source.select(arm="source")[0]["mean"], source.settings
    rows = []
    for cell in cells(settings):
        shots = shots_of(settings, *cell)
        name = cell_name(*cell) + (f", in {shots} shots" if shots > 1 else "")
        digits = digits_of(source, cell)
        rows.append((name, *(mean_and_spread(rises(source, arm, cell), digits) for arm in arms)))
    draws = len({run["seed"] for run in source.runs})
    tokens = calibration_tokens(settings)
    return (
        f"Held-out loss above the source's ({dense:.3f} nats per token) right after the cut, mean ± sample standard"
        f" deviation over {draws} draws of {tokens:,} tokens of calibration text:\n\n"
        + markdown_table(("removed", *arms), rows)
    )


def draw_rises(source: SourceResults, axes, arms: Sequence[str]) -> None:
    """A group of points per cell, one per arm, with the spread over the draws."""
    from matplotlib.ticker import LogLocator, NullFormatter

    places, lowest = range(len(cells(source.settings))), float("inf")
    for number, arm in enumerate(arms):
        found = [rises(source, arm, cell) for cell in cells(source.settings)]
        means = [statistics.fmean(values) for values in found]
        spreads = list(map(spread_of, found))
        shift = 0.5 * ((number + 0.5) / len(arms) - 0.5)
        axes.errorbar([place + shift for place in places], means, spreads, fmt="o", capsize=3, markersize=5, label=arm)
        lowest = min(lowest, *(mean - spread for mean, spread in zip(means, spreads, strict=True)))
    if lowest > 0:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(places, [cell_name(*cell).replace(" of ", " of\n").replace(" and ", "\nand ") for cell in
                             cells(source.settings)], fontsize=8)  # fmt: skip
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylabel("loss above the source's (nats per token)")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
