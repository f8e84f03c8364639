"""The kept cards are what their JSON files say, and keeping a run needs its folder only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from publishing_helpers import make_run

from examples.research import model_cards as builder

ROOT = Path(__file__).resolve().parent.parent


def test_kept_cards_are_what_their_files_say():
    for folder in builder.models():
        assert (folder / "README.md").read_text(encoding="utf-8") == builder.noted_card(folder), folder.name


def test_the_output_in_the_docs_is_that_of_a_kept_evaluation():
    assert builder.DOCS.read_text(encoding="utf-8") == builder.documented()


def test_a_run_is_kept_without_its_long_parts_and_its_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "MODELS", tmp_path / "models")
    monkeypatch.setattr(builder, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("\n".join(builder.MARKS))
    run = make_run(tmp_path / "run")
    whole = json.loads((run / "results.json").read_text())
    whole["kept"] = {"hidden": list(range(999))}
    whole["history"].insert(
        0, {"stage": "mask_learning", "num_tokens": 5, "mixture_weights": {"books": 0.9, "code": 0.1}}
    )
    monkeypatch.setattr(builder, "is_code_of", lambda commit: commit == "abcdef0123")
    (run / "results.json").write_text(json.dumps(whole))
    words = [
        "--add",
        "tiny",
        str(run),
        "--license",
        "mit",
        "--source",
        "the tiny model",
        "--rebuild_command",
        "make tiny",
    ]
    monkeypatch.setattr("sys.argv", ["model_cards.py", *words])
    with pytest.raises(ValueError, match="was made by commit .*, whose code is not today's. Add it from there."):
        builder.main()
    (run / "results.json").write_text(json.dumps(whole | {"made_by": {"commit": "abcdef0123"}}))
    builder.main()
    folder = tmp_path / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "card.json", "results.json", "evaluation.json", "provenance.json",
    }  # fmt: skip
    kept = json.loads((folder / "results.json").read_text())
    assert "kept" not in kept and len(kept["history"]) == 2
    assert not any(b"secret-place" in path.read_bytes() for path in folder.iterdir())
    (code,) = kept["code"]
    assert code["commit"] == "abcdef01" and code["digest"] == builder.todays_code()
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.license == "mit"
    assert "| books | 0.443 |" in text and "make tiny" in text and "cut out of the tiny model (" in text
    monkeypatch.setattr("sys.argv", ["model_cards.py"])
    builder.main()
    assert (folder / "README.md").read_text() == text
