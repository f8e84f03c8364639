"""Text by domain: reading a folder into a `DatasetDict`, and splitting it into train and held-out parts.

A domain is a named source of documents (books, code, wiki, ...). Everything here works on documents: one row
is one document, in the column `text` (and, where asked for, `group`: documents of one group belong together,
such as the versions of one file). Tokens come later, in `hf_shear.data.packing`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ..core import UsageError, check_ranges
from .text_files import TEXT_SUFFIXES, check_can_decompress, read_rows, text_suffix

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

NOTES = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors")
NOTE_SUFFIXES = ("", ".md", ".txt", ".rst", ".html", ".cff", ".bib")
"""A file of such a name and suffix describes the text, and is passed over."""

OTHER_NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "thumbs.db", "desktop.ini")
OTHER_NOTE_SUFFIXES = (".lock", ".md5", ".sha1", ".sha256", ".crc")

NAMES_SHOWN = 3  # files that a message of several names
READ_BATCH = 256  # rows hashed at once: bounds memory, does not change any result
READER_VERSION = 2  # part of the cache's key: raise it when a reader yields other documents for the same file
BLOCKS_VERSION = 1  # likewise, for the parts of a domain that is split into blocks


@dataclass(frozen=True)
class ReadingRules:
    """Which field of a row is the document, and what is done with files and rows that hold none.

    Attributes:
        text_field, group_field, skip_unreadable, skip_null_text: as for `load_domains`.
    """

    text_field: str = "text"
    group_field: str | None = None
    skip_unreadable: bool = False
    skip_null_text: bool = False

    @property
    def columns(self) -> list[str]:
        """Of the data set."""
        return ["text"] if self.group_field is None else ["text", "group"]


@overload
def load_domains(
    data_dir: str | Path,
    text_field: str = "text",
    *,
    group_field: str | None = None,
    skip_unreadable: bool = False,
    skip_null_text: bool = False,
    streaming: Literal[False] = False,
) -> DatasetDict: ...


@overload
def load_domains(
    data_dir: str | Path,
    text_field: str = "text",
    *,
    group_field: str | None = None,
    skip_unreadable: bool = False,
    skip_null_text: bool = False,
    streaming: bool,
) -> DatasetDict | IterableDatasetDict: ...


def load_domains(
    data_dir: str | Path,
    text_field: str = "text",
    *,
    group_field: str | None = None,
    skip_unreadable: bool = False,
    skip_null_text: bool = False,
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Read a folder of text into one data set per domain.

    A folder that holds text files makes each file a domain, named by the file without its suffix. A folder
    that holds sub-folders makes each sub-folder a domain, with all the text files below it. Text files beside
    sub-folders are refused, because it is not clear which was meant.

    Kinds: .jsonl (one object per line), .json (the same, or one array of objects), .txt (a line `<|endoftext|>`
    separates documents; a file without one is a document), each also as .gz or .zst; and .parquet. Documents of
    white space alone are dropped. Notes beside the text are passed over: hidden files and folders, README, LICENSE and the
    like (`NOTES`, `OTHER_NOTES`), locks and check sums. Every other file must be read whole, or it is an error.

    The Arrow files go to the cache of `datasets`; nothing is written to `data_dir`.

    Args:
        data_dir: the folder.
        text_field: the field (json) or column (parquet) that holds the text.
        group_field: if given, a field that names the group of a document (see `split_domains`), kept as the
            column `group`. A .txt file has no fields: its documents form one group each.
        skip_unreadable: pass over files of other kinds, and over what follows a fault in a broken file, with a warning.
        skip_null_text: pass over rows whose text is null, missing or no string, with a warning that counts them.
        streaming: read nothing now, and write no Arrow files. Each file is a shard of its domain's stream; what cannot be
            read is told when its turn comes.

    Returns:
        name -> `Dataset` (or `IterableDataset`) with the column `text` (and `group`), sorted by name.

    Raises:
        UsageError: the folder is missing or without text; a domain has no document, or a name that cannot be printed; a
            file is not read, broken or empty; a row has no text.
        MissingExtraError: a .zst file, and `zstandard` is not installed.
    """
    from datasets import DatasetDict, IterableDatasetDict

    if not text_field:
        raise UsageError(
            f"`text_field` must not be empty, but it is {text_field!r}. Name the field that holds the text."
        )
    rules = ReadingRules(text_field, group_field, skip_unreadable, skip_null_text)
    found, unread = _find_domains(Path(data_dir))
    _tell_unread_files(Path(data_dir), unread, skip_unreadable)
    for name, files in found.items():
        if not name.isprintable():
            raise UsageError(
                f"A domain's name must be printable, as it stands in tables and files, but {name!r} in `data_dir` is not."
                " Rename it."
            )
        if not files:
            raise _no_documents(name, ())
        for file in files:
            check_can_decompress(file)
    if streaming:
        return IterableDatasetDict({name: _stream_domain(name, files, rules) for name, files in found.items()})
    return DatasetDict({name: _read_domain(name, files, rules) for name, files in found.items()})


def _find_domains(data_dir: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """The files of each domain, both sorted, and why others are not read; the folder is walked once.

    See `load_domains` for the rules.
    """
    if not data_dir.is_dir():
        raise UsageError(
            f"`data_dir` must be an existing folder, but it is {str(data_dir)!r}. "
            "Give a folder with one sub-folder or one file per domain."
        )
    unread: dict[Path, str] = {}
    top = _entries(data_dir, unread)
    folders = [path for path in top if path.is_dir()]
    files = [path for path in top if path not in folders and _is_read(path, unread)]
    if files and folders:
        raise UsageError(
            f"`data_dir` must hold either text files or sub-folders, but {str(data_dir)!r} holds both: the "
            f"file {files[0].name!r} and the sub-folder {folders[0].name!r}. Give each domain a sub-folder "
            "of its own."
        )
    found: dict[str, list[Path]] = {}
    for file in files:
        name = file.name[: -len(text_suffix(file))]
        if name in found:
            raise UsageError(
                f"`data_dir` must name each domain once, but {found[name][0].name!r} and {file.name!r} in "
                f"{str(data_dir)!r} are both {name!r}. Rename one, or put both into a sub-folder {name!r}."
            )
        found[name] = [file]
    for folder in folders:
        found[folder.name] = [path for path in _files_below(folder, unread, ()) if _is_read(path, unread)]
    if not any(found.values()):
        others = f" ({_shown(data_dir, unread)})" if unread else ""
        raise UsageError(
            f"`data_dir` must hold text, but no file below {str(data_dir)!r} ends in "
            f"{', '.join(TEXT_SUFFIXES)}{others}. Give a folder with one sub-folder or one file per domain."
        )
    return dict(sorted(found.items())), dict(sorted(unread.items()))


def _entries(folder: Path, unread: dict[Path, str]) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden and notes."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        unread[folder] = f"{type(error).__name__}: {error.strerror}"
        return []
    return [path for path in entries if path.is_dir() and path.name[0] != "." or not _is_note(path)]


def _is_note(path: Path) -> bool:
    """Whether a file describes the text, or is left by a tool; see `NOTES`."""
    name = path.name.lower()
    stem, dot, suffix = name.partition(".")
    return (
        name.startswith(".")
        or name in OTHER_NOTES
        or name.endswith(OTHER_NOTE_SUFFIXES)
        or (stem in NOTES and dot + suffix in NOTE_SUFFIXES)
    )


def _files_below(folder: Path, unread: dict[Path, str], above: tuple[str, ...]) -> list[Path]:
    """The files below a folder, sorted. Links are followed, but not to a folder that they lie in.

    Args:
        above: the folders that were gone through to here, without links.
    """
    found, above = [], (*above, os.path.realpath(folder))
    for path in _entries(folder, unread):
        if not path.is_dir():
            found.append(path)
        elif os.path.realpath(path) in above:
            unread[path] = "a link to a folder that it lies in"
        else:
            found += _files_below(path, unread, above)
    return sorted(found)


def _is_read(path: Path, unread: dict[Path, str]) -> bool:
    """Whether a file is of a kind that is read; if not, the reason is noted."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:  # links that lead nowhere or to themselves
        unread[path] = f"{type(error).__name__}: {error.strerror}"
        return False
    if not is_file or not text_suffix(path):
        unread[path] = "of another kind" if is_file else "not a regular file"
    return path not in unread


def _shown(data_dir: Path, unread: Mapping[Path, str]) -> str:
    names = [f"{path.relative_to(data_dir).as_posix()!r} ({reason})" for path, reason in unread.items()]
    return f"{len(names)}: " + ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _tell_unread_files(data_dir: Path, unread: Mapping[Path, str], skip: bool) -> None:
    """One error, or one warning, of all the files that are no notes, and can not be read."""
    if not unread:
        return
    text = f"`data_dir` ({str(data_dir)!r}) holds files that are not read, {_shown(data_dir, unread)}."
    if not skip:
        raise UsageError(
            f"{text} The kinds that are read are {', '.join(TEXT_SUFFIXES)}. Convert the files, move them out of the"
            " folder, or leave them out with `--skip_unreadable`."
        )
    warnings.warn(text, UserWarning, stacklevel=3)


@dataclass
class _Skipped:
    """What was passed over: faults of files, and rows without a text, the first of them in words."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    first_row: str = ""

    def tell(self, what: str) -> None:
        """A warning for each kind, if there is something to tell."""
        if self.files:
            more = f" Others: {len(self.files) - 1}." if len(self.files) > 1 else ""
            warnings.warn(
                f"{what}: files were skipped (`skip_unreadable`), {len(self.files)}. {self.files[0]}{more}",
                UserWarning,
                stacklevel=2,
            )
        if self.rows:
            warnings.warn(
                f"{what}: rows without a text were skipped (`skip_null_text`), {self.rows:,}. {self.first_row}",
                UserWarning,
                stacklevel=2,
            )


def _read_domain(name: str, files: list[Path], rules: ReadingRules) -> Dataset:
    """One domain's documents, read through the cache, whose key holds the size and time of every file."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    stats = [path.stat() for path in files]
    arguments = {
        "name": name,
        "files": tuple(str(path.absolute()) for path in files),
        "rules": rules,
        "cache_key": (READER_VERSION, *((found.st_size, found.st_mtime_ns) for found in stats)),
    }
    arguments["record"] = f"{Hasher.hash(arguments)}.json"
    try:
        dataset = Dataset.from_generator(_documents, features=_features(rules), gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (UsageError, OSError)):
            raise error.__cause__ from None
        raise
    if rules.skip_unreadable or rules.skip_null_text:
        _Skipped(**json.loads(_record_path(arguments["record"]).read_text(encoding="utf-8"))).tell(f"Domain {name!r}")
    return dataset


def _record_path(name: str) -> Path:
    """Of what was skipped in a domain, which is told also when the documents come from the cache."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, "skipped_text", name)


def _features(rules: ReadingRules):
    from datasets import Features, Value

    return Features({column: Value("large_string") for column in rules.columns})


def _stream_domain(name: str, files: list[Path], rules: ReadingRules) -> IterableDataset:
    """One domain's documents as a stream, of which every file is a shard."""
    from datasets import IterableDataset

    return IterableDataset.from_generator(
        _streamed_documents,
        features=_features(rules),
        gen_kwargs={
            "files": [str(path.absolute()) for path in files],
            "rules": rules,
        },  # datasets deals a list to shards
    )


def _no_documents(name: str, files: Sequence[str], reason: str = "") -> UsageError:
    return UsageError(
        f"Every domain must hold at least one document, but domain {name!r} has none "
        f"(text files: {[Path(file).name for file in files]}{reason}). Add text to it, or remove it."
    )


def _documents(
    name: str, files: tuple[str, ...], rules: ReadingRules, cache_key: tuple[Any, ...], record: str
) -> Iterator[dict[str, str]]:
    """The documents of a domain's files, in order. `cache_key` tells one state of the files from another."""
    skipped, num_documents = _Skipped(), 0
    for file in files:
        for document in _documents_of_file(file, rules, skipped, is_first=num_documents == 0):
            num_documents += 1
            if rules.skip_null_text or not skipped.rows:  # else rows without a text are only counted from now on
                yield document
    if skipped.rows and not rules.skip_null_text:
        raise UsageError(
            f"`text_field` ({rules.text_field!r}) must hold a string in every row, but in domain {name!r} {skipped.rows:,}"
            f" of {skipped.rows + num_documents:,} rows do not. {skipped.first_row} Repair the file, or leave such rows out"
            " with `--skip_null_text`."
        )
    if num_documents == 0:
        reasons = [*skipped.files, skipped.first_row]
        raise _no_documents(name, files, "".join(f"; {reason}" for reason in reasons[:1] if reason))
    if rules.skip_unreadable or rules.skip_null_text:
        path = _record_path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(vars(skipped)), encoding="utf-8")


def _streamed_documents(files: Sequence[str], rules: ReadingRules) -> Iterator[dict[str, str]]:
    """The documents of some files, in order. What is skipped is told at the end of each file."""
    for file in files:
        skipped = _Skipped()
        for document in _documents_of_file(file, rules, skipped, is_first=True):
            _refuse_rows(rules, skipped)
            yield document
        _refuse_rows(rules, skipped)
        skipped.tell(f"File {file!r}")


def _refuse_rows(rules: ReadingRules, skipped: _Skipped) -> None:
    if skipped.rows and not rules.skip_null_text:
        raise UsageError(
            f"`text_field` ({rules.text_field!r}) must hold a string in every row. {skipped.first_row} Repair the file, or"
            " leave such rows out with `--skip_null_text`."
        )


def _documents_of_file(file: str, rules: ReadingRules, skipped: _Skipped, is_first: bool) -> Iterator[dict[str, str]]:
    """The documents of a file, in order, without those of white space alone. Rows without a text are only counted.

    Args:
        is_first: whether no document was read before. A first row without the field is an error at once: the name of the
            field is wrong.
    """
    num_rows, num_before = 0, skipped.rows
    try:
        for where, row in read_rows(Path(file), rules.text_field, rules.group_field):
            where = f"{where} of {file!r}"
            text = row.get(rules.text_field)
            if not isinstance(text, str):
                problem = _without_text(rules.text_field, row, where)
                if is_first and not num_rows and rules.text_field not in row and not rules.skip_null_text:
                    raise _WrongField(
                        f"`text_field` must be a field of every document, but {problem} Name the right one with"
                        " `--text_field`."
                    )
                skipped.rows += 1
                skipped.first_row = skipped.first_row or f"The first: {problem}"
                continue
            _check_unicode("text_field", rules.text_field, text, where)
            group = {} if rules.group_field is None else {"group": _group(row, rules.group_field, where)}
            if text.strip():
                num_rows += 1
                yield {"text": text} | group
        if not num_rows and skipped.rows == num_before:
            raise UsageError(f"Every text file must hold a document, but {file!r} holds none. Remove it, or fill it.")
    except _WrongField:
        raise
    except UsageError as error:
        if not rules.skip_unreadable:
            raise UsageError(f"{error} Or leave out what cannot be read with `--skip_unreadable`.") from error
        skipped.files.append(str(error))


class _WrongField(UsageError):
    """The user named a field that is not there: no fault of a file."""


def _without_text(name: str, row: Mapping[str, Any], where: str) -> str:
    """What a row has in place of a text, as a sentence."""
    if name not in row:
        return f"{name!r} is not in {where}, which has {sorted(row)}."
    return f"{where} has {'null' if row[name] is None else type(row[name]).__name__}."


def _group(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise _WrongField(
            f"`group_field` must be a field of every document, but {name!r} is not in {where}, which has {sorted(row)}."
            " Name the right one."
        )
    if not isinstance(row[name], str):
        raise _WrongField(
            f"`group_field` ({name!r}) must hold strings, but {where} has a {type(row[name]).__name__}. Name another field,"
            " or convert the file."
        )
    _check_unicode("group_field", name, row[name], where)
    return row[name]


def _check_unicode(argument: str, name: str, value: str, where: str) -> None:
    """Refuse what cannot be stored as UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"`{argument}` ({name!r}) must be valid Unicode, but {where} is not ({error}). Repair the document."
        ) from error


def split_domains(
    domains: Mapping[Any, Dataset], held_out_fraction: float = 0.1, seed: int = 0
) -> tuple[DatasetDict, DatasetDict]:
    """Split every domain by document into a train and a held-out part, so that nothing leaks.

    A document's side is decided by a hash (SHA-256) of the seed and its group: its column `group` where the
    data set has one, else its own text. So identical documents, and all documents of one group, lie on one
    side, in all domains, whatever other documents are there, on every machine.

    If one side of a domain would be empty, the group whose hash is nearest to the border changes sides, in
    all domains. A domain with one group only (one book, say) is cut into contiguous blocks: its last
    `held_out_fraction` of characters, from a white space on, is held out; a warning names the domain.

    Returns:
        (train, held_out), with the names, order and columns of `domains`.

    Raises:
        ValueError: for a fraction outside (0, 1), or where a domain has too little text to split without a
            leak.
    """
    from datasets import DatasetDict

    check_ranges({"held_out_fraction": held_out_fraction, "seed": seed})
    if not domains:
        raise UsageError(
            "`domains` must hold text of at least one domain, but it is empty. Read some with `load_domains`."
        )
    hashes = {name: _group_hashes(name, dataset, seed) for name, dataset in domains.items()}
    blocks = {name: values[0] for name, values in hashes.items() if (values == values[0]).all()}
    _check_blocks_do_not_leak(blocks, hashes)
    splittable = {name: values for name, values in hashes.items() if name not in blocks}
    held_out_groups = _choose_held_out_groups(splittable, held_out_fraction)

    train, held_out = DatasetDict(), DatasetDict()
    for name, dataset in domains.items():
        if name in blocks:
            train[name], held_out[name] = _split_into_blocks(name, dataset, held_out_fraction)
        else:
            is_held_out = np.isin(hashes[name], held_out_groups)
            train[name] = dataset.select(np.flatnonzero(~is_held_out))
            held_out[name] = dataset.select(np.flatnonzero(is_held_out))
    return train, held_out


def _group_hashes(name: str, dataset: Dataset, seed: int) -> np.ndarray:
    """[documents] uint64: the first 8 bytes of the SHA-256 of seed and group (or text)."""
    if len(dataset) == 0:
        raise UsageError(f"Every domain must hold at least one document, but domain {name!r} has none. Remove it.")
    column = "group" if "group" in dataset.column_names else "text"
    if column not in dataset.column_names:
        raise UsageError(
            f"Every domain must have a column 'text', but domain {name!r} has {dataset.column_names}. Rename it."
        )
    digests = []
    rows = dataset.select_columns(column).with_format(None)
    for start in range(0, len(rows), READ_BATCH):
        for key in rows[start : start + READ_BATCH][column]:
            digests.append(hashlib.sha256(f"{seed}:{column}:{key}".encode()).digest()[:8])
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _check_blocks_do_not_leak(blocks: Mapping[str, int], hashes: Mapping[str, np.ndarray]) -> None:
    """A domain cut into blocks has its only group on both sides, so no other domain may hold that group."""
    for name, value in blocks.items():
        for other, values in hashes.items():
            if other != name and (values == value).any():
                raise UsageError(
                    f"`domains` cannot be split without a leak: domain {name!r} has a single document (or "
                    f"group), which is also in domain {other!r}. Add documents to {name!r}, or remove the "
                    "copy."
                )


def _choose_held_out_groups(hashes: Mapping[str, np.ndarray], held_out_fraction: float) -> np.ndarray:
    """The hashes of the held-out groups: those below the fraction, but both sides of a domain get one."""
    groups = {name: np.unique(values) for name, values in hashes.items()}  # sorted
    everywhere = np.unique(np.concatenate(list(groups.values()))) if groups else np.zeros(0, np.uint64)
    border = np.uint64(min(int(held_out_fraction * 2**64), 2**64 - 1))
    held_out = set(everywhere[everywhere < border].tolist())
    moved: set[int] = set()
    changed = True
    while changed:  # a move may empty a side of another domain; no group moves twice, so this ends
        changed = False
        for name in sorted(groups):
            members = groups[name].tolist()
            num_held_out = sum(group in held_out for group in members)
            if 0 < num_held_out < len(members):
                continue
            candidates = [group for group in members if group not in moved]
            if not candidates:
                raise UsageError(
                    f"`domains` cannot be split without a leak: the {len(members)} groups of domain {name!r} "
                    "are needed on one side by other domains. Add documents to it."
                )
            nearest = candidates[0] if num_held_out == 0 else candidates[-1]
            held_out ^= {nearest}
            moved.add(nearest)
            changed = True
    return np.array(sorted(held_out), dtype=np.uint64)


def _split_into_blocks(name: str, dataset: Dataset, held_out_fraction: float) -> tuple[Dataset, Dataset]:
    """Cut the only group of a domain: the first part for training, the last part held out."""
    warnings.warn(
        f"Domain {name!r} has a single document (or a single group), so it is split into contiguous blocks: "
        f"the last {held_out_fraction:.0%} of its characters is held out. Its held-out loss is that of a document "
        "the model has read the beginning of; several documents would say more.",
        UserWarning,
        stacklevel=3,
    )
    rows = dataset.with_format(None)
    texts = list(dict.fromkeys(rows["text"]))  # a repeated text must not be on both sides
    num_characters = sum(map(len, texts))
    num_train = max(1, min(round(num_characters * (1.0 - held_out_fraction)), num_characters - 1))
    train_texts, held_out_texts = _cut_texts(texts, num_train)
    if not train_texts or not held_out_texts:
        raise UsageError(
            f"Domain {name!r} must have text for both a train and a held-out part, but it has only "
            f"{num_characters} characters. Add documents to it."
        )
    return _block(train_texts, rows[0], dataset), _block(held_out_texts, rows[0], dataset)


def _block(texts: Sequence[str], first: Mapping[str, Any], dataset: Dataset) -> Dataset:
    """The texts as documents, with the other columns of the group's first one.

    It is a file of the cache, named by what it holds: `datasets` caches nothing that is made from a data set
    in memory, so that a long book would be tokenised anew in each run.
    """
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    columns = {column: first[column] for column in dataset.column_names if column != "text"}
    return Dataset.from_generator(
        _block_documents,
        features=dataset.features,
        gen_kwargs={"texts": tuple(texts), "columns": columns},  # `datasets` would take a list for shards
        fingerprint=Hasher.hash([BLOCKS_VERSION, list(texts), sorted(columns.items()), repr(dataset.features)]),
    )


def _block_documents(texts: Sequence[str], columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield {**columns, "text": text}


def _cut_texts(texts: Sequence[str], num_train_characters: int) -> tuple[list[str], list[str]]:
    """Cut the texts, in order, at the last white space before (else after) a number of characters."""
    train: list[str] = []
    held_out: list[str] = []
    for text in texts:
        if num_train_characters >= len(text):
            train.append(text)
        elif num_train_characters <= 0:
            held_out.append(text)
        else:
            cut = num_train_characters
            before = next((i for i in range(cut, 0, -1) if text[i].isspace() and text[:i].strip()), None)
            after = next((i for i in range(cut, len(text)) if text[i].isspace() and text[i:].strip()), None)
            cut = before if before is not None else after if after is not None else cut
            train.append(text[:cut])
            held_out.append(text[cut:])
        num_train_characters -= len(text)
    return [text for text in train if text.strip()], [text for text in held_out if text.strip()]
