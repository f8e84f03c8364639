"""Dynamic batch loading against constant proportions, in recovery from the same pruned model.

python -m examples.research.claims.sheared_llama_4_dynamic_batches --data_dir SEVEN_DOMAINS
"""

import statistics
import sys

from ..shared import mean_and_spread, spread_of
from .claim_command import main
from .claim_results import Claim, SourceResults, compare, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_4_dynamic_batches",
    statement="Dynamic batches bring the domains back more evenly, and lower on average, than constant proportions",
    section="sections 2.2 and 4",
    note="The excess loss of a domain is its loss above the source's, after recovery from the same one-shot pruned "
    "model. Both arms start from uniform proportions. Dynamic batches move text from the domains that recover by "
    "themselves to those that do not; what the one gain the others lose, so that the mean stays.",
)
ARMS = {"constant": False, "dynamic": True}
MEASURES = {"largest": max, "spread": lambda values: max(values) - min(values), "average": statistics.fmean}
TITLES = {"largest": "largest", "spread": "largest - smallest", "average": "mean"}
"""Of the measures, as tables and comparisons name them: of the excess losses over the domains."""


def runs(study: Study) -> None:
    for seed in study.seeds:
        for arm, dynamic in ARMS.items():
            study.run({"arm": arm, "seed": seed}, lambda seed=seed, dynamic=dynamic: recover(study, seed, dynamic))


def recover(study: Study, seed: int, dynamic: bool) -> dict:
    pruned = study.prune(study.target(), seed, criterion="taylor", compensation="none", num_shots=1)
    model, facts = study.train(pruned, study.num_tokens, seed, dynamic_batches=dynamic)
    judged = study.judged(model)
    excess = {name: loss - study.source_losses[name] for name, loss in judged["loss"].items()}
    return facts | judged | {name: measure(excess.values()) for name, measure in MEASURES.items()}


def checks(source: SourceResults) -> list:
    """Of the three measures.

    Raises:
        ValueError: both arms are one run, since the tokens pay for no update of domain weights.
    """
    means = [source.values("mean", arm=arm) for arm in ARMS]
    if means[0] == means[1]:
        raise ValueError(
            "Domain weights never changed: `eval_token_share` of `num_tokens` pays for no update. Raise it."
        )
    return [
        compare(f"{TITLES[name]} excess loss over the domains, dynamic below constant",
                source.values(name, arm="dynamic"), source.values(name, arm="constant"))
        for name in MEASURES
    ]  # fmt: skip


def table(source: SourceResults) -> str:
    rows = [(arm, *(mean_and_spread(source.values(name, arm=arm)) for name in MEASURES)) for arm in ARMS]
    lines = [markdown_table(("batches", *(f"{TITLES[name]} excess loss" for name in MEASURES)), rows)]
    for arm in ARMS:
        found = [run["passes"] for run in source.select(arm=arm)]
        means = ", ".join(f"{name} {statistics.fmean(passes[name] for passes in found):.2g}" for name in found[0])
        lines.append(f"Passes over the text with {arm} batches, means of the seeds: {means}.")
    return "\n\n".join(lines)


def draw(source: SourceResults, axes) -> None:
    domains = list(source.select(arm="source")[0]["loss"])
    reference = source.select(arm="source")[0]["loss"]
    for number, arm in enumerate(ARMS):
        found = source.select(arm=arm)
        excess = [[run["loss"][name] - reference[name] for run in found] for name in domains]
        places, means = [place + 0.4 * number for place in range(len(domains))], list(map(statistics.fmean, excess))
        axes.bar(places, means, yerr=list(map(spread_of, excess)), width=0.38, ecolor="0.3", capsize=2, label=arm)
    axes.set_xticks([place + 0.2 for place in range(len(domains))], domains, rotation=30, ha="right")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_ylabel("held-out loss above the source's (nats per token)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
