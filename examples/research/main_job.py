"""The default way to shear against its rivals, which get the same chances, on three sources.

    python -m examples.research.main_job                                     # the embedded model, which needs no data
    python -m examples.research.main_job --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES
    python -m examples.research.main_job --page                              # build the page anew, and measure nothing
    python -m examples.research.main_job --confirm ...                       # a cut of each arm again

Every arm makes a model of the target's shape and trains it on the same schedule, at a learning rate of its own: the first
seed sweeps it until the best lies between two others, by the half of the judged text that is not reported. Arms are
compared twice: at equal training tokens, mask learning included; and at equal FLOPs, where what an arm spends on its
choice of units (calibration, compensation, a start, mask learning on the source) is taken off its training tokens. Arms
are kept one by one, in model_cards/main_job.json: a call goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel

from hf_shear.core.counted_flops import counted_flops
from hf_shear.data import Calibration
from hf_shear.report import paired_difference, require_matplotlib
from hf_shear.training import TrainingDivergedError

from .claims.claim_results import (
    EMBEDDED,
    STORIES,
    Claim,
    SourceResults,
    confirm_results,
    markdown_table,
    results_of,
)
from .claims.study import Study, settings_of, sources_of
from .provenance import MadeAgain, code_digest, made_by, noted, stale_note
from .shared import (
    FLOPS,
    RESEARCH,
    ROOT,
    TOKENS,
    best_rate,
    loss_to_choose_by,
    mean_and_spread,
    next_rates,
    put_between,
    save_picture,
)

CONFIG = RESEARCH / "configs" / "main_job.yaml"
RESULTS, PAGE = ROOT / "model_cards" / "main_job.json", ROOT / "model_cards" / "main_job.md"
BUDGETS = EQUAL_TOKENS, EQUAL_FLOPS = f"equal {TOKENS}", f"equal {FLOPS}"
WORDS = {"share": "tokens for masks", "mask_rate": "mask rate", "num_batches": "calibration batches"}
CLAIM = Claim(name="main_job", statement="The default beats its rivals at equal training tokens and at equal FLOPs")
SMALL_FOLDER = Path("main_job_small")
README, MARKS = ROOT / "README.md", ("<!-- results: start -->", "<!-- results: end -->")
IN_README = {
    "compensated surgeon": "default", "taylor": "Taylor", "random": "random", "paper's recipe": "paper",
    "learned masks": "learned", "scratch": "scratch",
}  # fmt: skip
"""Arms of the README's table of small models, by its headings."""
ARM_WORDS = {"taylor": "Taylor units", "random": "random units", "scratch": "random weights"}
"""Arms of the picture, where their names are not words."""


class MainJob(Study):
    """Arms of the main job on one source."""

    @cached_property
    def code(self) -> str:
        """Digest of the code that makes the arms."""
        return todays_code()

    _num_batches = 1
    _cut: tuple[dict, PreTrainedModel, dict] | None = None
    """The last cut: its key, the model and what it cost. Rates of one arm and seed start from the same one."""

    def calibration(self, seed: int) -> Calibration:
        """A draw of calibration text, in batches of a size of its own; one batch where nothing is chosen by it."""
        return self.data.calibration(self.calibration_batch_size, self._num_batches, seed)

    def compare(self) -> None:
        """All arms that are not there yet: first each one's sweep, then all seeds at its best rate."""
        self.run({"arm": "source", "seed": self.seeds[0]}, lambda: self.judged(self.source()))
        best = {arm: self.sweep(arm) for arm in self.arms}
        for seed in self.seeds:
            for arm, (tried, rate) in best.items():
                for budget in BUDGETS if self.pays(arm) else BUDGETS[:1]:
                    key = {"arm": arm, **tried, "budget": budget, "rate": rate, "seed": seed}
                    self.run(key, partial(self.make, key))

    def sweep(self, arm: str) -> tuple[dict, float]:
        """What an arm does best with on the first seed: of what it tries, and its learning rate."""
        first = self.learning_rate * self.arms[arm].get("first_rate", 1)
        tried = first_choices(self.settings, arm)
        for name, values in self.arms[arm].get("tried", {}).items():
            budget = EQUAL_FLOPS if name == "num_batches" else EQUAL_TOKENS  # more text costs nothing at equal tokens
            losses = {value: self.attempt(arm, tried | {name: value}, first, budget) for value in values}
            tried[name] = best_rate(losses)
        found, wanted = {}, [first]
        while wanted:
            found |= {rate: self.attempt(arm, tried, rate) for rate in wanted}
            wanted = next_rates(found) if self.sweep_rates else []
        if all(loss is None for loss in found.values()):
            raise ValueError(f"{arm} diverged at every rate that was tried: {[*found]}.")
        return tried, best_rate(found)

    def attempt(self, arm: str, tried: dict, rate: float, budget: str = EQUAL_TOKENS) -> float | None:
        """The loss of the first seed to choose by; None where training diverged."""
        key = {"arm": arm, **tried, "budget": budget, "rate": rate, "seed": self.seeds[0]}

        def make() -> dict:
            try:
                return self.make(key)
            except TrainingDivergedError:
                return {"mean": None, "tokens": 0}

        return loss_to_choose_by(self.run(key, make))

    def pays(self, arm: str) -> bool:
        """Whether an arm spends anything on its choice; else both budgets are the same run."""
        return any(run["chosen_flops"] for run in self.runs if run["arm"] == arm and run["mean"] is not None)

    def make(self, key: dict) -> dict:
        """Choose, cut, train, judge.

        Args:
            key: of the run: arm, what it tries, budget, rate, seed.

        Raises:
            ValueError: at equal FLOPs the choice alone takes all of them.
        """
        model, cost = self.cut(key)
        per_token = self.flops_per_token(model)
        tokens = self.num_tokens - cost["mask_tokens"]
        if key["budget"] == EQUAL_FLOPS:
            tokens = int(self.num_tokens - cost["chosen_flops"] / per_token)
        if tokens < self.batch_size * self.max_length:
            raise ValueError(f"{key['arm']}: the choice takes all of {self.num_tokens:,} tokens. Raise `num_tokens`.")
        model, facts = self.train(
            model, tokens, key["seed"], learning_rate=key["rate"], **self.recovery | self.training
        )
        flops = cost["chosen_flops"] + facts["tokens"] * per_token
        facts["tokens"] += cost["mask_tokens"]
        return facts | self.judged(model) | cost | {"flops": flops}

    def cut(self, key: dict) -> tuple[PreTrainedModel, dict]:
        """The model before recovery; the FLOPs of its choice, its tokens of mask learning and its loss."""
        own = {name: value for name, value in key.items() if name != "budget"}
        if "masks" not in self.arms[key["arm"]]:
            del own["rate"]  # no weights are trained before recovery
        if self._cut is None or self._cut[0] != own:
            model, cost = self.chosen(key)
            self._cut = own, model, cost | {"before": self.judged(model)["mean"]}
        return copy.deepcopy(self._cut[1]), self._cut[2]

    def chosen(self, key: dict) -> tuple[PreTrainedModel, dict]:
        """A model of the target's shape, and what the choice cost."""
        choices, target, seed = self.arms[key["arm"]], self.target(), key["seed"]
        self._num_batches = key.get("num_batches", 1)
        if "scratch" in choices:
            return self.scratch(target, seed), {"chosen_flops": 0.0, "mask_tokens": 0}
        if "prune" in choices:
            with counted_flops() as counted:
                model = self.prune(target, seed, **choices["prune"])
            # Random units are not chosen on text, whatever cutting them computes.
            spent = 0.0 if choices["prune"]["criterion"] == "random" else float(counted.total)
            return model, {"chosen_flops": spent, "mask_tokens": 0}
        rates = ("mask_learning_rate", "multiplier_learning_rate") if "mask_rate" in key else ()
        model, facts = self.learn(
            target, round(key["share"] * self.num_tokens), seed, choices["masks"], choices.get("compensation", "none"),
            learning_rate=key["rate"], **self.training | {name: key["mask_rate"] for name in rates},
        )  # fmt: skip
        spent = facts["start_flops"] + facts["tokens"] * self.flops_per_token()
        return model, {"chosen_flops": spent, "mask_tokens": facts["tokens"], "gap": facts["gap"]}


def todays_code() -> str:
    """Digest of the code and the settings that make the numbers today."""
    return code_digest("examples.research.main_job", ("MainJob",), CONFIG)


def first_choices(settings: dict, arm: str) -> dict:
    """The first value of everything that an arm tries."""
    return {name: values[0] for name, values in settings["arms"][arm].get("tried", {}).items()}


# Reading what was measured


def arm_runs(source: SourceResults, arm: str, budget: str = EQUAL_TOKENS) -> list[dict]:
    """The runs of all seeds at what an arm did best with on the first one, as far as they are there.

    An arm whose choice costs nothing has one run for both budgets.
    """
    settings = source.settings
    swept = source.select(arm=arm, budget=EQUAL_TOKENS, seed=settings["seeds"][0])
    swept = [run for run in swept if run["mean"] is not None]
    if not swept:
        return []
    names = [*settings["arms"][arm].get("tried", {}), "rate"]
    best = min(swept, key=lambda run: (loss_to_choose_by(run), *(run[name] for name in names)))
    paid = budget if best["chosen_flops"] else EQUAL_TOKENS
    runs = source.select(arm=arm, budget=paid, **{name: best[name] for name in names})
    return [run for run in runs if run["mean"] is not None]


def with_whole_seeds(source: SourceResults) -> SourceResults:
    """The results without seeds that some arm lacks, which may be all."""
    seeds = set(source.settings["seeds"])
    for arm in source.settings["arms"]:
        for budget in BUDGETS:
            seeds &= {run["seed"] for run in arm_runs(source, arm, budget)}
    kept = [run for run in source.runs if run["seed"] in seeds or run["seed"] == source.settings["seeds"][0]]
    return SourceResults(source.name, source.settings | {"seeds": sorted(seeds)}, kept, source.code)


def means(runs: list[dict]) -> list[float]:
    return [run["mean"] for run in runs]


def source_loss(source: SourceResults) -> float:
    return next(run["mean"] for run in source.runs if run["arm"] == "source")


# The page

INTRODUCTION = """# The main job against its rivals

What `examples/shear.py` does by default against other ways to a model of the same shape, each with the same recovery
(schedule, batches, text) and a learning rate of its own. The default, `{default}`, takes one shot: the LLM Surgeon ranks
heads and neurons, the size of activations hidden dimensions; the weights that stay make up for the others by least
squares; and layers go by the loss that the smaller model has without each. `paper's recipe` is Sheared LLaMA's
hard-concrete masks, with the share of the tokens and the rate of masks and multipliers that did best of those below. Small
models, short runs: orders, not sizes, are what may carry over. Calibration text is neither trained on nor judged. The
default reads 2 batches of 8 x 256 tokens; a rival 1 or 2, as did better at equal FLOPs.

Each arm's rate is the best of a sweep by factors of two on the first seed. It was chosen on one half of the held-out text;
losses here are of the other half. At equal tokens every arm trains on as many, mask learning included. At equal FLOPs an
arm's choice of units is taken off its training: FLOPs of matrix products in calibration, compensation and starts
were counted as they ran; those of training are `hf_shear.shapes.training_flops_per_token`. Comparisons are paired by
seed: an arm is ahead of another if the 95 % interval (Student's t) of their differences does not hold 0. With five seeds
Taylor was not to be told from the default on two sources; all arms got five more there, and no others were run.
[What else was tried](tried.md)."""


def page(sources: list[SourceResults]) -> str:
    """The page's text."""
    parts = [INTRODUCTION.format(default=sources[0].settings["default"])]
    for source in sources:
        parts += [f"## {source.name}", described(source)]
        for budget in BUDGETS:
            parts += [f"### {source.name}: {budget}", verdict(source, budget), table(source, budget)]
        parts += ["The first seed at every rate (loss on the half that chooses):", sweep_table(source)]
    parts += ["![Loss of each arm, by seed](main_job.png)", again(sources)]
    return noted(stale_note(sources[0].code, todays_code(), command(sources)), "\n\n".join(parts) + "\n")


def described(source: SourceResults) -> str:
    run, settings = arm_runs(source, source.settings["default"])[0], source.settings
    shape = ", ".join(f"{name} {size}" for name, size in settings["target"].items())
    return (
        f"Target: {shape}; {run['num_parameters']:,} parameters. Source: {source_loss(source):.3f}."
        f" {settings['num_tokens']:,} training tokens in steps of {settings['batch_size']} x {settings['max_length']};"
        f" {len(settings['seeds'])} seeds."
    )


def verdict(source: SourceResults, budget: str) -> str:
    """By how much the default is ahead of, or behind, each rival."""
    default = source.settings["default"]
    own = means(arm_runs(source, default, budget))
    ahead, behind, level = [], [], []
    for arm in source.settings["arms"]:
        if arm == default:
            continue
        found = paired_difference(own, means(arm_runs(source, arm, budget)))
        if found.is_ahead or found.is_behind:
            (ahead if found.is_ahead else behind).append(f"{arm} by {found.text()}")
        else:
            level.append(f"{arm} ({found.text()} above it)")
    parts = [f"ahead of {'; '.join(ahead)}"] if ahead else []
    parts += [f"behind {'; '.join(behind)}"] if behind else []
    parts += [f"not to be told from {'; '.join(level)}"] if level else []
    return f"**{default}** ({mean_and_spread(own)}) is {'. It is '.join(parts)}."


def table(source: SourceResults, budget: str) -> str:
    default, rows = source.settings["default"], []
    own = arm_runs(source, default, budget)
    for arm in sorted(source.settings["arms"], key=lambda arm: fmean(means(arm_runs(source, arm, budget)))):
        runs = arm_runs(source, arm, budget)
        above = "" if arm == default else paired_difference(means(own), means(runs)).text()
        name = f"**{arm}**" if arm == default else arm
        chosen, flops = (fmean(run[field] for run in runs) for field in ("chosen_flops", "flops"))
        numbers = f"{runs[0]['rate']:g}", f"{runs[0]['tokens']:,}", f"{flops:.3g}", f"{chosen / flops:.0%}"
        before = mean_and_spread([run["before"] for run in runs])
        rows.append((name + tried_text(source, runs[0]), *numbers, before, mean_and_spread(means(runs)), above))
    headings = ("arm", "learning rate", "tokens", "FLOPs", "of them for the choice", "loss at the cut", "loss at the end",
                "above the default")  # fmt: skip
    return markdown_table(headings, rows)


def tried_text(source: SourceResults, run: dict) -> str:
    """What an arm tries, as a run had it."""
    tried = source.settings["arms"][run["arm"]].get("tried", {})
    return f" ({', '.join(f'{WORDS[name]} {run[name]:g}' for name in tried)})" if tried else ""


def sweep_table(source: SourceResults) -> str:
    """What the first seed lost at every rate; the best of a row in bold."""
    sweeps: dict[str, dict[float, float | None]] = {}
    for run in source.runs:
        if run.get("budget") == EQUAL_TOKENS and run["seed"] == source.settings["seeds"][0]:
            label = run["arm"] + tried_text(source, run)
            sweeps.setdefault(label, {})[run["rate"]] = loss_to_choose_by(run)
    rates = sorted({rate for swept in sweeps.values() for rate in swept})
    rows = []
    for label, swept in sweeps.items():
        texts = {rate: "diverged" if loss is None else f"{loss:.3f}" for rate, loss in swept.items()}
        texts[best_rate(swept)] = f"**{texts[best_rate(swept)]}**"
        rows.append((label, *(texts.get(rate, "") for rate in rates)))
    return markdown_table(("arm", *(f"{rate:g}" for rate in rates)), rows)


def readme_table(sources: list[SourceResults]) -> str:
    """Mean loss at the end of each arm at equal FLOPs, per source."""
    rows = []
    for source in sources:
        ends = [mean_and_spread(means(arm_runs(source, arm, EQUAL_FLOPS))) for arm in IN_README]
        rows.append((source.name, f"{source_loss(source):.3f}", *ends))
    return markdown_table(("model", "source", *IN_README.values()), rows)


def again(sources: list[SourceResults]) -> str:
    seconds = sum(run["run_seconds"] for source in sources for run in source.runs)
    return (
        f"```bash\n{command(sources)}\n```\n\ntook {round(seconds / 60)} min of one CPU thread beside other work."
        " [What to give](claims.md). Settings: [`main_job.yaml`](../examples/research/configs/main_job.yaml). Numbers:"
        f" [`main_job.json`](main_job.json). {made_by(sources[0].code, 'a cut of each arm')}"
    )


def readme(sources: list[SourceResults]) -> str:
    """The README with today's table between its markers."""
    return put_between(README.read_text(encoding="utf-8"), MARKS, f"\n{readme_table(sources)}\n")


def command(sources: list[SourceResults]) -> str:
    names = {source.name for source in sources}
    words = ["python -m examples.research.main_job"]
    words += ["--data_dir SEVEN_DOMAINS"] if names - {EMBEDDED, STORIES} else []
    words += ["--stories STORIES260K TINYSTORIES"] if STORIES in names else []
    return " ".join([*words, "--output again.json"])


def draw(sources: list[SourceResults], path: Path) -> None:
    """A panel per source and budget: each arm's loss above the default's, by seed, and the interval of their mean."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 2.6 * len(sources) + 0.4), layout="constrained")
    grid = figure.subplots(len(sources), len(BUDGETS), squeeze=False)
    for row, source in zip(grid, sources, strict=True):
        for axes, budget in zip(row, BUDGETS, strict=True):
            _panel(axes, source, budget)
    save_picture(figure, path, dpi=110)


def _panel(axes, source: SourceResults, budget: str) -> None:
    default = source.settings["default"]
    own = means(arm_runs(source, default, budget))
    rivals = [arm for arm in source.settings["arms"] if arm != default]
    for place, arm in enumerate(rivals):
        found = means(arm_runs(source, arm, budget))
        axes.plot([b - a for a, b in zip(own, found, strict=True)], [place] * len(own), "o", color="C0", alpha=0.5)
        interval = paired_difference(own, found)
        if interval.low is not None:
            axes.plot(interval[1:], [place, place], "-", color="C3", linewidth=2)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_xscale("symlog", linthresh=0.1)
    low, high = axes.get_xlim()
    axes.set_xlim(low, 1.3 * high)  # whole dots at the right end
    ticks = [tick for tick in (-1, -0.1, 0, 0.1, 1) if low <= tick <= 1.3 * high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(range(len(rivals)), [ARM_WORDS.get(arm, arm) for arm in rivals])
    axes.invert_yaxis()
    axes.set_title(f"{source.name}, {budget}", loc="left", fontsize=10)
    axes.set_xlabel("loss above the default's (nats per token)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def sources_of_page(path: Path = RESULTS) -> list[SourceResults]:
    """What is kept, of the seeds that all arms of a source have."""
    return [source for source in map(with_whole_seeds, results_of(path)) if source.settings["seeds"]]


def build(path: Path = RESULTS) -> None:
    """The page and its picture."""
    sources = sources_of_page(path)
    if not sources:
        print("No source has all its arms yet.")
        return
    draw(sources, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(page(sources), encoding="utf-8")
    if path == RESULTS:
        README.write_text(readme(sources), encoding="utf-8")


def made_again(path: Path, given: Mapping[str, tuple]) -> Iterator[MadeAgain]:
    """Each arm's last cut, and the default's last run: losses at the cut and at the end."""
    for source in results_of(path):
        job = MainJob(CLAIM, source.name, *given[source.name], source.settings, path)
        for arm, choices in source.settings["arms"].items():
            kept = arm_runs(source, arm)[-1]
            key = {name: kept[name] for name in ("arm", *choices.get("tried", {}), "budget", "rate", "seed")}
            made = job.make(key) if arm == source.settings["default"] else kept | job.cut(key)[1]
            yield f"{source.name}, {arm}", *([run["before"], run["mean"]] for run in (kept, made))


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="text of the seven domains, a folder each; for family-128")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "TEXT"), help="stories260K and TinyStories")
    parser.add_argument("--sources", nargs="+", help="only these (default: all that the text is given for)")
    parser.add_argument("--small", action="store_true", help="a minute: few tokens, one seed; proves nothing")
    parser.add_argument("--page", action="store_true", help="only build the page from what is kept")
    parser.add_argument("--confirm", action="store_true", help="make a cut of each arm again, after a change of code")
    parser.add_argument("--output", type=Path, help=f"JSON file (default: {RESULTS.relative_to(ROOT)})")
    options = parser.parse_args(command_line)
    path = options.output or (SMALL_FOLDER / RESULTS.name if options.small else RESULTS)
    given = sources_of(CONFIG, options.stories, options.data_dir)
    if options.confirm:
        confirm_results(path, todays_code(), made_again(path, given), given)
    for name in [] if options.page or options.confirm else options.sources or given:
        if name not in given:
            parser.error(f"{name!r} needs its text: {', '.join(given)} are given.")
        MainJob(CLAIM, name, *given[name], settings_of(CONFIG, name, options.small), path).compare()
    build(path)


if __name__ == "__main__":
    main()
