"""Build model_cards/recovery.md from the results of examples/compare_recovery.py.

    python examples/recovery_page.py

Every number on the page comes from model_cards/recovery/*.json; a test rebuilds the page and compares.
"""

import json
from pathlib import Path
from statistics import fmean

from results_page import mean_and_spread

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "recovery"
PAGE = ROOT / "model_cards" / "recovery.md"

INTRODUCTION = """# Ways of recovery, measured

The same pruned models (one for each of three seeds), trained back in different ways by `examples/compare_recovery.py`:
mean held-out loss in nats per token, mean ± sample standard deviation over the seeds. A budget is a number of training
tokens of `full`; "equal FLOPs" gives each way the tokens that the FLOPs of `full` at that budget pay for, its teacher's
forward passes included (`hf_shear.recovery.training_flops_per_token`). Learning rates are the best of three for each way,
at the smallest budget on one seed; `distilled_only` and `distilled_reverse` take that of `distilled`.

- `full`: continued pre-training of all weights. `lora`: adapters on all linear layers. `norms_and_biases`: those alone.
- `distilled`: all weights, half cross-entropy and half forward KL from the source, temperature 1. `distilled_only`: KL
  alone. `distilled_reverse`: half reverse KL. `lora_distilled`: adapters, half forward KL."""

NOTES = {
    "stories260k": "stories260K cut to 43 % by learned masks (40,960 tokens) on TinyStories;"
    " `examples/configs/stories260k.yaml` with `--rank 4`. The rates that won for `full`, `lora`, `distilled` and"
    " `lora_distilled` are the largest that were tried.",
}


def table(rows: list[dict], equal: str) -> str:
    """Ways by budget; the lowest mean of a column is bold. `full` is the same run in both tables."""
    budgets = sorted({row["budget"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    means = {}
    for row in rows:
        if row["equal"] == equal or row["arm"] == "full":
            means.setdefault((row["arm"], row["budget"]), []).append(row["mean"])
    best = {budget: min(arms, key=lambda arm: fmean(means[arm, budget])) for budget in budgets}  # noqa: B023
    lines = ["| way | " + " | ".join(f"{budget:,}" for budget in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for arm in arms:
        cells = [mean_and_spread(means[arm, budget]) for budget in budgets]
        cells = [f"**{cell}**" if best[budget] == arm else cell for budget, cell in zip(budgets, cells, strict=True)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        parts += [f"## {path.stem}", NOTES[path.stem]]
        for equal, title in (("tokens", "Equal tokens"), ("flops", "Equal FLOPs")):
            parts += [f"### {title}", table(results["runs"], equal)]
        rates = {row["arm"]: row["learning_rate"] for row in results["runs"]}
        parts.append("Learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()) + ".")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
