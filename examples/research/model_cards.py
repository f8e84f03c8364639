"""Build the cards in model_cards/models from the results that runs left there.

    python -m examples.research.model_cards  # every card, the output in examples/docs/evaluation.md, the README's table
    python -m examples.research.model_cards --add NAME RUN_FOLDER --license apache-2.0 --rebuild_command "accelerate ..."

`--add` keeps results, evaluation and provenance of a run (without the long parts, and without paths) in
model_cards/models/NAME. Every number of a card comes from those files; a test rebuilds the cards and compares.
A licence that the Hub has no name for is `--license other --license_name "..." --license_link ...`.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import fmean

from hf_shear.evaluation import evaluation_table
from hf_shear.publishing import SourceLicense, find_run, model_card, named_license, source_license
from hf_shear.publishing.local_paths import publishable

from .claims.claim_results import markdown_table
from .provenance import code_digest, code_record, is_code_of, noted, stale_note
from .shared import EXAMPLES, ROOT, put_between

MODELS = ROOT / "model_cards" / "models"
LEFT_OUT = ("baseline_history", "sizes", "kept")  # long, and not on a card
FILES = {"results": "results.json", "evaluation": "evaluation.json", "provenance": "provenance.json"}
FACTS = "card.json"  # what a card says that is in none of the run's files
DOCS = EXAMPLES / "docs" / "evaluation.md"
SHOWN, DOCS_MARKS = "embedded", ("<!-- evaluation: start -->", "<!-- evaluation: end -->")
README, MARKS = ROOT / "README.md", ("<!-- real model: start -->", "<!-- real model: end -->")
IN_README = "smollm2_"
"""Models of the README's first table begin so."""


def todays_code() -> str:
    """Digest of the code that makes the numbers of a run of examples/shear.py."""
    return code_digest("examples.shear", ("main",))


def slimmed(name: str, content: dict) -> dict:
    """The part of a file that cards are written from; of the history the last row of each stage."""
    kept = {
        key: value for key, value in content.items() if key not in LEFT_OUT and (name, key) != ("provenance", "masks")
    }
    if "history" in kept:
        kept["history"] = list({row.get("stage"): row for row in kept["history"]}.values())
    return publishable(kept)


def add(name: str, run_folder: Path, facts: dict, license: SourceLicense | None) -> None:
    """Keep what a run says of its model, and the code that made it.

    Raises:
        ValueError: the run has no results; or other code made it, so that its code can not be named.
    """
    run = find_run(run_folder)
    if run.results is None:
        raise ValueError(f"{run_folder} has no results.json, and a card is written from it.")
    made_by = run.results.get("made_by", {}).get("commit")
    if not is_code_of(made_by):
        raise ValueError(f"{run_folder} was made by commit {made_by}, whose code is not today's. Add it from there.")
    run.results["code"] = [code_record(todays_code()) | {"commit": made_by[:8]}]
    found = license or source_license(run.provenance, run.checkpoint)
    facts = facts | {"arm": run.arm, "license": None if found is None else dataclasses.asdict(found)}
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    for key, file in FILES.items():
        content = getattr(run, key)
        if content is None:
            (folder / file).unlink(missing_ok=True)  # of an earlier run
        else:
            write_json(folder / file, slimmed(key, content))
    write_json(folder / FACTS, facts)


def write_json(path: Path, content: dict) -> None:
    """JSON as git shows it best."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def card(folder: Path):
    """The card of one model, from the files in its folder."""
    files = {key: read(folder / file) for key, file in FILES.items()}
    facts = read(folder / FACTS)
    if facts["license"] is not None:
        facts["license"] = SourceLicense(**facts["license"])
    return model_card(files.pop("results"), name=folder.name, **files, **facts)


def noted_card(folder: Path) -> str:
    """The card's text, with a note under its title where the code has moved since."""
    results = read(folder / FILES["results"]) or {}
    header, mark, text = str(card(folder)).partition("\n# ")
    again = (read(folder / FACTS) or {}).get("rebuild_command") or results.get("command") or "the command below"
    return header + mark + noted(stale_note(results.get("code"), todays_code(), again), text)


def read(path: Path) -> dict | None:
    """Content of a JSON file, None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def documented() -> str:
    """examples/docs/evaluation.md with what `hf-shear evaluate` prints of the model that is shown there."""
    table = evaluation_table(read(MODELS / SHOWN / FILES["evaluation"])).rstrip()
    return put_between(DOCS.read_text(encoding="utf-8"), DOCS_MARKS, f"\n```\n{table}\n```\n")


def readme(text: str) -> str:
    """The README with today's table of sheared SmolLM2 between its markers."""
    rows = []
    for folder in (folder for folder in models() if folder.name.startswith(IN_README)):
        results, evaluation = read(folder / FILES["results"]), read(folder / FILES["evaluation"])
        assert results is not None, folder.name
        arms = [results[arm] for arm in ("pruned", "recovered", "source")]
        tasks = [] if evaluation is None else [evaluation[which]["tasks"].values() for which in ("pruned", "source")]
        accuracy = [f"{100 * fmean(task['value'] for task in of_one):.1f} %" for of_one in tasks] or ["", ""]
        link = f"[{arms[1]['num_parameters'] / 1e6:.1f} M](model_cards/models/{folder.name}/README.md)"
        rows.append((link, *(f"{arm['mean']:.3f}" for arm in arms), *accuracy))
    rows.sort(key=lambda row: row[1])  # the lightest cut first
    headings = ("parameters", "loss when cut", "when trained", "of the source", "accuracy", "of the source")
    return put_between(text, MARKS, f"\n{markdown_table(headings, rows)}\n")


def models() -> list[Path]:
    """Folders of all models, in order."""
    return sorted(path.parent for path in MODELS.glob(f"*/{FACTS}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("NAME", "RUN_FOLDER"), help="keep the files of a run first")
    parser.add_argument("--license", help="of the source; what the source says by default")
    parser.add_argument("--license_name", help="of `--license other`")
    parser.add_argument("--license_link", help="of `--license other`")
    parser.add_argument("--source", help="what to call the source in the text")
    parser.add_argument("--base_model", help="the source's id on the Hub, if a copy was cut")
    parser.add_argument("--rebuild_command", help="the command that made the model, if the run did not record it")
    arguments = parser.parse_args()
    if arguments.add:
        facts = {name: getattr(arguments, name) for name in ("source", "base_model", "rebuild_command")}
        license = named_license(arguments.license, arguments.license_name, arguments.license_link)
        add(arguments.add[0], Path(arguments.add[1]), facts, license)
    for folder in models():
        (folder / "README.md").write_text(noted_card(folder), encoding="utf-8")
        print(folder / "README.md")
    if MODELS / SHOWN in models():
        DOCS.write_text(documented(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
