"""Results as a table for people, with a verdict that is computed from the numbers beside it.

The rows are called arms: source, pruned, recovered, and one per baseline. The verdict is about the mean of
the held-out losses (nats per token). It claims equal tokens or an equal shape only where the results say so.
"""

from __future__ import annotations

import math
import shutil
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..core import UsageError, printable
from ..core.markdown import markdown_text
from ..core.results import MODEL_NAMES, TARGET_NAMES
from .paired import PairedDifference, paired_difference

# Smaller differences of mean loss are called a tie: in nats per token. One seed on a held-out set of some
# 1e5 tokens cannot tell less apart; `spread_table` replaces it by an interval over several seeds.
TIE_TOLERANCE = 0.005
MIN_WIDTH, MAX_TEXT_WIDTH, DEFAULT_WIDTH = 40, 100, 80  # characters
MAX_NAME_WIDTH = 24  # characters; longer names of domains and baselines lose their middle
MAX_VERDICT = 10_000  # characters; every name in it is short already
NOT_KNOWN = "-"
_ARM_HEADINGS = (
    "model",
    "parameters",
    "of\nsource",
    "mean\nloss",
    "per-\nplexity",
    "training\ntokens",
    "FLOPs",
    "learning\nrate",
)


class Arm(NamedTuple):
    """One row: a model record, and the tokens (None: not known) that were spent to train it."""

    name: str
    record: Mapping[str, Any]
    tokens: int | None
    is_rival: bool  # of the target shape and trained: recovered and the baselines


class _Grid(NamedTuple):
    """Headings (with line breaks) and rows of one table, and the line above it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison_table(results: Mapping[str, Any], width: int | None = None) -> str:
    """The models of one run side by side, the loss of each domain, and the verdict, in plain ASCII.

    Args:
        results: as in `hf_shear.core.results`; parts of a run that have not been done may be missing.
            `standard_error` (of the mean loss, nats per token) in a model record widens what counts as a tie,
            `learning_rate` there fills its column.
        width: of the text in characters; the terminal's, or 80, by default. Columns that do not fit are
            continued below.
    """
    width = _text_width(width)
    grids = [_arm_grid(results), _domain_grid(read_arms(results))]
    blocks = [_plain(grid, width) for grid in grids]
    said = textwrap.fill(verdict(results), min(width, MAX_TEXT_WIDTH), break_on_hyphens=False)
    return "\n\n".join([*blocks, said]) + "\n"


def markdown_table(results: Mapping[str, Any]) -> str:
    """`comparison_table` for a README or a model card: two Markdown tables and the verdict."""
    grids = [_arm_grid(results), _domain_grid(read_arms(results))]
    return "\n\n".join([*map(_markdown, grids), markdown_text(verdict(results), MAX_VERDICT)]) + "\n"


def spread_table(runs: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """The same run with several seeds: mean +- sample standard deviation per arm, wins, and the verdict.

    Arms are compared in pairs of one seed each. A baseline is beaten if the 95 % interval of Student's t of these
    differences lies above 0.

    Raises:
        ValueError: no runs, a seed twice, or runs that differ in arms, shapes or domains.
    """
    _check_runs(runs)
    width = _text_width(width)
    blocks = [_plain(_spread_grid(runs), width), _plain(_seed_grid(runs), width)]
    verdict = textwrap.fill(_spread_verdict(runs), min(width, MAX_TEXT_WIDTH), break_on_hyphens=False)
    return "\n\n".join([*blocks, verdict]) + "\n"


# --- what is in the rows -----------------------------------------------------------------------------------


def read_arms(results: Mapping[str, Any]) -> list[Arm]:
    """The models of one run in the order of the table; parts that have not been done may be missing."""
    tokens = results.get("tokens", {})
    mask_learning, recovery = tokens.get("mask_learning"), tokens.get("recovery")
    total = None if mask_learning is None or recovery is None else mask_learning + recovery
    spent = {"source": None, "pruned": mask_learning, "recovered": total}
    arms = [Arm(name, results[name], spent[name], name == "recovered") for name in MODEL_NAMES if name in results]
    baselines = results.get("baselines", {})
    return arms + [Arm(name, record, record.get("tokens"), True) for name, record in baselines.items()]


def _arm_grid(results: Mapping[str, Any]) -> _Grid:
    source_parameters = results.get("source", {}).get("num_parameters")
    arms = read_arms(results)
    in_billions = any((arm.tokens or 0) >= 10**9 for arm in arms)
    rows = []
    for arm in arms:
        parameters, mean = arm.record["num_parameters"], arm.record["mean"]
        share = NOT_KNOWN if source_parameters is None else f"{100 * parameters / source_parameters:.1f} %"
        rate, flops = arm.record.get("learning_rate"), arm.record.get("flops")
        rows.append(
            (
                short_name(arm.name),
                f"{parameters:,}",
                share,
                f"{mean:.3f}",
                perplexity_text(mean),
                _token_count(arm.tokens, in_billions),
                NOT_KNOWN if flops is None else f"{flops:.2e}",
                NOT_KNOWN if rate is None else f"{rate:.3g}",
            )
        )
    return _Grid("Models (mean loss: nats per held-out token, unweighted over domains)", _ARM_HEADINGS, rows)


def _domain_grid(arms: Sequence[Arm]) -> _Grid:
    domains = list(dict.fromkeys(domain for arm in arms for domain in arm.record["loss"]))
    rows = [(short_name(domain), *_losses(arms, domain)) for domain in domains]
    headings = ("domain", *(short_name(arm.name) + " " for arm in arms))
    has_star = any("*" in cell for row in rows for cell in row[1:])
    title = "Held-out loss by domain, nats per token"
    return _Grid(title + (" (*: lowest of the target shape)" if has_star else ""), headings, rows)


def lowest_of_rivals(arms: Sequence[Arm], domain: str) -> float | None:
    """The lowest loss in a domain among the arms of the target shape; None unless there are two or more."""
    rivals = [arm.record["loss"][domain] for arm in arms if arm.is_rival and domain in arm.record["loss"]]
    return min(rivals) if len(rivals) > 1 else None


def _losses(arms: Sequence[Arm], domain: str) -> list[str]:
    """One row; a star marks the lowest loss among the arms of the target shape, if there are two or more."""
    best = lowest_of_rivals(arms, domain)
    cells = []
    for arm in arms:
        loss = arm.record["loss"].get(domain)
        star = "*" if best is not None and arm.is_rival and loss == best else " "
        cells.append((NOT_KNOWN if loss is None else f"{loss:.3f}") + star)
    return cells


def _spread_grid(runs: Sequence[Mapping[str, Any]]) -> _Grid:
    means = _means_by_arm(runs)
    rows = []
    for name, values in means.items():
        row = [short_name(name), _mean_and_deviation(values), NOT_KNOWN, NOT_KNOWN]
        if name not in MODEL_NAMES:
            ahead = [other - own for own, other in zip(means["recovered"], values, strict=True)]
            row[2] = paired_difference(means["recovered"], values).text(sign="+")
            row[3] = f"{sum(value > 0 for value in ahead)} of {len(ahead)}"
        rows.append(row)
    title = f"Mean loss over {_seeds(len(runs))}, nats per token (+-: sample standard deviation)"
    return _Grid(title, ("model", "mean loss", "above recovered\n(95 % interval)", "recovered\nwins"), rows)


def _seed_grid(runs: Sequence[Mapping[str, Any]]) -> _Grid:
    headings = ("seed", *(short_name(arm.name) + " " for arm in read_arms(runs[0])))
    rows = []
    for run in runs:
        arms = read_arms(run)
        records = {arm.name: arm._replace(record={"loss": {"mean": arm.record["mean"]}}) for arm in arms}
        rows.append((str(run["seed"]), *_losses([records[arm.name] for arm in read_arms(runs[0])], "mean")))
    return _Grid("Mean loss of each seed (*: lowest of the target shape)", headings, rows)


# --- what it says ------------------------------------------------------------------------------------------


def verdict(results: Mapping[str, Any]) -> str:
    """What the numbers say of the run against its baselines, and of the damage that recovery left."""
    return " ".join(filter(None, [_comparison_sentence(results), _damage_sentence(results)]))


def _comparison_sentence(results: Mapping[str, Any]) -> str:
    rivals = [arm for arm in read_arms(results) if arm.is_rival]
    if "recovered" not in results:
        return _cut_sentence(results)
    recovered, baselines = rivals[0], rivals[1:]
    if not baselines:
        return "No baselines were run, so nothing can be said against them."
    for arm in baselines:
        if set(arm.record["loss"]) != set(recovered.record["loss"]):
            return f"No verdict: the baseline {short_name(arm.name)} was measured on other domains."
    best = min(baselines, key=lambda arm: arm.record["mean"])
    ahead = best.record["mean"] - recovered.record["mean"]
    tolerance = _tolerance(recovered, best)
    which = "the best baseline" if len(baselines) > 1 else "the only baseline"
    who = f"Sheared and recovered ({recovered.record['mean']:.3f})"
    whom = f"{which}, {short_name(best.name)} ({best.record['mean']:.3f}),"
    conditions = _conditions(recovered, best)
    if abs(ahead) < tolerance:
        return (
            f"{who} ties with {whom} {conditions}: it is {abs(ahead):.3f} nats per token "
            f"{'ahead' if ahead > 0 else 'behind'}, and less than {tolerance:.3f} counts as a tie."
        )
    verb = "beats" if ahead > 0 else "loses to"
    return f"{who} {verb} {whom} by {abs(ahead):.3f} nats per token {conditions}."


def _cut_sentence(results: Mapping[str, Any]) -> str:
    """Of a model that was pruned, and not trained since."""
    if any(name not in results for name in ("source", "pruned")):
        return "There is no recovered model yet, so there is no verdict."
    source, pruned = results["source"], results["pruned"]
    share = 1 - pruned["num_parameters"] / source["num_parameters"]
    return (
        f"Pruning removed {share:.1%} of the parameters, and the loss is {pruned['mean'] - source['mean']:.3f} nats per"
        f" token above the source's ({pruned['mean']:.3f}, {source['mean']:.3f})."
        + ("" if results["tokens"].get("mask_learning") else " No recovery yet: hf-shear recover.")
    )


def _tolerance(*arms: Arm) -> float:
    """What counts as a tie: the constant, or the standard error of the difference if that is larger.

    The errors are added as if independent. On the same held-out tokens they are correlated, so this is wide.
    """
    return max(TIE_TOLERANCE, math.hypot(*(arm.record.get("standard_error", 0.0) for arm in arms)))


def _conditions(recovered: Arm, other: Arm) -> str:
    """What the two had in common, as the numbers say."""
    parts = [_token_condition(recovered.tokens, other.tokens)]
    own_flops, other_flops = (arm.record.get("flops") for arm in (recovered, other))
    if own_flops and other_flops:
        ratio = own_flops / other_flops
        parts.append(f"{ratio:.2f} times its FLOPs" if abs(ratio - 1) >= 0.005 else "equal FLOPs")
    own, others = recovered.record["shape"], other.record["shape"]
    differing = [name for name in (*TARGET_NAMES, "head_dim") if own.get(name) != others.get(name)]
    if differing:
        listed = ", ".join(f"{name} {own.get(name)} against {others.get(name)}" for name in differing)
        parts.append(f"unequal shape ({listed})")
    else:
        parts.append("equal shape")
    own_eval, other_eval = recovered.record["eval_tokens"], other.record["eval_tokens"]
    if own_eval != other_eval:
        parts.append(f"on unequal held-out sets ({own_eval:,} against {other_eval:,} tokens)")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _token_condition(own: int | None, other: int | None) -> str:
    if own is None or other is None:
        return "at tokens that are not all known"
    return f"at equal tokens ({own:,})" if own == other else f"at unequal tokens ({own:,} against {other:,})"


def _damage_sentence(results: Mapping[str, Any]) -> str:
    if any(name not in results for name in MODEL_NAMES):
        return ""
    source, pruned, recovered = (results[name]["mean"] for name in MODEL_NAMES)
    damage, left = pruned - source, recovered - source
    if damage < TIE_TOLERANCE:
        start = f"Pruning did no damage (source {source:.3f}, pruned {pruned:.3f})"
        if recovered > pruned:
            return f"{start}, but recovery made it worse: {recovered:.3f}."
        return f"{start}; after recovery the loss is {recovered:.3f}."
    start = f"Pruning raised the mean loss from {source:.3f} to {pruned:.3f} (by {damage:.3f})"
    if recovered > pruned:
        return f"{start}, and recovery made it worse by another {recovered - pruned:.3f}."
    if left <= 0:
        below = f" and ended {-left:.3f} below the source" if left < 0 else ""
        return f"{start}; recovery won back all of it{below}."
    return f"{start}; recovery won back {100 * (1 - left / damage):.1f} % of that, and {left:.3f} remains."


def _spread_verdict(runs: Sequence[Mapping[str, Any]]) -> str:
    means = _means_by_arm(runs)
    own = means["recovered"]
    who = f"Over {_seeds(len(runs))}, sheared and recovered ({_mean_and_deviation(own)})"
    baselines = [name for name in means if name not in MODEL_NAMES]
    if not baselines:
        return f"{who} has no baselines to be compared with."
    if len(runs) == 1:
        return "One seed says nothing of others, so there is no verdict; run at least two more."
    aheads = {name: paired_difference(own, means[name]) for name in baselines}
    conditions = _common_conditions(runs)
    closest = min(baselines, key=lambda name: aheads[name].mean)
    if all(ahead.is_ahead for ahead in aheads.values()):
        which = f"all {len(baselines)} baselines" if len(baselines) > 1 else "the only baseline"
        return (
            f"{who} beats {which}: {short_name(closest)}, the closest, is {aheads[closest].text(sign='+')} nats per token"
            f" behind (95 % interval of the differences by seed), {conditions}."
        )
    ordered = sorted(baselines, key=lambda name: aheads[name].mean)
    phrases = [_relation(short_name(name), aheads[name]) for name in ordered]
    start = f"{who} does not beat all baselines, by the 95 % intervals of the differences by seed"
    return f"{start}: it {'; '.join(phrases)}; {conditions}."


def _relation(name: str, ahead: PairedDifference) -> str:
    text = ahead.text(sign="+")
    if ahead.is_ahead or ahead.is_behind:
        return f"{'beats' if ahead.is_ahead else 'loses to'} {name} by {text}"
    return f"cannot be told from {name}, which is {text} above"


def _common_conditions(runs: Sequence[Mapping[str, Any]]) -> str:
    """The condition that holds for every baseline of every seed, else the first that breaks it."""
    texts: dict[str, str] = {}
    for run in runs:
        recovered, *baselines = [arm for arm in read_arms(run) if arm.is_rival]
        for arm in baselines:
            texts.setdefault(_conditions(recovered, arm), f"{short_name(arm.name)}, seed {run['seed']}")
    if len(texts) == 1:
        return next(iter(texts))
    unequal = next((text for text in texts if "unequal" in text or "not all known" in text), None)
    if unequal is None:
        return "at equal tokens within each seed and equal shape"
    return f"but not always on equal terms ({texts[unequal]}: {unequal})"


def _means_by_arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    tables = [{arm.name: float(arm.record["mean"]) for arm in read_arms(run)} for run in runs]
    return {name: [table[name] for table in tables] for name in tables[0]}


def _check_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        raise UsageError("`runs` must hold the results of at least one run, but it is empty. Give some.")
    seeds = [run.get("seed") for run in runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"`runs` must each have a seed of their own, but their seeds are {seeds}.")
    first = {arm.name: arm.record for arm in read_arms(runs[0])}
    if "recovered" not in first:
        raise UsageError("`runs` must hold complete runs, but the first has no `recovered` model. Finish it.")
    for run in runs[1:]:
        records = {arm.name: arm.record for arm in read_arms(run)}
        if set(records) != set(first):
            raise UsageError(
                f"`runs` must hold the same models, but seed {seeds[0]} has {', '.join(first)} and "
                f"seed {run['seed']} has {', '.join(records)}."
            )
        for name, record in records.items():
            if record["shape"] != first[name]["shape"] or set(record["loss"]) != set(first[name]["loss"]):
                raise UsageError(
                    f"`runs` must agree in the shape and domains of every model, but `{name}` of seed "
                    f"{run['seed']} differs from that of seed {seeds[0]}."
                )


# --- how it looks ------------------------------------------------------------------------------------------


def _plain(grid: _Grid, width: int) -> str:
    """Aligned columns, the first to the left and the others to the right, continued below if too wide."""
    headings = [heading.split("\n") for heading in grid.headings]
    height = max(map(len, headings))
    headings = [[""] * (height - len(lines)) + lines for lines in headings]
    columns = [[*head, *cells] for head, cells in zip(headings, zip(*grid.rows, strict=True), strict=True)]
    widths = [max(map(len, column)) for column in columns]
    lines = textwrap.wrap(grid.title, width)
    for number, block in enumerate(_blocks(widths, width)):
        lines += [""] * (number > 0)
        for index, cells in enumerate(zip(*(columns[i] for i in block), strict=True)):
            padded = [cells[0].ljust(widths[0])]
            padded += [cell.rjust(widths[i]) for cell, i in zip(cells[1:], block[1:], strict=True)]
            lines.append("  ".join(padded).rstrip())
            if index == height - 1:
                lines.append("  ".join("-" * widths[i] for i in block))
    return "\n".join(lines)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Column numbers of each block: every block starts with column 0 and is filled up to `width`."""
    blocks = [[0]]
    used = widths[0]
    for index in range(1, len(widths)):
        if used + 2 + widths[index] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(index)
        used += 2 + widths[index]
    return blocks


def _markdown(grid: _Grid) -> str:
    headings = [markdown_text(heading.replace("-\n", "").replace("\n", " ").strip()) for heading in grid.headings]
    rules = [":--"] + ["--:"] * (len(headings) - 1)
    rows = [headings, rules, *([markdown_text(cell.strip()) for cell in row] for row in grid.rows)]
    return f"{markdown_text(grid.title)}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text_width(width: int | None) -> int:
    if width is None:
        width = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    return max(MIN_WIDTH, width)


def short_name(name: str) -> str:
    """ASCII, and at most `MAX_NAME_WIDTH` characters: the middle goes, since endings tell names apart."""
    name = printable(name).encode("ascii", "backslashreplace").decode()
    if len(name) <= MAX_NAME_WIDTH:
        return name
    kept = MAX_NAME_WIDTH - 2
    return f"{name[: kept - kept // 2]}..{name[-(kept // 2) :]}"


def _token_count(count: int | None, in_billions: bool) -> str:
    """Exact where it fits; the verdict compares and states exact numbers in any case."""
    if count is None:
        return NOT_KNOWN
    return f"{count / 1e9:.3f} B" if in_billions else f"{count:,}"


def perplexity_text(loss: float) -> str:
    """The perplexity of a loss in nats per token, at most seven characters."""
    perplexity = math.exp(min(loss, 700.0))  # exp overflows above 709
    return f"{perplexity:.2f}" if perplexity < 1e4 else f"{perplexity:.1e}"


def _mean_and_deviation(values: Sequence[float], sign: str = "-") -> str:
    """Mean +- sample standard deviation; `sign` as in format strings."""
    deviation = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "n/a"
    return f"{statistics.fmean(values):{sign}.3f} +- {deviation}"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"
