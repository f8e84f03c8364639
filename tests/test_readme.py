"""The README's commands are what CI runs, and it stays short. ``test_docs.py`` runs its Python and follows its links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["job", "test"])
def test_commands_of_ci_are_there(name):
    assert re.search(rf"<!-- command: {name} -->\n```bash\n.+?\n```", README)
    assert "accelerate launch examples/shear.py" in README


def test_readme_is_short():
    assert len(README.splitlines()) <= 120
