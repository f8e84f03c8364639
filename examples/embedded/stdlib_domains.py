"""Real text in four domains from what every Python installation has: no download, only the standard library.

    code         the library's source files without their documentation strings
    docstrings   those documentation strings, as text
    manual       the language reference that ``help()`` shows (``pydoc_data.topics``), by section
    tables       characters and their names and properties (``unicodedata``), by script

Every document names its ``group``. The split into a training and a held-out part looks at nothing else
(`hf_shear.data.split_domains` hashes the name), so that a module's code and its docstrings lie on the same side,
and so does everything that is nearly the same text (`decimal` and `_pydecimal`, a section that two topics quote).

    python examples/embedded/stdlib_domains.py                      # the sizes of the domains on both sides
    python examples/embedded/stdlib_domains.py --held_out FOLDER    # and the held-out documents, as files

What ``--held_out`` writes is for ``hf-shear evaluate --data_dir FOLDER --all_documents``: no model here was trained on it
(pruning may have been calibrated on some of it).
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import inspect
import json
import logging
import os
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from pathlib import Path
from zlib import crc32

import numpy as np
from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

OTHER_PEOPLES = {"site-packages", "dist-packages"}
TESTS = {"test", "tests", "idle_test"}
GENERATED = {"encodings", "lib-dynload", "pydoc_data", "__pycache__"}
EXCLUDED_FOLDERS = OTHER_PEOPLES | TESTS | GENERATED
"""Folders that are not read."""

EXCLUDED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-", "_vars_config")
"""Generated files and folders, which hold the paths of one machine."""

MAX_DOCUMENT_CHARACTERS = 16_000
"""A longer file is split at top-level statements into several documents of one group."""

MIN_DOCUMENT_CHARACTERS = 80
"""Shorter documents are left out."""

FAMILIES = {
    "abc": ("_py_abc",),
    "aifc": ("chunk", "sunau", "wave"),
    "collections": ("_collections_abc",),
    "ctypes": ("distutils", "shutil", "sysconfig"),
    "datetime": ("_pydatetime", "_strptime"),
    "decimal": ("_pydecimal",),
    "email": ("imghdr", "sndhdr", "wsgiref"),
    "importlib": ("imp",),
    "io": ("_pyio",),
    "re": ("sre_compile", "sre_constants", "sre_parse"),
    "threading": ("_threading_local", "asyncio", "queue"),
    "tokenize": ("lib2to3", "token"),
    "weakref": ("_weakrefset",),
}
"""Group -> other modules in it, which share text with it in some Python version, or whose text moved from one to the
other. They are one group in all versions, because the hash of a group's name decides its side: what was held out when
a source model was trained should be held out under another Python, too. Near-duplicates that are not listed are found
in the text itself, and may differ between versions."""

DOMAIN_NAMES = ("code", "docstrings", "manual", "tables")


@dataclass(frozen=True)
class Document:
    """One text, the domain it belongs to, the source (file, section, script) it is from, and its group."""

    domain: str
    source: str
    group: str
    text: str


def stdlib_domains(library: str | Path | None = None) -> DatasetDict:
    """The domains of the running Python, each a `Dataset` with the columns ``text`` and ``group``.

    The same installation gives the same rows in the same order. A missing part is skipped with a warning.

    Args:
        library: folder of the standard library; default: the running Python's own.

    Raises:
        ValueError: fewer than two domains are left.
    """
    folder = Path(library or sysconfig.get_paths()["stdlib"])
    domains: dict[str, list[Document]] = {name: [] for name in DOMAIN_NAMES}
    for document in stdlib_documents(folder):
        domains[document.domain].append(document)
    for name in DOMAIN_NAMES:
        if len({document.group for document in domains[name]}) < 2:
            warnings.warn(
                f"This Python installation ({folder}) has no text for the domain {name!r}; it is skipped.",
                stacklevel=2,
            )
            del domains[name]
    if len(domains) < 2:
        raise ValueError(
            f"The standard library at `library` ({folder}) gives {len(domains)} text domain(s), {sorted(domains)}, "
            "but at least 2 are needed. Use a Python installation that has its library as source files, or pass a "
            "folder of your own text with --data_dir."
        )
    return DatasetDict({name: _as_dataset(members) for name, members in domains.items()})


def _as_dataset(documents: list[Document]) -> Dataset:
    columns = {"text": [one.text for one in documents], "group": [one.group for one in documents]}
    return Dataset.from_dict(columns)


def stdlib_documents(folder: Path) -> list[Document]:
    """All documents with their final groups, in a fixed order.

    Near-duplicates get one group; after that, long documents are split into several of the same group.
    """
    with _no_garbage_collection():
        documents = [*_source_documents(folder), *_manual_documents(), *_table_documents()]
    links = [
        (documents[i].group, documents[j].group)
        for i, j, _ in near_duplicates([document.text for document in documents])
    ]
    groups = merged_groups(sorted({document.group for document in documents}), links)
    return [
        replace(document, group=groups[document.group], text=text)
        for document in documents
        for text in _parts(document)
        if len(text) >= MIN_DOCUMENT_CHARACTERS
    ]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees are many small objects that die by themselves: the collector would double the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Source files -----------------------------------------------------------------------------------------------


def _source_documents(folder: Path) -> Iterator[Document]:
    """A `code` and a `docstrings` document per readable source file, in the order of the paths."""
    families = {member: name for name, members in FAMILIES.items() for member in members}
    for path in _source_files(folder):
        relative = path.relative_to(folder)
        module = relative.parts[0].removesuffix(".py")
        group = families.get(module, module)
        try:
            source = path.read_text(encoding="utf-8")
            tree = _parsed(source)
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            logger.info("%s is skipped: %s", relative, error)
            continue
        name, nodes = relative.as_posix(), list(_docstring_nodes(tree))
        yield Document("code", name, group, _without_docstrings(source, nodes))
        yield Document("docstrings", name, group, "\n\n".join(_docstrings(nodes)))


def _source_files(folder: Path) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and _is_written_by_hand(name)]
        files += [Path(parent, name) for name in names if name.endswith(".py") and _is_written_by_hand(name)]
    return sorted(files, key=lambda path: path.as_posix())


def _is_written_by_hand(name: str) -> bool:
    return not name.startswith(EXCLUDED_PREFIXES)


def _parsed(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in the library's own strings
        return ast.parse(source)


DocstringNode = tuple[ast.AST, list[ast.Expr]]
"""A module, class or function, and the string statements that its body starts with."""


def _docstring_nodes(tree: ast.Module) -> Iterator[DocstringNode]:
    """Every module, class and function that starts with a string."""
    open_nodes: list[ast.AST] = [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            leading = list(takewhile(_is_string, node.body))
            if leading:
                yield node, leading
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):  # no expressions: faster than ast.walk
            children = getattr(node, name, ())
            if isinstance(children, list):
                open_nodes.extend(children)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _docstrings(nodes: list[DocstringNode]) -> list[str]:
    """The file's documentation strings in the order of the source, without their indentation."""
    found = [strings[0].value for _, strings in nodes]
    found.sort(key=lambda constant: (constant.lineno, constant.col_offset))
    return [text for constant in found if (text := inspect.cleandoc(constant.value).strip())]


def _without_docstrings(source: str, nodes: list[DocstringNode]) -> str:
    """The source with every documentation string cut out; a body that was nothing else becomes ``pass``."""
    lines = [line.encode() for line in source.split("\n")]  # ast counts columns in bytes
    edits = []
    for owner, strings in nodes:
        is_whole_body = len(strings) == len(owner.body) and not isinstance(owner, ast.Module)
        for position, node in enumerate(strings):
            needs_statement = is_whole_body and position == 0
            edits.append((node, b"pass" if needs_statement else b""))
    edits.sort(key=lambda edit: (edit[0].lineno, edit[0].col_offset))
    for node, replacement in reversed(edits):
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        if not replacement:
            after = re.sub(rb"^\s*;\s*", b"", after)
        left = before + replacement + after
        lines[first : last + 1] = [left.rstrip()] if left.strip() else []
    return re.sub(r"(?m)(?:^#.*\n)+", _without_licence, b"\n".join(lines).decode()).strip() + "\n"


def _without_licence(comment: re.Match[str]) -> str:
    """Nothing for a comment about licence or copyright, which many files share; any other comment as it is."""
    return "" if re.search(r"copyright|licen[cs]e", comment[0], re.IGNORECASE) else comment[0]


def _parts(document: Document) -> list[str]:
    """The document's text in parts of about MAX_DOCUMENT_CHARACTERS; code is cut between top-level statements only."""
    if len(document.text) <= MAX_DOCUMENT_CHARACTERS:
        return [document.text]
    lines = re.findall(r"[^\n]*\n|[^\n]+", document.text)  # not splitlines: a form feed ends no line of code
    if document.domain == "code":
        cuts = [_first_line(node) - 1 for node in _parsed(document.text).body]
    else:
        cuts = [number + 1 for number, line in enumerate(lines) if not line.strip()] or range(len(lines))
    parts, start, length, previous = [], 0, 0, 0
    for cut in [*cuts, len(lines)]:
        step = sum(map(len, lines[previous:cut]))
        if length and length + step > MAX_DOCUMENT_CHARACTERS:
            parts.append("".join(lines[start:previous]))
            start, length = previous, 0
        length, previous = length + step, cut
    return [*parts, "".join(lines[start:])]


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


# The manual and the tables ----------------------------------------------------------------------------------


def _manual_documents() -> Iterator[Document]:
    """The sections of the language reference; the group is the section's title, which several topics may quote."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError) as error:
        logger.info("The language reference is missing: %s", error)
        return
    for topic, text in sorted(topics.items()):
        for title, section in _sections(topic, text):
            yield Document("manual", topic, f"manual:{title}", section)


def _sections(topic: str, text: str) -> Iterator[tuple[str, str]]:
    """(title in lower case, text) of each section; a title is a line with ``*``, ``=``, ``-`` or ``~`` under it."""
    titles = re.finditer(r"^(\S.*)\n([*=\-~])\2{2,}\n", text, re.MULTILINE)
    starts = [(match.start(), match[1]) for match in titles]
    if not starts or text[: starts[0][0]].strip():
        starts.insert(0, (0, topic))
    for (start, title), (end, _) in zip(starts, [*starts[1:], (len(text), "")], strict=True):
        yield " ".join(re.findall(r"[a-z0-9]+", title.lower())), text[start:end].strip() + "\n"


def _table_documents() -> Iterator[Document]:
    """A table per script, the first word of the characters' names.

    A row is code point, name, category, direction, decomposition and numeric value, as in UnicodeData.txt. Names that
    are only the code point again (ideographs) are left out.
    """
    rows: dict[str, list[str]] = defaultdict(list)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, "")
        if not name or name.endswith(f"{code:04X}") or name.startswith("HANGUL SYLLABLE"):
            continue
        fields = [f"{code:04X}", name, unicodedata.category(character), unicodedata.bidirectional(character)]
        fields += [unicodedata.decomposition(character), str(unicodedata.numeric(character, ""))]
        rows[re.split(r"[ -]", name)[0].lower()].append(";".join(fields))
    for script, lines in sorted(rows.items()):
        yield Document("tables", script, f"unicode:{script}", "\n".join(lines) + "\n")


def domain_sizes(train: DatasetDict, held_out: DatasetDict) -> dict[str, dict[str, int]]:
    """Domain -> documents, groups and characters on each side."""
    sizes: dict[str, dict[str, int]] = {name: {} for name in train}
    for side, domains in (("train", train), ("held_out", held_out)):
        for name, dataset in domains.items():
            groups = dataset["group" if "group" in dataset.column_names else "text"]
            sizes[name] |= {
                f"{side}_documents": len(dataset),
                f"{side}_groups": len(set(groups)),
                f"{side}_characters": sum(map(len, dataset["text"])),
            }
    return sizes


def write_domains(domains: DatasetDict, folder: str | Path) -> None:
    """One ``<domain>.jsonl`` for each domain, a document with its group in every line.

    Raises:
        ValueError: there is something at ``folder`` already.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"`held_out` {str(folder)!r} exists. Name a folder that does not.")
    folder.mkdir(parents=True)
    for name, dataset in domains.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in dataset)


# Which texts share too much to lie on different sides of the split
#
# A text is seen as its set of shingles, runs of `SHINGLE_WORDS` words. Two texts are near-duplicates when a good part of
# the smaller one's shingles also occurs in the other (containment, which finds a copy inside a much larger text, where
# Jaccard similarity would be small). Groups of near-duplicates are the connected components.

SHINGLE_WORDS = 8
"""Words in a shingle: long enough that two texts hardly share one by chance."""

MAX_TEXTS_PER_SHINGLE = 12
"""A shingle found in more texts than this is boilerplate (a licence, an option table) and links nothing."""

MIN_SHARED_SHINGLES = 24
"""Texts that share fewer shingles than this (about two sentences) are never near-duplicates."""

MIN_CONTAINMENT = 0.2
"""Share of the smaller text's shingles from which on two texts are near-duplicates. Lower, a single copied function
would join large packages in one Python version and not in the next, and move all their text to another side."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str, cache: dict[str, int] | None = None) -> np.ndarray:
    """The set of the text's shingles as sorted 64-bit hashes, the same in every process and on every machine.

    Args:
        text: any text; only its words (letters, digits, underscore) count.
        cache: word -> hash, shared between calls to save time.
    """
    cache = {} if cache is None else cache
    words = re.findall(r"\w+", text)
    if len(words) < SHINGLE_WORDS:
        return np.empty(0, dtype=np.uint64)
    for word in set(words).difference(cache):
        cache[word] = crc32(word.encode("utf-8", "surrogatepass"))
    ids = np.fromiter((cache[word] for word in words), dtype=np.uint64, count=len(words))
    length = len(ids) - SHINGLE_WORDS + 1
    hashes = np.zeros(length, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = (hashes ^ ids[offset : offset + length]) * _MULTIPLIER  # wraps around at 2**64, as intended
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def shared_shingles(sets: Sequence[np.ndarray]) -> Counter[tuple[int, int]]:
    """(i, j) with i < j -> number of shingles in both; those in more than MAX_TEXTS_PER_SHINGLE do not count."""
    if not sets:
        return Counter()
    hashes = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.concatenate([[len(hashes) > 0], hashes[1:] != hashes[:-1]]))
    lengths = np.diff(np.append(starts, len(hashes)))
    counts: Counter[tuple[int, int]] = Counter()
    linking = (lengths > 1) & (lengths <= MAX_TEXTS_PER_SHINGLE)
    for start, length in zip(starts[linking].tolist(), lengths[linking].tolist(), strict=True):
        counts.update(combinations(owners[start : start + length].tolist(), 2))
    return counts


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """All pairs (i, j, containment), i < j, of near-duplicate texts, in order."""
    cache: dict[str, int] = {}
    sets = [shingles(text, cache) for text in texts]
    pairs = []
    for (i, j), shared in sorted(shared_shingles(sets).items()):
        containment = shared / min(len(sets[i]), len(sets[j]))
        if shared >= MIN_SHARED_SHINGLES and containment >= MIN_CONTAINMENT:
            pairs.append((i, j, containment))
    return pairs


def merged_groups(names: Iterable[str], linked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> name of its group, the smallest name of its connected component (union-find)."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for left, right in linked:
        first, second = sorted((root(left), root(right)))
        parent[second] = first
    return {name: root(name) for name in parent}


def main() -> None:
    from hf_shear.data import split_domains

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--held_out", help="folder to make, for the held-out documents of each domain")
    arguments = parser.parse_args()
    train, held_out = split_domains(stdlib_domains())
    if arguments.held_out is not None:
        write_domains(held_out, arguments.held_out)
    for name, sizes in domain_sizes(train, held_out).items():
        print(f"{name:12}", "  ".join(f"{key}: {value:,}" for key, value in sizes.items()))


if __name__ == "__main__":
    main()
