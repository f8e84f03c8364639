"""One P2 law for all recovery runs of a family.

python examples/claims/p2_law_1_one_law.py --data_dir SEVEN_DOMAINS
"""

import sys
from statistics import fmean

from p2_runs import cost, fitted, recovery_runs
from study import HELD, LOST, Check, Claim, SourceResults, Study, main, markdown_table

CLAIM = Claim(
    name="p2_law_1_one_law",
    statement="One law fits the recovery of every size and every fraction removed",
    section="sections 4 and 5",
    note="Every member of the family, pruned at once to three fractions and trained on at a constant learning rate, each "
    "with a control: the unpruned member on the same tokens. The error of a run is mean |fitted - measured loss| over "
    "mean (L - L0). The Chinchilla form sees the size of the pruned model and the tokens alone.",
)
FORMS = ("p2", "p2_five", "chinchilla")
ALLOWED_ERROR = 0.10
"""4 % is about the best that such laws reach, 20 % still decides between candidates (arXiv 2410.11840)."""


def runs(study: Study) -> None:
    for seed in study.seeds:
        found = recovery_runs(study, seed)
        for form in FORMS:
            study.run(
                {"form": form, "seed": seed}, lambda form=form, seed=seed, found=found: fit(study, found, form, seed)
            )


def fit(study: Study, found, form: str, seed: int) -> dict:
    law = fitted(found, form)
    points = [
        {"name": run.name, "tokens": list(map(float, run.tokens)), "rise": list(map(float, run.rises)),
         "fitted": [float(law.curve(run.case).predict(tokens)) - run.case.source_loss for tokens in run.tokens]}
        for run in found
    ]  # fmt: skip
    rows = law.report.to_dict()["runs"]
    trained = cost(study, seed) if form == FORMS[0] else {"tokens": 0, "training_seconds": 0.0}
    return {"errors": {row["name"]: row["relative_error"] for row in rows}, "points": points} | trained


def mean_error(source: SourceResults, form: str) -> float:
    return fmean(fmean(run["errors"].values()) for run in source.select(form=form))


def checks(source: SourceResults) -> list:
    own, worst = mean_error(source, FORMS[0]), max(max(run["errors"].values()) for run in source.select(form=FORMS[0]))
    rival = mean_error(source, "chinchilla")
    allowed = f"at most {ALLOWED_ERROR:.0%}"
    return [
        Check(f"mean error of L - L0 over the runs {own:.1%}, {allowed}", HELD if own <= ALLOWED_ERROR else LOST),
        Check(f"error of the worst run {worst:.1%}, {allowed}", HELD if worst <= ALLOWED_ERROR else LOST),
        Check(f"mean error below that of the Chinchilla form ({rival:.1%})", HELD if own < rival else LOST),
    ]


def table(source: SourceResults) -> str:
    names = list(source.select(form=FORMS[0])[0]["errors"])
    rows = []
    for name in names:
        rows.append(
            (name, *(f"{fmean(run['errors'][name] for run in source.select(form=form)):.1%}" for form in FORMS))
        )
    return markdown_table(("run", *(f"error, {form}" for form in FORMS)), rows)


def draw(source: SourceResults, axes) -> None:
    points = source.select(form=FORMS[0])[0]["points"]
    sizes = list(dict.fromkeys(point["name"].split()[0] for point in points))
    for point in points:
        colour = f"C{sizes.index(point['name'].split()[0])}"
        axes.plot(point["tokens"], point["rise"], ".", color=colour, markersize=3)
        axes.plot(point["tokens"], point["fitted"], color=colour, linewidth=0.9)
    for number, size in enumerate(sizes):
        axes.plot([], [], color=f"C{number}", label=size)
    axes.set_xlabel("recovery tokens")
    axes.set_ylabel("L - L0 (nats per token); lines: the law")
    axes.set_yscale("log")
    axes.legend(frameon=False, title="hidden size of the source", fontsize=8)


if __name__ == "__main__":
    main(sys.modules[__name__])
