"""Build examples/docs/engines.md from the rules of `hf_shear.publishing`, and model_cards/engines.md from measurements.

    python -m examples.research.engines.page

Every number comes from model_cards/engines/*.json; a test rebuilds both pages and compares.
"""

from __future__ import annotations

import json
from pathlib import Path

from hf_shear.publishing import ENGINES, EVIDENCE, REFUSED, UNTESTED, WRONG
from hf_shear.publishing.engine_rules import ACCEPTED, Engine

from ..provenance import stale_note
from ..shared import ROOT
from . import serve
from .measure import EMBEDDED, PRECISIONS, todays_code, used_code
from .verdict import MAX_LOGIT_DIFFERENCE, MAX_LOSS_RISE, is_judged, measured

RESULTS = ROOT / "model_cards" / "engines"
RULES_PAGE, RESULTS_PAGE = ROOT / "examples" / "docs" / "engines.md", ROOT / "model_cards" / "engines.md"
SOURCES = ("stories260K", "embedded", "smollm2_135m")  # each has a file of results
SETTINGS = ("calibration_batches", "prompts", "texts", "precisions")  # of a measurement, as its results keep them
COLUMNS = (("llama_cpp",), ("ctranslate2", "openvino"), ("onnx", "mlx"), ("vllm",))  # of the engines in a table


def results(name: str) -> dict:
    """The results file of a source (one of SOURCES, or "families")."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rules_table() -> str:
    """A row for every rule of every engine."""
    lines = ["| engine | checkpoint | verdict | known by | note |", "|---|---|---|---|---|"]
    for engine in ENGINES:
        for rule in engine.rules:
            known = rule.evidence if rule.evidence == UNTESTED else f"{rule.evidence}, {engine.date}"
            lines.append(f"| {engine.name} | {rule.when} | {rule.verdict} | {known} | {rule.note} |")
    evidence = "; ".join(f"{name}: {meaning}" for name, meaning in EVIDENCE.items())
    versions = "; ".join(f"{engine.name}: {engine.version}" for engine in ENGINES if engine.base is None)
    return "\n".join([*lines, "", f"Known by: {evidence}. A quantised form follows its engine's other rules too.", "",
                      f"Versions: {versions}."])  # fmt: skip


def cell(run: dict, engine: Engine, precision: str, prompts: int) -> str:
    """What came out of one precision: equal greedy texts, largest logit difference, change of the loss, and the verdict
    where it is not accepted."""
    facts = run.get(engine.key, {}).get(precision)
    if facts is None or facts["status"] == REFUSED:
        return REFUSED if facts else ""
    text = f"{facts['greedy_equal']}/{prompts}, {facts['max_logit_difference']:.1g}, {facts['loss_difference']:+.4f}"
    if engine.base is not None and "loss_difference_se" in facts:
        text += f" ± {facts['loss_difference_se']:.4f}"
    if "same_weights" in facts:
        text += f" ({facts['same_weights']['greedy_equal']}/{prompts})"
    verdict = measured(facts, prompts, run["logit_deviation"], precision, engine.base is None)
    return text if verdict == ACCEPTED or not is_judged(engine, precision) else f"{text}, **{verdict}**"


def results_table(found: dict, engine_keys: tuple[str, ...]) -> str:
    """Forms by precision of some engines."""
    columns = [(engine, name) for engine in ENGINES if engine.key in engine_keys for name in engine.precisions]
    columns = [
        (one, name) for one, name in columns if any(name in run.get(one.key, {}) for run in found["runs"].values())
    ]
    lines = [
        "| form | " + " | ".join(f"{engine.key} {name}" for engine, name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for form, run in found["runs"].items():
        cells = [cell(run, engine, name, found["prompts"]) for engine, name in columns]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


FAMILY_WORDS = {ACCEPTED: "equal", WRONG: "other", REFUSED: REFUSED}


def families_table(found: dict) -> str:
    """Families by engine, in float32; empty where one was not run."""
    plain = [
        engine for engine in ENGINES if engine.base is None and any(engine.key in run for run in found["runs"].values())
    ]
    lines = ["| model_type | " + " | ".join(engine.name for engine in plain) + " |", "|---" * (len(plain) + 1) + "|"]
    for name, run in found["runs"].items():
        cells = []
        for engine in plain:
            facts = run.get(engine.key, {}).get(engine.precisions[0])
            verdict = facts and measured(facts, found["prompts"], run["logit_deviation"], engine.precisions[0], True)
            cells.append(FAMILY_WORDS[verdict] if verdict else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_table() -> str:
    """What ran when, with which packages and at which commit: a row for each difference."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for source in (*SOURCES, "families"):
        found = results(source)
        commits = {one["digest"]: one["commit"] for one in found["code"]}
        for run in found["runs"].values():
            for key in PRECISIONS:
                for facts in run.get(key, {}).values():
                    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
                    row = (key, packages, facts.get("date", "2026-11"), commits.get(facts.get("code"), "unknown"))
                    rows.setdefault(row, [])
                    if source not in rows[row]:
                        rows[row].append(source)
    lines = ["| engine | packages | run | commit | models |", "|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(row)} | {', '.join(sources)} |" for row, sources in sorted(rows.items()))]
    )


def command(name: str) -> str:
    """What measures a source again. Older results keep neither their text nor their settings."""
    found = results(name)
    words = ["python -m examples.research.engines.measure --source SOURCE"]
    words.append("--families" if name == "families" else f"--shapes {name}")
    text = found.get("text", EMBEDDED if name == "embedded" else "TEXT")
    words += [f"--data_dir {text}"] if text != EMBEDDED else []
    words += [f"--{flag} {found[flag]}" for flag in SETTINGS if found.get(flag)]
    return " ".join([*words, f"--output model_cards/engines/{name}.json"])


def code_note(name: str) -> str:
    """What a part of the page says where code has moved since its numbers were made; "" where it has not."""
    return stale_note(used_code(results(name)), todays_code(), command(name))


def served() -> str:
    """What `vllm serve` answered: a row for each checkpoint."""
    if not (RESULTS / "serve.json").exists():
        return "It has not run since its records are kept."
    found = results("serve")
    commits = {one["digest"]: one["commit"] for one in found["code"]}
    lines = ["| checkpoint | model_type | texts of transformers | packages | run | commit |", "|---" * 6 + "|"]
    for name, record in found["runs"].items():
        packages = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        lines.append(f"| {name} | {record['model_type']} | {record['equal']}/{record['prompts']} | {packages} | "
                     f"{record['date']} | {commits[record['code']]} |")  # fmt: skip
    words = "python -m examples.research.engines.serve --python PYTHON --source SOURCE --output RESULTS CHECKPOINT"
    return "\n\n".join(filter(None, (stale_note(found["code"], serve.todays_code(), words), "\n".join(lines))))


def filled(text_name: str, **tables: str) -> str:
    """A text beside this file with tables in place of their marks."""
    text = Path(__file__).with_name(text_name).read_text(encoding="utf-8")
    for name, table in tables.items():
        assert f"<!-- {name} -->" in text, f"{text_name} lacks <!-- {name} -->"
        text = text.replace(f"<!-- {name} -->", table)
    return text


def pages() -> dict[Path, str]:
    """The text of each page."""
    parts: list[str] = []
    for name in SOURCES:
        found = results(name)
        run = {key for each in found["runs"].values() for key in each}
        tables = (results_table(found, keys) for keys in COLUMNS if run & set(keys))
        parts += [f"## {name}", *filter(None, (code_note(name), *tables))]
    families = "\n\n".join(filter(None, (code_note("families"), families_table(results("families")))))
    return {
        RULES_PAGE: filled("page_text.md", rules=rules_table()),
        RESULTS_PAGE: filled(
            "results_text.md",
            results="\n\n".join(parts),
            families=families,
            served=served(),
            runs=runs_table(),
            texts=", ".join(
                f"{name}: {found.get('texts', found['prompts'])}" for name in SOURCES if (found := results(name))
            ),
            logit_limit=f"{MAX_LOGIT_DIFFERENCE:g}",
            loss_limits=" and ".join(f"{rise:g} ({bits} bits)" for bits, rise in MAX_LOSS_RISE.items()),
        ),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
