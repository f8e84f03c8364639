"""``py.typed`` ships: the library's types are checked, and a user's code sees them."""

import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import hf_shear

ROOT = Path(__file__).parent.parent
PACKAGE = Path(hf_shear.__file__).parent
USER = ROOT / "tests" / "typed_user.py"
MAX_IGNORES = 20


@pytest.fixture(scope="module")
def found() -> list[dict]:
    """What the checker says of the library and of a user's code; it takes most of a minute."""
    pytest.importorskip("basedpyright", reason="the type checker is in the extra `dev`")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, "hf_shear", "tests/typed_user.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)["generalDiagnostics"]


def shown(found: list[dict]) -> str:
    return "\n".join(f"{d['file']}:{d['range']['start']['line'] + 1}: {d['message']} [{d.get('rule')}]" for d in found)


def test_the_library_has_no_type_errors(found):
    errors = [d for d in found if Path(d["file"]).is_relative_to(PACKAGE)]
    assert not errors, shown(errors)


def test_a_user_sees_the_types(found):
    revealed = {
        d["range"]["start"]["line"]: re.search(r'is "(.*)"$', d["message"]) for d in found if Path(d["file"]) == USER
    }
    expected = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(USER.read_text(encoding="utf-8").splitlines())
        if line.startswith("reveal_type(")
    }
    assert {number: match and match[1] for number, match in revealed.items()} == expected


def comments() -> list[tuple[str, str]]:
    """Every comment of the library that speaks to a type checker, and where it stands."""
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "pyright:" not in text and "type:" not in text:
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and re.match(r"#\s*(pyright|type):", token.string):
                result.append((f"{path.relative_to(PACKAGE)}:{token.start[0]}", token.string))
    return result


def test_each_ignored_error_has_a_rule_and_a_reason():
    """``x = y  # pyright: ignore[reportOptionalCall]  # why``: one rule, then the reason."""
    wrong = [c for c in comments() if not re.fullmatch(r"# pyright: ignore\[report\w+\]  # \w.{9,}", c[1])]
    assert not wrong


def test_few_errors_are_ignored():
    assert len(comments()) <= MAX_IGNORES
