"""The commands and the Python of examples/docs/scaling_law.md run as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from scaling_law_helpers import draw_runs, write_runs_csv
from training_helpers import make_args, make_trainer, plain_model

from hf_shear.cli import main
from hf_shear.scaling_law.forms import FORMS
from hf_shear.scaling_law.read_runs import COLUMNS, OPTIONAL_COLUMNS

DOCS = (Path(__file__).resolve().parent.parent / "examples" / "docs" / "scaling_law.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL)


def test_the_command_and_the_python_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write_runs_csv("runs.csv", draw_runs(noise=0.001, num_checkpoints=12))
    (command,) = blocks("bash")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "hf-shear" and main([*words[1:], "--bootstrap", "4"]) == 0
    assert "<-" in capsys.readouterr().out and (tmp_path / "plan.png").exists()
    first, second = blocks("python")
    names = {}
    exec(compile(first, "scaling_law.md", "exec"), names)
    assert "condition number" in capsys.readouterr().out
    trainer = make_trainer(plain_model(), make_args(tmp_path, eval_strategy="steps", eval_steps=2))
    exec(compile(second, "scaling_law.md", "exec"), names | {"trainer": trainer})
    trainer.train()
    assert any("law/final_loss" in entry for entry in trainer.state.log_history)


def test_every_form_and_column_is_named():
    for name in (*FORMS, *COLUMNS, *OPTIONAL_COLUMNS):
        assert name in DOCS, name
