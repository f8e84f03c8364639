"""The table of a bench: one row per method, mean and spread over the seeds.

A bench's results (``bench.json``) hold `settings`, `source` (a model record), `target_parameters` and `runs`: `method`,
`seed`, `uneven`, `before` and `after` (`loss` by domain and their `mean`, nats per token; `before` is None where a method
trains while it prunes), `num_parameters`, `seconds` and `peak_bytes` (`pruning`, `recovery`), and `tokens` (`pruning`,
`recovery`, `calibration`).
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .paired import paired_difference

NOT_KNOWN = "-"
MEBIBYTE = 2**20


def bench_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method, the lowest loss after recovery first; every number as (mean, sample standard deviation).

    `gap` is the mean loss after recovery less the lowest; `tie` says that 0 is in its 95 % interval over the seeds that
    both have, paired by seed. With one such seed nothing is known of others, and all is a tie. A spread of one seed is
    None, and so is a number that is not known for some seed.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        by_method.setdefault(run["method"], []).append(run)
    rows = [_row(method, runs) for method, runs in by_method.items()]
    rows.sort(key=lambda row: row["after"][0])
    for row in rows:
        row["gap"] = row["after"][0] - rows[0]["after"][0]
        row["tie"] = _is_tie(by_method[rows[0]["method"]], by_method[row["method"]])
    return rows


def _is_tie(best: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    losses = [{run["seed"]: run["after"]["mean"] for run in runs} for runs in (best, other)]
    seeds = sorted(losses[0].keys() & losses[1].keys())
    return not seeds or not paired_difference(*([of[seed] for seed in seeds] for of in losses)).is_ahead


def _row(method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def over_seeds(part: str, name: str):
        return _mean_and_spread([None if run[part] is None else run[part][name] for run in runs])

    return {
        "method": method,
        "uneven": any(run["uneven"] for run in runs),
        "seeds": sorted(run["seed"] for run in runs),
        "before": over_seeds("before", "mean"),
        "after": over_seeds("after", "mean"),
        "domains": {
            name: _mean_and_spread([run["after"]["loss"][name] for run in runs]) for name in runs[0]["after"]["loss"]
        },
        "num_parameters": _mean_and_spread([run["num_parameters"] for run in runs]),
        "pruning_seconds": over_seeds("seconds", "pruning"),
        "recovery_seconds": over_seeds("seconds", "recovery"),
        "peak_bytes": _mean_and_spread([_largest(run["peak_bytes"].values()) for run in runs]),
        "pruning_tokens": over_seeds("tokens", "pruning"),
        "recovery_tokens": over_seeds("tokens", "recovery"),
    }


def _largest(values) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def bench_markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown, under a line that says what all methods had in common."""
    rows = bench_rows(results)
    domains = list(rows[0]["domains"]) if len(rows[0]["domains"]) > 1 else []
    headings = ["method", "seeds", "before recovery", "after recovery", "to the best", *domains, "parameters",
                "pruning, s", "recovery, s", "peak, MiB", "tokens of pruning", "of recovery"]  # fmt: skip
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(_cells(row, domains)) + " |" for row in rows]
    notes = [common_line(results)]
    if any(row["uneven"] for row in rows):
        notes.append("\\* layers of different widths, at no more parameters than the target shape has.")
    if any(row["before"] is None for row in rows):
        notes.append(f"{NOT_KNOWN}: the method trains while it prunes, or the system does not tell.")
    return "\n\n".join([notes[0], "\n".join(lines), *notes[1:]]) + "\n"


def common_line(results: Mapping[str, Any]) -> str:
    """What all methods of a bench had in common."""
    settings, source = results["settings"], results["source"]
    shape = ", ".join(f"{name} {size}" for name, size in settings["target_shape"].items())
    kept = results["target_parameters"] / source["num_parameters"]
    return (
        f"Target: {shape}; {results['target_parameters']:,} parameters, {kept:.0%} of the source's. Source:"
        f" {source['mean']:.3f}. Held-out loss in nats per token, mean ± sample standard deviation over the seeds."
        f" {settings['recovery_tokens']:,} training tokens for every method (learned masks spend theirs out of these),"
        f" {settings['calibration_tokens']:,} of calibration, the same for all methods of a seed; learning rate"
        f" {settings['learning_rate']:g}."
    )


def _cells(row: Mapping[str, Any], domains: Sequence[str]) -> list[str]:
    gap = "best" if row["gap"] == 0 else f"+{row['gap']:.3f}" + (" (tie)" if row["tie"] else "")
    peak = row["peak_bytes"] and tuple(part and part / MEBIBYTE for part in row["peak_bytes"])
    return [
        f"`{row['method']}`" + (" \\*" if row["uneven"] else ""),
        str(len(row["seeds"])),
        _text(row["before"]),
        _text(row["after"]),
        gap,
        *(_text(row["domains"][name]) for name in domains),
        f"{round(row['num_parameters'][0]):,}",
        _text(row["pruning_seconds"], ".1f", spread=False),
        _text(row["recovery_seconds"], ".1f", spread=False),
        _text(peak, ".0f", spread=False),
        _text(row["pruning_tokens"], ",.0f", spread=False),
        _text(row["recovery_tokens"], ",.0f", spread=False),
    ]


def _text(value: tuple[float, float | None] | None, form: str = ".3f", spread: bool = True) -> str:
    if value is None:
        return NOT_KNOWN
    text = format(value[0], form)
    return text if not spread or value[1] is None else f"{text} ± {format(value[1], form)}"


def bench_csv(results: Mapping[str, Any]) -> str:
    """One line per method: mean and spread in columns of their own, empty where not known."""
    rows = bench_rows(results)
    output = io.StringIO()
    writer = None
    for row in rows:
        flat = {"method": row["method"], "uneven": row["uneven"], "seeds": " ".join(map(str, row["seeds"])),
                "gap": row["gap"], "tie": row["tie"]}  # fmt: skip
        numbers = {name: value for name, value in row.items() if name not in {*flat, "domains"}}
        numbers |= {f"after_{name}": value for name, value in row["domains"].items()}
        for name, value in numbers.items():
            flat[f"{name}_mean"], flat[f"{name}_sd"] = value or (None, None)
        if writer is None:
            writer = csv.DictWriter(output, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)
    return output.getvalue()
