"""One page that shows a whole run: a single HTML file that opens offline and fetches nothing.

    results.json      the contract of ``hf_shear.core.results``; here every part may be missing. Also read: ``kept``,
                      ``history``, ``baseline_history``, ``sizes``, ``passes``, ``command`` (str), ``recovery`` (``method``,
                      ``distillation``)
    evaluation.json   what ``hf-shear evaluate`` writes, if it was run

All numbers on the page come from these two files; what they lack is said in a sentence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import of_file
from ..core.json_files import read_json_object
from ..core.record_types import check_record, without_nulls
from ..core.results import EVALUATION_NAME, REPORT_NAME, RESULTS_NAME, read_results, write_text_atomically
from .arms_table import verdict
from .html_curves import domains_section, first_training, loss_curves_section, stage_label
from .html_origin import origin_section, speed_section
from .html_page import duration, name, page, short_count, text, tiles
from .html_pruning import kept_section, shape_section, sizes_section
from .html_quality import comparison_section, evaluation_section


def html_report(results: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """The report of a run as one HTML document.

    Args:
        results: of ``results.json``; any part may be missing.
        evaluation: of ``evaluation.json``, if there is one.

    Raises:
        ValueError: ``kept`` contradicts the source's shape.
    """
    with of_file(RESULTS_NAME):
        check_record(results, "results")
    with of_file(EVALUATION_NAME):
        check_record(evaluation or {}, "evaluation")
    results = without_nulls(results)
    title = _title(results)
    body = [
        shape_section(results),
        kept_section(results),
        comparison_section(results),
        evaluation_section(evaluation),
        speed_section(results, evaluation),
        loss_curves_section(results),
        domains_section(results),
        sizes_section(results),
        origin_section(results, evaluation),
    ]
    return page(f"{title} – hf_shear", _head(title, results, evaluation), "".join(body))


def write_html_report(folder: str | os.PathLike, output: str | os.PathLike | None = None) -> Path:
    """Write the report of the run in ``folder``, in one step, and return its path.

    Args:
        folder: holds ``results.json``, and may hold ``evaluation.json``.
        output: the file to write; ``<folder>/report.html`` by default.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: a file is not valid JSON, or contradicts itself.
    """
    folder = Path(folder)
    results, evaluation = read_results(folder / RESULTS_NAME), None
    if (folder / EVALUATION_NAME).exists():
        evaluation = read_json_object(folder / EVALUATION_NAME)
    content = html_report(results, evaluation)
    return write_text_atomically(folder / REPORT_NAME if output is None else output, content)


def _final(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of the last model that there is."""
    return results.get("recovered") or results.get("pruned") or {}


def _title(results: Mapping[str, Any]) -> str:
    before, after = (results.get("source") or {}).get("num_parameters"), _final(results).get("num_parameters")
    if before and after:
        return f"{short_count(before)} → {short_count(after)} parameters"
    only = after or before
    return f"{short_count(only)} parameters" if only else "Report of a run"


def _head(title: str, results: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    source = ((evaluation or {}).get("source") or {}).get("name")
    of = f" – {name(source)}" if source else ""
    models = [model for model in ("source", "pruned", "recovered") if results.get(model)]
    lead = f'<p class="lead">{text(verdict(results))}</p>\n' if models else ""
    eyebrow = f'<p class="eyebrow">hf_shear run report{of}</p>\n'
    return f"{eyebrow}<h1>{text(title)}</h1>\n{lead}{tiles(_facts(results, evaluation))}"


def _facts(results: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    facts = []
    source, pruned, final = results.get("source") or {}, results.get("pruned") or {}, _final(results)
    before, after = source.get("num_parameters"), final.get("num_parameters")
    if before and after:
        facts.append(("Parameters kept", f"{100 * after / before:.1f} %", f"{after:,} of {before:,}"))
    if "mean" in final:
        told = [f"source {source['mean']:.3f}"] if "mean" in source else []
        told += [f"after the cut {pruned['mean']:.3f}"] if "mean" in pruned and results.get("recovered") else []
        facts.append(("Mean held-out loss", f"{final['mean']:.3f}", ", ".join(told)))
    tokens = results.get("tokens") or {}
    if "mask_learning" in tokens and "recovery" in tokens:
        learning, recovery = tokens["mask_learning"], tokens["recovery"]
        stages = {stage_label(first_training(results)): learning, "recovery": recovery}
        remark = ", ".join(f"{short_count(count)} {stage}" for stage, count in stages.items() if count and learning)
        facts.append(("Training tokens", short_count(learning + recovery), remark))
    ratio = ((evaluation or {}).get("speed") or {}).get("decode_ratio")
    if ratio:
        facts.append(("Decoding speed", f"{ratio['median']:.2f} ×", "that of the source, in tokens per second"))
    seconds = results.get("seconds") or {}
    if "total" in seconds:
        remark = f"{duration(seconds['baselines'])} of it for baselines" if seconds.get("baselines") else ""
        facts.append(("Whole run", duration(seconds["total"]), remark))
    return facts
