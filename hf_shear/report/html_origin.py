"""The report on cost and origin: speed and size, the exact command, versions, and the rest that repeats a run."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from ..core import spelled
from ..core.redaction import redact_command
from .html_charts import bars
from .html_curves import first_training, stage_label
from .html_page import NOT_KNOWN, byte_count, duration, note, section, table, text
from .plots import MASK_LEARNING

_STAGES = ("pruning", "mask_learning", "export", "recovery", "evaluation", "baselines")
_METHODS = {"full": "all weights", "lora": "LoRA adapters", "norms_and_biases": "norms and biases"}


def speed_section(results: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """How fast the models answer, what they weigh, and how long each stage of the run took."""
    evaluation = evaluation or {}
    speed = evaluation.get("speed")
    parts = [_inference(speed)] if speed else [note("Inference speed was not measured.")]
    return section("Speed", *parts, _sizes(evaluation), _stages(results))


def _inference(speed: Mapping[str, Any]) -> str:
    parts = []
    for phase in ("prefill", "decode"):
        rates = {
            side: speed[side][f"{phase}_tokens_per_second"]
            for side in ("source", "pruned")
            if f"{phase}_tokens_per_second" in (speed.get(side) or {})
        }
        if not rates:
            continue
        ratio = speed.get(f"{phase}_ratio")
        times = ""
        if ratio:
            times = f": {ratio['median']:.2f} times the source’s"
            times += f" <small>[{ratio['low']:.2f}, {ratio['high']:.2f}]</small>" if "low" in ratio else ""
        fastest = max(rates.values()) or 1.0
        parts.append(f"<h3>{phase.capitalize()}{times}</h3>\n")
        rows = [
            (side, rate / fastest, "c1" if side == "pruned" else "plain", f"{_rate(rate)} tokens/s")
            for side, rate in rates.items()
        ]
        parts.append(bars(rows))
    named = ("device", "dtype", "batch_size", "prompt_length", "new_tokens", "rounds")
    told = ", ".join(f"{key.replace('_', ' ')} {text(speed[key])}" for key in named if key in speed)
    return "".join(parts) + (note(f"Measured with {told}.") if told else "")


def _sizes(evaluation: Mapping[str, Any]) -> str:
    records = {side: evaluation[side] for side in ("source", "pruned") if evaluation.get(side)}
    rows = []
    for key, label in (("weight_bytes", "weights"), ("kv_cache_bytes_per_token", "KV cache per token")):
        values = [record.get(key) for record in records.values()]
        if any(value is not None for value in values):
            rows.append((label, *(NOT_KNOWN if value is None else byte_count(value) for value in values)))
    if not rows:
        return ""
    rows.append(("dtype", *(text(record.get("dtype", NOT_KNOWN)) for record in records.values())))
    return table("Memory", ("", *records), rows)


def _stages(results: Mapping[str, Any]) -> str:
    seconds, tokens = results.get("seconds") or {}, dict(results.get("tokens") or {})
    baselines = [record.get("tokens") for record in (results.get("baselines") or {}).values()]
    if baselines and None not in baselines:
        tokens["baselines"] = sum(baselines)
    names = [stage for stage in _STAGES if seconds.get(stage)]
    if not names:
        return note("These results do not say how long the stages took.")
    whole = seconds.get("total") or sum(seconds[stage] for stage in names) or 1.0
    rows = []
    for stage in names:
        count, spent = tokens.get(stage), seconds[stage]
        rate = f"{_rate(count / spent)}" if count and spent else NOT_KNOWN
        counted = NOT_KNOWN if not count else f"{count:,}"
        label = stage_label(first_training(results) if stage == MASK_LEARNING else stage)
        rows.append((label, duration(spent), f"{100 * spent / whole:.0f} %", counted, rate))
    if "total" in seconds:
        rows.append(("<b>whole run</b>", f"<b>{duration(seconds['total'])}</b>", "", "", ""))
    more = "tokens per second of a whole stage, loading and saving included; evaluation also runs within the others"
    return table("The run", ("stage", "time", "of the run", "tokens", "tokens per second"), rows, more)


def origin_section(results: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """What repeats the run."""
    command = results.get("command")
    what = "The exact commands, in order:" if command and "\n" in command else "The exact command:"
    parts = [note(what) + _code(command)] if command else [note("This run did not record its command.")]
    facts = [("seed", text(results["seed"]))] if "seed" in results else []
    facts += _recovery_facts(results.get("recovery") or {})
    if (results.get("tokens") or {}).get("calibration"):
        facts.append(("calibration tokens", f"{results['tokens']['calibration']:,}"))
    if facts:
        parts.append(table("Settings", ("what", "value"), facts))
    versions = {"run": results.get("versions") or {}, "evaluation": (evaluation or {}).get("versions") or {}}
    versions = {kind: found for kind, found in versions.items() if found}
    packages = dict.fromkeys(package for found in versions.values() for package in found)
    if packages:
        rows = [
            (text(package), *(text(found.get(package, NOT_KNOWN)) for found in versions.values()))
            for package in packages
        ]
        parts.append(table("Versions", ("package", *versions), rows))
    else:
        parts.append(note("These results hold no versions."))
    return section("Command and versions", *parts)


def _recovery_facts(recovery: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if "method" in recovery:
        facts.append(("trained in recovery", text(_METHODS.get(recovery["method"], recovery["method"]))))
    if "distillation" in recovery:
        distillation = recovery["distillation"]
        facts.append(("distillation", "none" if distillation is None else text(_plain(distillation))))
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _code(command: str) -> str:
    lines = (spelled(line) for line in redact_command(str(command)).splitlines())
    return f"<pre><code>{html.escape(chr(10).join(lines))}</code></pre>\n"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
