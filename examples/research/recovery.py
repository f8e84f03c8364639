"""Ways of recovery at equal tokens and at equal FLOPs, from the same pruned models.

    python -m examples.research.recovery run STORIES260K TINYSTORIES      # what is missing (an hour of one core)
    python -m examples.research.recovery confirm STORIES260K TINYSTORIES  # a run of each way, after a change of code
    python -m examples.research.recovery page                             # the pages, from what is kept

Ways, budgets and settings: examples/research/configs/recovery.yaml. The embedded model needs no text. Every seed cuts its
source once, by the defaults of ``PruneConfig``, and all ways start from that model. Runs are kept one by one, in
model_cards/recovery.json: a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hf_shear import ShearTrainer
from hf_shear.report import PairedDifference
from hf_shear.shapes import training_flops_per_token
from hf_shear.training import num_trainable, recovery_method
from hf_shear.training.adapters import peft_config_from
from hf_shear.training.arguments import NO_DISTILLATION

from .claims.claim_results import Claim, SourceResults, confirm_results, markdown_table, results_of
from .claims.study import Study, settings_of, sources_of
from .provenance import MadeAgain, code_digest, made_by, noted, stale_note
from .shared import EXAMPLES, FLOPS, RESEARCH, ROOT, TOKENS, difference, mean_and_spread, put_between

CONFIG = RESEARCH / "configs" / "recovery.yaml"
RESULTS, PAGE = ROOT / "model_cards" / "recovery.json", ROOT / "model_cards" / "recovery.md"
DOCS, MARKS = EXAMPLES / "docs" / "recovery.md", ("<!-- recovery: start -->", "<!-- recovery: end -->")
FULL = "full"
CLAIM = Claim(name="recovery", statement="Ways of recovery at equal tokens and at equal FLOPs")


class Recovery(Study):
    """Ways of recovery on one source."""

    @cached_property
    def code(self) -> str:
        return todays_code()

    @cached_property
    def cuts(self) -> dict[int, PreTrainedModel]:
        """Pruned models by seed, as far as they were asked for."""
        return {}

    def cut(self, seed: int) -> PreTrainedModel:
        """A copy of the pruned model that all ways of a seed start from."""
        if seed not in self.cuts:
            self.cuts[seed] = self.prune(self.target(), seed)
        return copy.deepcopy(self.cuts[seed])

    def compare(self) -> None:
        """All runs that are not there yet: each way's sweep at the smallest budget, then the others at its rate."""
        self.run({"arm": "source", "seed": self.seeds[0]}, lambda: self.judged(self.source()))
        for seed in self.seeds:
            self.run({"arm": "cut", "seed": seed}, lambda seed=seed: self.judged(self.cut(seed)))
        for arm, choices in self.arms.items():
            key = {"arm": arm, "budget": self.budgets[0], "equal": TOKENS}
            rate = self.tune(key, partial(self.make, **key), self.learning_rate * choices.get("first_rate", 1))
            for budget in self.budgets:
                for equal in (TOKENS, FLOPS) if arm != FULL else (TOKENS,):  # of `full` both are the same run
                    for seed in self.seeds:
                        key = {"arm": arm, "budget": budget, "equal": equal, "rate": rate, "seed": seed}
                        self.run(key, partial(self.make, **key))

    def make(self, rate: float, seed: int, *, arm: str, budget: int, equal: str) -> dict:
        """Train one way, and judge what it gives."""
        model = self.cut(seed)
        full, own = (self.cost(one, model.config) for one in (FULL, arm))
        tokens = budget if equal == TOKENS else int(budget * full / own)
        model, facts = self.train(model, tokens, seed, learning_rate=rate, **self.training, **self.options(arm))
        if recovery_method(self.method(arm)).adapts:
            model = model.merge_and_unload()
        return facts | {"flops": own * facts["tokens"]} | self.judged(model)

    def options(self, arm: str) -> dict:
        """Training arguments of one way."""
        return {name: value for name, value in self.arms[arm].items() if name != "first_rate"}

    def method(self, arm: str) -> str:
        return self.arms[arm].get("recovery_method", FULL)

    def cost(self, arm: str, config: PretrainedConfig) -> float:
        """FLOPs of a training token of the pruned model, a teacher's forward pass included."""
        method, adapters = recovery_method(self.method(arm)), 0
        if method.adapts:
            peft_config = peft_config_from(self.arms[arm]["peft_config"])
            adapters = num_trainable(method.prepare(AutoModelForCausalLM.from_config(config), peft_config))
        teacher = self.config if "distillation" in self.arms[arm] else None
        return training_flops_per_token(config, self.max_length, not method.trains_all, adapters, teacher)

    def _trained(self, model: PreTrainedModel, num_tokens: int, seed: int, **changes) -> ShearTrainer:
        """Overridden: the source teaches where there is distillation. Budgets are too small to steer domain weights."""
        with tempfile.TemporaryDirectory() as folder:
            args = self._arguments(folder, num_tokens, seed, **changes)
            teacher = self.source() if args.distillation != NO_DISTILLATION else None
            trainer = ShearTrainer(model, args, self.data.train, teacher=teacher)
            trainer.train()
        return trainer


def todays_code() -> str:
    """Digest of the code and the settings that make the numbers today."""
    return code_digest("examples.research.recovery", ("Recovery",), CONFIG)


def made_again(path: Path, given: Mapping[str, tuple]) -> Iterator[MadeAgain]:
    """The loss of a run of each way at the smaller budget."""
    for source in results_of(path):
        study = Recovery(CLAIM, source.name, *given[source.name], source.settings, path)
        for arm in source.settings["arms"]:
            was = source.tuned(arm=arm, budget=source.settings["budgets"][0], equal=TOKENS)[0]
            now = study.make(**{name: was[name] for name in ("rate", "seed", "arm", "budget", "equal")})
            yield f"{source.name}, {arm}", [was["mean"]], [now["mean"]]


# The pages

COMMAND = "python -m examples.research.recovery run STORIES260K TINYSTORIES"
INTRODUCTION = """# Ways of recovery, measured

The same pruned models, one for each of {seeds} seeds, trained back in different ways. Each seed cuts the source by the
defaults of `hf-shear prune` on its own calibration text. Numbers are held-out losses in nats per token, mean ± sample
standard deviation over the seeds.

- `full`: all weights. `lora`: adapters of rank {rank} on all linear layers. `norms_and_biases`: those alone.
- `distilled`: all weights, half cross-entropy and half forward KL from the source, temperature 1. `lora_distilled`:
  adapters with the same loss.

A budget is a number of training tokens of `full`. "Equal FLOPs" gives each way the tokens that the FLOPs of `full` pay
for, forward passes of a teacher included (`hf_shear.shapes.training_flops_per_token`). The learning rate falls late, as in
[the main job](main_job.md). Its peak is the best of a sweep by factors of two for each way, at the smaller budget. One half
of the held-out text chose it; losses here are of the other half. "Above `full`" is the difference paired by seed with its
95 % interval (Student's t). A way is ahead or behind if the interval does not hold 0, else it is a tie. With so few seeds
intervals are wide."""


def losses(source: SourceResults, arm: str, budget: int, equal: str) -> list[float]:
    """Of all seeds; `full` is the same run whatever is equal."""
    return source.losses(arm=arm, budget=budget, equal=TOKENS if arm == FULL else equal)


def above_full(source: SourceResults, arm: str, budget: int, equal: str) -> PairedDifference:
    return difference(losses(source, FULL, budget, equal), losses(source, arm, budget, equal))


def page(sources: list[SourceResults]) -> str:
    """The page's text."""
    seeds, arms = len(sources[0].settings["seeds"]), sources[0].settings["arms"]
    parts = [INTRODUCTION.format(seeds=seeds, rank=arms["lora_distilled"]["peft_config"]["r"])]
    for source in sources:
        settings, tables = source.settings, []
        cut = source.select(arm="cut")
        shape = ", ".join(f"{name} {size}" for name, size in settings["target"].items())
        (whole,) = source.select(arm="source")
        parts += [
            f"## {source.name}",
            f"{whole['num_parameters']:,} parameters cut to {cut[0]['num_parameters']:,}: {shape}. Loss of the source:"
            f" {whole['mean']:.3f}; of the cuts: {mean_and_spread([run['mean'] for run in cut])}. Steps of"
            f" {settings['batch_size']} x {settings['max_length']} tokens.",
        ]
        for equal in (TOKENS, FLOPS):
            for budget in settings["budgets"]:
                tables += [
                    f"### {source.name}: {budget:,} tokens" + (" of `full`, equal FLOPs" if equal == FLOPS else "")
                ]
                tables += [verdict(source, budget, equal), table(source, budget, equal)]
        parts += tables
    seconds = sum(run["run_seconds"] for source in sources for run in source.runs)
    parts.append(
        f"```bash\n{COMMAND}\n```\n\ntook {seconds / 60:.0f} min of one CPU thread beside other work."
        " Settings: [`recovery.yaml`](../examples/research/configs/recovery.yaml). Numbers:"
        f" [`recovery.json`](recovery.json). {made_by(sources[0].code, 'a run of each way')}"
    )
    return noted(stale_note(sources[0].code, todays_code(), COMMAND), "\n\n".join(parts) + "\n")


def state(found: PairedDifference) -> str:
    """Of a way beside `full`, whose losses come first."""
    return "behind" if found.is_ahead else "ahead" if found.is_behind else "tie"


def verdict(source: SourceResults, budget: int, equal: str) -> str:
    """Which ways are ahead of `full`, behind it, or neither."""
    states: dict[str, list[str]] = {"ahead": [], "tie": [], "behind": []}
    for arm in source.settings["arms"]:
        if arm != FULL:
            states[state(above_full(source, arm, budget, equal))].append(f"`{arm}`")
    words = {"ahead": "Ahead of `full`", "tie": "Ties with it", "behind": "Behind it"}
    return " ".join(f"{words[name]}: {', '.join(arms) or 'none'}." for name, arms in states.items())


def table(source: SourceResults, budget: int, equal: str) -> str:
    """A row for each way, the lowest mean first."""
    rows = []
    for arm in sorted(source.settings["arms"], key=lambda arm: fmean(losses(source, arm, budget, equal))):
        runs = source.tuned(arm=arm, budget=budget, equal=TOKENS if arm == FULL else equal)
        above = "" if arm == FULL else above_full(source, arm, budget, equal).text()
        flops = f"{fmean(run['flops'] for run in runs):.3g}"
        found = mean_and_spread(losses(source, arm, budget, equal))
        rows.append((arm, f"{runs[0]['rate']:g}", f"{runs[0]['tokens']:,}", flops, found, above))
    return markdown_table(("way", "learning rate", "tokens", "FLOPs", "loss", "above `full`"), rows)


WAYS = {
    "distilled": "all weights with a teacher",
    "lora": "adapters",
    "lora_distilled": "adapters with a teacher",
    "norms_and_biases": "norms and biases",
}


def advice(sources: list[SourceResults]) -> str:
    """How each other way did beside all weights without a teacher, over sources and budgets."""
    parts = []
    for arm in sources[0].settings["arms"]:
        if arm == FULL:
            continue
        told = []
        for equal in (TOKENS, FLOPS):
            found = [above_full(one, arm, budget, equal) for one in sources for budget in one.settings["budgets"]]
            states = [state(one) for one in found]
            counts = [f"{name} in {states.count(name)}" for name in ("ahead", "tie", "behind") if name in states]
            least, most = min(one.mean for one in found), max(one.mean for one in found)
            told.append(f"at equal {equal} {', '.join(counts)} of {len(found)} ({least:+.3f} to {most:+.3f} nats)")
        parts.append(f"- {WAYS[arm]} (`{arm}`): {'; '.join(told)}")
    introduction = (
        f"Measured against all weights without a teacher (`full`), on {len(sources)} small models at two budgets each"
        " ([all numbers](../../model_cards/recovery.md)). FLOPs include the teacher's. Below 0 is better."
    )
    return "\n".join([_folded(introduction, ""), "", *map(_folded, parts)])


def _folded(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, 122, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def documented(sources: list[SourceResults]) -> str:
    """The page of the docs with the advice of today between its marks."""
    return put_between(DOCS.read_text(encoding="utf-8"), MARKS, f"\n{advice(sources)}\n")


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "confirm", "page"))
    parser.add_argument("stories", nargs="*", help="stories260K and TinyStories")
    options = parser.parse_args(command_line)
    if options.what != "page" and len(options.stories) != 2:
        parser.error(f"{options.what} needs STORIES260K TINYSTORIES.")
    given = sources_of(CONFIG, options.stories, None)
    if options.what == "run":
        for name, place in given.items():
            Recovery(CLAIM, name, *place, settings_of(CONFIG, name), RESULTS).compare()
    elif options.what == "confirm":
        confirm_results(RESULTS, todays_code(), made_again(RESULTS, given), given)
    sources = results_of(RESULTS)
    PAGE.write_text(page(sources), encoding="utf-8")
    DOCS.write_text(documented(sources), encoding="utf-8")


if __name__ == "__main__":
    main()
