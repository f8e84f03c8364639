"""Bad inputs as rows of data, and what runs one of them: a command line, examples/shear.py, or a call from Python.

A row says which words are given, what is damaged beforehand, and which texts the one line of the refusal must hold:
argument (or file), value and rule. That the line says how to mend it (``ADVICE``) is asked of every row.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import transformers
from transformers import PreTrainedModel, Trainer

import hf_shear.evaluation
import hf_shear.publishing.push
import hf_shear.report
import hf_shear.runs.stages
import hf_shear.scaling_law  # noqa: F401  # with those above: verbs import them once they need them
from hf_shear.cli import main
from hf_shear.core import UsageError

MAX_SECONDS = 3  # of a row without these imports, many times what any takes
SHEAR = Path(__file__).resolve().parent.parent / "examples" / "shear.py"

_IMPERATIVES = """add ask change check choose clamp convert continue copy correct count cut delete download evaluate
    export finish fit get give install keep learn leave list load log lower make mark mend merge move name pack pass pick
    point protect prune put raise read remove rename repair replace restore resume run save say see set shorten spell split start
    store take tokenise train try unpack use wait write""".split()
ADVICE = re.compile(
    rf"(?:^|[.:;,] |\bor |\band |\(|`: )(?:then )?({'|'.join(_IMPERATIVES)})\b"
    r"|\b(Did you mean|one of|such as|must be '|nearest shape that would do)",
    re.IGNORECASE,
)
"""Tells what to do: a sentence or clause that begins with an imperative, or what there is to choose from."""


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        what: words of a command line (``{name}``: one of the inputs, see ``Inputs``), or a function that is given them
            as attributes.
        needs: texts that the refusal must hold, besides advice; of a tuple within, one of its texts.
        damage: "INPUT/FILE" -> what stands there in its place: text, bytes, or a function of the path. The row then sees
            a copy of that input.
        reads_weights: whether weights must be read to know.
        program: who says it.
    """

    what: str | Callable[[SimpleNamespace], Any]
    needs: tuple[str | tuple[str, ...], ...]
    damage: Mapping[str, Any] = field(default_factory=dict)
    reads_weights: bool = False
    program: str = "hf-shear"

    @property
    def name(self) -> str:
        """For the list of tests."""
        if isinstance(self.what, str):
            return " ".join([self.what, *self.damage])
        return " ".join([f"bad_calls.py line {self.what.__code__.co_firstlineno}:", *map(str, self.needs[:2])])


class Worked(BaseException):
    """Work was begun: weights were read, a training started, the network was asked. Nothing may catch it."""


def _works(what: str) -> Callable:
    def work(*args, **kwargs):
        raise Worked(what)

    return work


_from_pretrained = PreTrainedModel.from_pretrained.__func__


def _only_on_paper(cls, path, *args, **kwargs):
    """Loading from given tensors, which the check of names and shapes does without storage, is no work."""
    if path is not None:
        raise Worked("weights were read")
    return _from_pretrained(cls, path, *args, **kwargs)


@contextmanager
def inside(folder: Path):
    """With ``folder`` as the current one: what is written by a relative path is seen there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def no_work(reads_weights: bool):
    """Whatever is work raises ``Worked`` within."""
    patches = [
        mock.patch.object(Trainer, "train", _works("a training began")),
        mock.patch.object(socket.socket, "connect", _works("the network was asked")),
    ]
    if not reads_weights:
        patches.append(mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(_only_on_paper)))
    for patch in patches:
        patch.start()
    # Processor seconds, since others may use the machine; and seconds of the clock, for what only waits.
    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, MAX_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, 15 * MAX_SECONDS))
    before = [signal.signal(sent, _works("it hangs")) for _, sent, _ in clocks]
    for clock, _, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for (clock, sent, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(sent, handler)
        for patch in patches:
            patch.stop()


class Inputs:
    """Folders and files by name; those that a row damages are copied for it, unchanged files by hard link."""

    def __init__(self, paths: Mapping[str, Path], texts: Mapping[str, str], things: Mapping[str, Any]):
        self.paths, self.texts, self.things = dict(paths), dict(texts), dict(things)

    def damaged(self, damage: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Paths and texts by name, for one row; ``folder`` is its own."""
        paths = dict(self.paths)
        for place, content in damage.items():
            name, _, inner = place.partition("/")
            if paths.get(name) in (None, self.paths.get(name)):
                copy = folder / (name if not self.paths[name].suffix else self.paths[name].name)
                if self.paths[name].is_dir():
                    shutil.copytree(self.paths[name], copy, copy_function=os.link)
                else:
                    shutil.copy(self.paths[name], copy)
                paths[name] = copy
            _put(paths[name] / inner if inner else paths[name], content)
        found = {name: str(path) for name, path in paths.items()} | {"out": str(folder / "out"), "work": str(folder)}
        return found

    def words(self, text: str, names: Mapping[str, str]) -> list[str]:
        """The words of a command line. Of the flags that a name stands for, those that the line gives itself go."""
        parts, given = shlex.split(text), set(re.findall(r"--\w+", text))
        words = []
        for part in parts:
            if part[1:-1] in self.texts:
                pairs = re.findall(r"(--\w+) (\S+)", self.texts[part[1:-1]])
                words += [word for flag, value in pairs if flag not in given for word in (flag, value)]
            else:
                words.append(part)
        return [fill(word, names) for word in words]


def fill(text: str, names: Mapping[str, str]) -> str:
    """Put what a {name} stands for in its place; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: names.get(found[1], found[0]), text)


def _put(path: Path, content: Any) -> None:
    if callable(content):
        return content(path)
    path.unlink(missing_ok=True)  # a hard link: never written through
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(path: Path) -> None:
    """Damage: nothing stands there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def a_folder(path: Path) -> None:
    """Damage: a folder stands in place of the file."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def a_pipe(path: Path) -> None:
    """Damage: a named pipe, which nobody ever writes to."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def snapshot(folder: Path) -> dict[str, tuple]:
    """What lies in a folder: name -> kind, size and time of the last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_size if path.is_file() else 0, facts.st_ino)
    return found


@dataclass
class Outcome:
    """What came of a row: its exit code (None: raised), what was said, and why it is wrong ("" if it is right)."""

    verdict: str
    said: str


def outcome(row: Row, inputs: Inputs, folder: Path) -> Outcome:
    """Run a row in a folder of its own, and judge it."""
    folder.mkdir()
    names = inputs.damaged(row.damage, folder)
    before = snapshot(folder)
    run = _command if isinstance(row.what, str) else _call
    try:
        with inside(folder), no_work(row.reads_weights):
            code, said = run(row, names, inputs)
    except Worked as worked:
        return Outcome(f"late: {worked}", "")
    except SystemExit as error:
        return Outcome(f"foreign: exits by itself ({error.code})", "")
    except Exception as error:
        return Outcome(f"traceback: {type(error).__name__}", " ".join(str(error).split())[:300])
    return Outcome(_judge(row, names, code, said, before, snapshot(folder)), said)


def _command(row: Row, names: dict[str, str], inputs: Inputs) -> tuple[int, str]:
    words = inputs.words(row.what, names | {"nul": "\0"})
    out, err = io.StringIO(), io.StringIO()
    handler = transformers.utils.logging._default_handler
    stream = handler.setStream(err)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            if row.program == "shear.py":
                code = _shear(words)
            else:
                code = main(words)
    finally:
        handler.setStream(stream)
    return code, err.getvalue()


def _shear(words: list[str]) -> int:
    with mock.patch.object(sys, "argv", [str(SHEAR), *words]):
        try:
            runpy.run_path(str(SHEAR), run_name="__main__")
        except SystemExit as error:
            return error.code
    raise AssertionError("examples/shear.py always ends with sys.exit")


def _call(row: Row, names: dict[str, str], inputs: Inputs) -> tuple[int, str]:
    try:
        row.what(SimpleNamespace(make=SimpleNamespace(**inputs.things), **names))
    except UsageError as error:
        return 2, f"{row.program}: error: {error}\n"
    return 0, ""


def _says(said: str, need: str) -> bool:
    """Whether a line holds a text; `name` is an argument, also as `--name`, `name=...` or `name[...]`."""
    if re.fullmatch(r"`\w+`", need):
        return re.search(rf"`(--)?{need[1:-1]}(`|=|\[)", said) is not None
    return need in said


def _judge(row: Row, names: dict[str, str], code: int, said: str, before: dict, after: dict) -> str:
    lines = said.splitlines()
    if code == 0:
        return "accepted"
    if code != 2:
        return f"exit code {code}"
    if before != after:
        names = before.keys() | after.keys()
        return f"late: changed {sorted(name for name in names if before.get(name) != after.get(name))}"
    if len(lines) != 1 or not said.startswith(f"{row.program}: error: "):
        return f"foreign: {len(lines)} lines"
    missing = []
    for need in row.needs:
        ways = [fill(way, names) for way in ((need,) if isinstance(need, str) else need)]
        if not any(_says(said, way) for way in ways):
            missing.append(" / ".join(ways))
    if missing:
        return f"foreign: it does not say {missing}"
    if not ADVICE.search(said.split("error: ", 1)[1]):
        return "foreign: no advice"
    if re.search(r"\w\.\. ", said):
        return "foreign: a sentence ends twice"
    return ""
