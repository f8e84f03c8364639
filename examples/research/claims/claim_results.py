"""Claims, what was measured for them, and how it is judged: what scripts, pages and studies share.

A claim's script declares ``CLAIM``, ``runs(study)`` (its arms), ``checks(source)`` (what must hold), ``table(source)`` and
``draw(source, axes)``, where ``source`` is a ``SourceResults``; and ends with ``main(sys.modules[__name__])``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from hf_shear.core import collect_versions
from hf_shear.core.results import write_text_atomically

from ..provenance import MadeAgain, code_digest, confirm
from ..shared import (
    HELD,
    LOST,
    RESEARCH,
    ROOT,
    UNKNOWN,
    difference,
    loss_to_choose_by,
    mean_and_spread,
    spread_of,
    state_of,
)

CONFIGS = RESEARCH / "claims" / "configs"
RESULTS = ROOT / "model_cards" / "claims"
EMBEDDED, STORIES = "embedded", "stories260k"
"""Names of the source that needs no text, and of the one that is given by ``--stories``."""

WORKS = {
    "sheared_llama": ("Sheared LLaMA", "2310.06694"),
    "llm_surgeon": ("LLM Surgeon", "2312.17244"),
}


@dataclass(frozen=True)
class Claim:
    """A headline claim.

    Attributes:
        name: of the script, its config, its results and its page; ``WORK_NUMBER_...``.
        statement: what is claimed, in one sentence.
        section: where the work says so, or "".
        note: what is different here, and why the outcome may be as it is; part of the page.
    """

    name: str
    statement: str
    section: str = ""
    note: str = ""

    @property
    def work(self) -> str:
        """A key of ``WORKS``."""
        return next(work for work in WORKS if self.name.startswith(work))

    @property
    def number(self) -> int:
        """Among the claims of its work."""
        return int(self.name.removeprefix(self.work + "_").partition("_")[0])


class Check(NamedTuple):
    """One comparison that must hold: what, and HELD, TIE, LOST or UNKNOWN."""

    text: str
    state: str


@dataclass(frozen=True)
class SourceResults:
    """Everything that was measured on one source.

    Attributes:
        settings: of the config, as they applied.
        runs: a record per arm: the key's entries beside what was measured.
        code: records of the code that made them, as in ``provenance``.
    """

    name: str
    settings: dict[str, Any]
    runs: list[dict]
    code: Sequence[dict] = ()

    def select(self, **key) -> list[dict]:
        """Runs whose key has these entries, by seed."""
        found = [run for run in self.runs if all(run.get(name) == value for name, value in key.items())]
        return sorted(found, key=lambda run: run["seed"])

    def values(self, field: str, **key) -> list[float]:
        """A measured number of the runs with this key."""
        return [run[field] for run in self.select(**key)]

    def sweep(self, **key) -> dict[float, float | None]:
        """Loss to choose by, by learning rate, that an arm had on the first seed; None where training diverged."""
        return {run["rate"]: loss_to_choose_by(run) for run in self.select(**key, seed=self.settings["seeds"][0])}

    def tuned(self, **key) -> list[dict]:
        """The runs of an arm by seed, at the rate of the lowest mean loss to choose by, of those that all seeds have."""
        by_rate = {run["rate"]: self.select(**key, rate=run["rate"]) for run in self.select(**key)}
        seeds = len(self.settings["seeds"])
        complete = [runs for runs in by_rate.values() if len(runs) == seeds and all(run["mean"] for run in runs)]
        if not complete:
            raise ValueError(f"{self.name}: no learning rate of {key} has a loss for each seed (tried: {[*by_rate]}).")
        return min(complete, key=lambda runs: fmean(map(loss_to_choose_by, runs)))

    def losses(self, **key) -> list[float]:
        """The mean losses of those runs."""
        return [run["mean"] for run in self.tuned(**key)]


def calibration_tokens(settings: dict[str, Any]) -> int:
    """Of one pass over the calibration text."""
    return settings["calibration_batches"] * settings["batch_size"] * settings["max_length"]


def compare(text: str, lower: Sequence[float], higher: Sequence[float], digits: int = 3) -> Check:
    """Whether ``lower`` is below ``higher``, with both and their paired difference in the text."""
    numbers = f"{mean_and_spread(lower, digits)} against {mean_and_spread(higher, digits)}"
    paired = f"; by seed {difference(lower, higher).text(digits)}" if len(lower) > 1 else ""
    return Check(f"{text}: {numbers}{paired}", state_of(lower, higher))


def verdict(checks: Sequence[Check]) -> str:
    """held: all checks; not held: none; else partly. A tie is no success. One seed alone gives no verdict."""
    if checks and all(check.state == UNKNOWN for check in checks):
        return UNKNOWN
    held = sum(check.state == HELD for check in checks)
    return HELD if held == len(checks) else "partly" if held else LOST


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def draw_means(axes, places: Sequence, found: Sequence[Sequence[float]], **style) -> None:
    """A line of means over the seeds with their spreads."""
    means, spreads = list(map(fmean, found)), list(map(spread_of, found))
    axes.errorbar(places, means, spreads, **({"fmt": "o-", "capsize": 2} | style))


def read(path: Path) -> dict:
    """Kept results; empty ones where there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sources": {}}


def write(path: Path, sources: dict, code: Sequence[dict]) -> None:
    """Keep the results of a claim, an arm a line, and the records of the code that made them."""
    parts = []
    for name, kept in sources.items():
        arms = ",\n".join(json.dumps(run, allow_nan=False) for run in kept["runs"])
        parts.append(f'{json.dumps(name)}: {{\n"settings": {json.dumps(kept["settings"])},\n"runs": [\n{arms}\n]}}')
    versions = json.dumps(collect_versions())
    made = f'"code": {json.dumps(code)},\n"versions": {versions}'
    write_text_atomically(path, f'{{"sources": {{\n{",".join(parts)}\n}},\n{made}}}\n')


def confirm_results(path: Path, digest: str, made_again: Iterable[MadeAgain], given: Iterable[str]) -> None:
    """``provenance.confirm`` of a file of results."""
    kept = read(path)
    confirm(kept, digest, made_again, kept["sources"], given)
    write(path, kept["sources"], kept["code"])


def code_of(claim: Claim) -> str:
    """Digest of the code and the settings that make a claim's numbers today."""
    return code_digest(f"{__package__}.{claim.name}", ("runs",), CONFIGS / f"{claim.name}.yaml")


def results_of(path: Path) -> list[SourceResults]:
    """Per source, what a claim's results file holds."""
    kept = read(path)
    return [
        SourceResults(name, own["settings"], own["runs"], kept.get("code", ())) for name, own in kept["sources"].items()
    ]
