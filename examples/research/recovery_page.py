"""Build model_cards/recovery.md and the advice in examples/docs/recovery.md from the results of compare_recovery.py.

    python -m examples.research.recovery_page  # rebuild from model_cards/recovery
    python -m examples.research.recovery_page --add embedded part.json ...  # keep results, of one call or of several, first

Several calls may share the work: those of other ways, or of other budgets, on the same runs. Every number comes from
model_cards/recovery/*.json; a test rebuilds page and advice and compares.
"""

import argparse
import json
import textwrap
from pathlib import Path
from statistics import fmean

from hf_shear.report import paired_difference

from .compare_recovery import todays_code
from .provenance import BEFORE, stale_note, with_record
from .shared import ROOT, mean_and_spread, put_between

RESULTS = ROOT / "model_cards" / "recovery"
PAGE = ROOT / "model_cards" / "recovery.md"
ADVISED = ROOT / "examples" / "docs" / "recovery.md"
MARKS = "<!-- recovery: start -->", "<!-- recovery: end -->"

INTRODUCTION = """# Ways of recovery, measured

The same pruned models (one for each of three seeds), trained back in different ways by
`examples/research/compare_recovery.py`: mean held-out loss in nats per token, mean ± sample standard deviation over the
seeds. A budget is a number of training tokens of `full`; "equal FLOPs" gives each way the tokens that the FLOPs of
`full` at that budget pay for, its teacher's forward passes included (`hf_shear.shapes.training_flops_per_token`).
Learning rates are the best of a sweep for each way, at the smallest budget on one seed; `distilled_only` and
`distilled_reverse` take that of `distilled`.

- `full`: continued pre-training of all weights. `lora`: adapters on all linear layers. `norms_and_biases`: those alone.
- `distilled`: all weights, half cross-entropy and half forward KL from the source, temperature 1. `distilled_only`: KL
  alone. `distilled_reverse`: half reverse KL. `lora_distilled`: adapters, half forward KL."""

NOTES = {
    "embedded": "The embedded model on text of Python's own library, `examples/embedded/shear.yaml`.",
    "seven_domains": "A small model of `examples/research/family/train_family.py` on seven domains,"
    " `examples/research/configs/family_96.yaml`. Its source has seen few tokens for its size, so that"
    " recovery also trains what the source had not learned.",
    "stories260k": "stories260K cut to 43 % by learned masks (40,960 tokens) on TinyStories;"
    " `examples/research/configs/stories260k.yaml` with `--rank 4`.",
}


def complete_budgets(rows: list[dict]) -> list[int]:
    """Budgets at which every way has all its runs."""
    arms, seeds = {row["arm"] for row in rows}, {row["run"] for row in rows}
    expected = len(seeds) * sum(1 if arm == "full" else 2 for arm in arms)
    budgets = sorted({row["budget"] for row in rows})
    return [budget for budget in budgets if sum(row["budget"] == budget for row in rows) == expected]


def means_of(rows: list[dict], equal: str) -> dict[tuple[str, int], list[float]]:
    """Losses of all seeds by way and budget; `full` is the same run whatever is equal."""
    means: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["equal"] == equal or row["arm"] == "full":
            means.setdefault((row["arm"], row["budget"]), []).append(row["mean"])
    return means


def table(rows: list[dict], equal: str) -> str:
    """Ways by budget; the lowest mean of a column is bold. `full` is the same run in both tables."""
    budgets = sorted({row["budget"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    means = means_of(rows, equal)
    best = {budget: min(arms, key=lambda arm: fmean(means[arm, budget])) for budget in budgets}  # noqa: B023
    lines = ["| way | " + " | ".join(f"{budget:,}" for budget in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for arm in arms:
        cells = [mean_and_spread(means[arm, budget]) for budget in budgets]
        cells = [f"**{cell}**" if best[budget] == arm else cell for budget, cell in zip(budgets, cells, strict=True)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def described(setup: dict) -> str:
    """The models and the data of a comparison, in a few sentences."""
    before, after = (setup["num_parameters"][name] for name in ("source", "pruned"))
    sizes = ", ".join(
        f"{name} {setup['source'][name]} to {size}" for name, size in setup["pruned"].items() if name != "head_dim"
    )
    return (
        f"{before:,} parameters cut to {after:,} ({after / before:.0%}) by masks learned in {setup['mask_tokens']:,}"
        f" tokens: {sizes}. {len(setup['domains'])} domain(s), {setup['train_tokens']:,} training tokens, judged on"
        f" {setup['eval_tokens']:,} held-out tokens; steps of {setup['samples_per_step']} x {setup['max_length']} tokens;"
        f" LoRA of rank {setup['lora_rank']}."
    )


def rates_text(results: dict) -> str:
    """The learning rates, and which of them a wider sweep might have bettered."""
    used = {row["arm"]: row["learning_rate"] for row in results["runs"]}
    text = "Learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in used.items()) + "."
    edge = []
    for arm in dict.fromkeys(row["arm"] for row in results["sweep"]):
        tried = [row["learning_rate"] for row in results["sweep"] if row["arm"] == arm]
        if used.get(arm) in (min(tried), max(tried)):
            edge.append(arm)
    if edge:
        return f"{text} Those of {', '.join(edge)} lie at the edge of what was tried."
    return f"{text} Each lies between two others that were tried."


def results_by_source() -> dict[str, dict]:
    """Results by the name of the source, with complete budgets only."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        budgets = complete_budgets(results["runs"])
        results["runs"] = [row for row in results["runs"] if row["budget"] in budgets]
        found[path.stem] = results
    return found


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for name, results in results_by_source().items():
        stale = stale_note(results.get("code"), todays_code(), "python -m examples.research.compare_recovery ...")
        parts += [f"## {name}", *([stale] if stale else []), NOTES[name]]
        if "setup" in results:
            parts.append(described(results["setup"]))
        for equal, title in (("tokens", "Equal tokens"), ("flops", "Equal FLOPs")):
            parts += [f"### {title}", table(results["runs"], equal)]
        parts.append(rates_text(results))
    return "\n\n".join(parts) + "\n"


WAYS = {
    "full": "all weights without a teacher",
    "distilled": "all weights with a teacher (`--distillation forward_kl`)",
    "distilled_only": "all weights, by the teacher alone",
    "distilled_reverse": "all weights with a teacher (`--distillation reverse_kl`)",
    "lora": "adapters",
    "lora_distilled": "adapters with a teacher",
    "norms_and_biases": "norms and biases",
}


def advice() -> str:
    """What wins most often, over all sources and budgets, and how far what trains fewer weights is behind."""
    winners: dict[str, list[tuple[str, bool]]] = {"tokens": [], "flops": []}
    behind: dict[str, list[float]] = {"lora": [], "norms_and_biases": []}
    sources = results_by_source()
    for results in sources.values():
        for equal, found in winners.items():
            losses = means_of(results["runs"], equal)
            for budget in complete_budgets(results["runs"]):
                at_budget = {arm: seeds for (arm, other), seeds in losses.items() if other == budget}
                found.append(winner(at_budget))
                for arm, gaps in behind.items() if equal == "tokens" else ():
                    gaps.append(fmean(at_budget[arm]) - fmean(at_budget["full"]))
    lora, norms = (f"{min(gaps):.2f} to {max(gaps):.2f}" for gaps in behind.values())
    where = {
        equal: WAYS[max(arms, key=arms.count)] for equal, found in winners.items() if (arms := [a for a, _ in found])
    }
    return (
        "Measured on each source and budget ([all numbers](../../model_cards/recovery.md)). Lowest loss at equal tokens:"
        f" {where['tokens']} ({counted(winners['tokens'])}). Lowest at equal FLOPs, a teacher's included: {where['flops']}"
        f" ({counted(winners['flops'])}). At equal tokens `lora` is {lora} nats behind `full`, `norms_and_biases` {norms}."
    )


def winner(losses: dict[str, list[float]]) -> tuple[str, bool]:
    """The way with the lowest mean, and whether the interval of its paired difference from the next holds 0."""
    first, second = sorted(losses, key=lambda arm: fmean(losses[arm]))[:2]
    return first, not paired_difference(losses[first], losses[second]).is_ahead


def counted(winners: list[tuple[str, bool]]) -> str:
    """How often each way won, and how often by a difference whose interval over the seeds holds 0."""
    arms = [arm for arm, _ in winners]
    parts = []
    for arm in sorted(set(arms), key=arms.count, reverse=True):
        close = sum(narrow for other, narrow in winners if other == arm)
        parts.append(f"`{arm}` in {arms.count(arm)} of {len(arms)}" + (f", {close} not beyond doubt" if close else ""))
    return "; ".join(parts)


def advised() -> str:
    """The page of the docs with the advice of today between its marks."""
    return put_between(
        ADVISED.read_text(encoding="utf-8"),
        MARKS,
        f"\n{textwrap.fill(advice(), 122, break_long_words=False, break_on_hyphens=False)}\n",
    )


def add(name: str, paths: list[Path]) -> None:
    """Keep the results of one source, in order of budget, seed and way."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if any(part["setup"] != parts[0]["setup"] for part in parts):
        raise ValueError(f"These results are not of the same models and data: {', '.join(map(str, paths))}.")
    runs = {(row["budget"], row["run"], row["arm"], row["equal"]): row for part in parts for row in part["runs"]}
    swept = {(row["arm"], row["learning_rate"]): row for part in parts for row in part["sweep"]}
    arms = list(dict.fromkeys(row["arm"] for part in parts for row in [*part["sweep"], *part["runs"]]))
    order = sorted(runs, key=lambda key: (*key[:2], arms.index(key[2]), key[3] != "tokens"))
    kept = {"setup": parts[0]["setup"], "runs": [runs[key] for key in order], "sweep": [*swept.values()]}
    kept["code"] = []
    for one in (record for part in parts for record in part.get("code", [BEFORE])):
        kept["code"] = with_record(kept["code"], one)
    kept["versions"] = parts[0]["versions"]
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", metavar=("NAME", "RESULTS"), help="keep results first")
    arguments = parser.parse_args()
    if arguments.add:
        add(arguments.add[0], [Path(path) for path in arguments.add[1:]])
    PAGE.write_text(page(), encoding="utf-8")
    ADVISED.write_text(advised(), encoding="utf-8")


if __name__ == "__main__":
    main()
