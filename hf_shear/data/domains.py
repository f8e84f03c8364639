"""Text by domain: reading a folder into a `DatasetDict`, and splitting it into train and held-out parts.

A domain is a named source of documents (books, code, wiki, ...). Everything here works on documents: one row
is one document, in the column `text` (and, where asked for, `group`: documents of one group belong together,
such as the versions of one file). Tokens come later, in `hf_shear.data.packing`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import UsageError, check_ranges

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".txt", ".parquet")
DOCUMENT_SEPARATOR = "<|endoftext|>"
"""A line of a .txt file that is exactly this ends a document."""

UNREAD_SUFFIXES = (
    *(".7z", ".bz2", ".gz", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"),
    *(".arrow", ".avro", ".csv", ".feather", ".jsonlines", ".ndjson", ".orc", ".tsv", ".warc", ".xml"),
)
"""Files that end so probably hold text that the user means to be read, and are not; others pass for notes."""

NAMES_SHOWN = 3  # files that the warning of unread files names

READ_BATCH = 256  # rows read or hashed at once: bounds memory, does not change any result
READER_VERSION = 1  # part of the cache's key: raise it when a reader yields other documents for the same file
BLOCKS_VERSION = 1  # likewise, for the parts of a domain that is split into blocks


def load_domains(
    data_dir: str | Path, text_field: str = "text", *, group_field: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Read a folder of text into one data set per domain.

    A folder that holds text files makes each file a domain, named by the file without its suffix. A folder
    that holds sub-folders makes each sub-folder a domain, with all the text files below it. Text files beside
    sub-folders are refused, because it is not clear which was meant. Other files (README.md, LICENSE), and
    hidden files and folders, are ignored; a warning names those that look like text of another kind
    (`UNREAD_SUFFIXES`). Kinds: .jsonl, .jsonl.gz and .json (one object per line), .parquet,
    and .txt, where a line `<|endoftext|>` separates documents and a file without one is a document. Documents
    of white space alone are dropped. The Arrow files go to the cache of `datasets`; nothing is written to
    `data_dir`.

    Args:
        data_dir: the folder.
        text_field: the field (json) or column (parquet) that holds the text.
        group_field: if given, a field that names the group of a document (see `split_domains`), kept as the
            column `group`. A .txt file has no fields: its documents form one group each.
        streaming: read nothing now, and write no Arrow files. Each file is a shard of its domain's stream; what cannot be
            read is told when its turn comes.

    Returns:
        name -> `Dataset` (or `IterableDataset`) with the column `text` (and `group`), sorted by name.

    Raises:
        ValueError: if the folder is missing or without text, if a domain has no document, or if a file cannot
            be read: malformed json, a missing field, a text that is not a string, or a broken file.
    """
    from datasets import DatasetDict, IterableDatasetDict

    found, unread = _find_domains(Path(data_dir))
    _warn_of_unread_files(Path(data_dir), unread)
    for name, files in found.items():
        if not files:
            raise _no_documents(name, ())
    read = _stream_domain if streaming else _read_domain
    domains = {name: read(name, files, text_field, group_field) for name, files in found.items()}
    return IterableDatasetDict(domains) if streaming else DatasetDict(domains)


def _find_domains(data_dir: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of each domain, both sorted, and files that look like text and are not read; the folder is walked once.

    See `load_domains` for the rules.
    """
    if not data_dir.is_dir():
        raise UsageError(
            f"`data_dir` must be an existing folder, but it is {str(data_dir)!r}. "
            "Give a folder with one sub-folder or one file per domain."
        )
    entries = sorted(path for path in data_dir.iterdir() if not path.name.startswith("."))
    top_files = [path for path in entries if path.is_file()]
    files = [path for path in top_files if _suffix(path)]
    folders = [path for path in entries if path.is_dir()]
    if files and folders:
        raise UsageError(
            f"`data_dir` must hold either text files or sub-folders, but {str(data_dir)!r} holds both: the "
            f"file {files[0].name!r} and the sub-folder {folders[0].name!r}. Give each domain a sub-folder "
            "of its own."
        )
    found: dict[str, list[Path]] = {}
    for file in files:
        name = file.name[: -len(_suffix(file))]
        if name in found:
            raise UsageError(
                f"`data_dir` must name each domain once, but {found[name][0].name!r} and {file.name!r} in "
                f"{str(data_dir)!r} are both {name!r}. Rename one, or put both into a sub-folder {name!r}."
            )
        found[name] = [file]
    below = {folder.name: _visible_files(folder) for folder in folders}
    for name, paths in below.items():
        found[name] = [path for path in paths if _suffix(path)]
    if not any(found.values()):
        raise UsageError(
            f"`data_dir` must hold text, but no file below {str(data_dir)!r} ends in "
            f"{', '.join(TEXT_SUFFIXES)}. Give a folder with one sub-folder or one file per domain."
        )
    unread = [
        path
        for path in sorted([*top_files, *(path for paths in below.values() for path in paths)])
        if path.name.lower().endswith(UNREAD_SUFFIXES) and not _suffix(path)
    ]
    return dict(sorted(found.items())), unread


def _warn_of_unread_files(data_dir: Path, unread: list[Path]) -> None:
    """One warning of all the files that look like text or data, and are of no kind that is read."""
    if unread:
        shown = [path.relative_to(data_dir).as_posix() for path in unread[:NAMES_SHOWN]]
        names = ", ".join(map(repr, shown)) + (", ..." if len(unread) > NAMES_SHOWN else "")
        warnings.warn(
            f"`data_dir` ({str(data_dir)!r}) holds files that look like text but are not read: {len(unread)} "
            f"({names}). The kinds that are read are {', '.join(TEXT_SUFFIXES)}. Convert the files, or move them "
            "out of the folder, which also silences this, as does"
            " warnings.filterwarnings('ignore', message='`data_dir`').",
            UserWarning,
            stacklevel=3,
        )


def _suffix(path: Path) -> str:
    """The suffix in `TEXT_SUFFIXES` that the file's name ends with, as it is written there, or ''."""
    for suffix in TEXT_SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[-len(suffix) :]
    return ""


def _visible_files(folder: Path) -> list[Path]:
    """The files below a folder, sorted, without hidden ones and those in hidden folders."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for path in (Path(parent, name) for name in files if not name.startswith(".")) if path.is_file()]
    return sorted(found)


def _read_domain(name: str, files: list[Path], text_field: str, group_field: str | None) -> Dataset:
    """One domain's documents, read through the cache, whose key holds the size and time of every file."""
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    columns = ["text"] if group_field is None else ["text", "group"]
    stats = [path.stat() for path in files]
    try:
        return Dataset.from_generator(
            _documents,
            features=Features({column: Value("large_string") for column in columns}),
            gen_kwargs={
                "name": name,
                "files": tuple(str(path.absolute()) for path in files),
                "text_field": text_field,
                "group_field": group_field,
                "cache_key": (READER_VERSION, *((stat.st_size, stat.st_mtime_ns) for stat in stats)),
            },
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _stream_domain(name: str, files: list[Path], text_field: str, group_field: str | None) -> IterableDataset:
    """One domain's documents as a stream, of which every file is a shard."""
    from datasets import Features, IterableDataset, Value

    columns = ["text"] if group_field is None else ["text", "group"]
    return IterableDataset.from_generator(
        _documents_of_files,
        features=Features({column: Value("large_string") for column in columns}),
        gen_kwargs={
            "files": [str(path.absolute()) for path in files],  # datasets deals a list to shards
            "text_field": text_field,
            "group_field": group_field,
        },
    )


def _no_documents(name: str, files: Sequence[str]) -> UsageError:
    return UsageError(
        f"Every domain must hold at least one document, but domain {name!r} has none "
        f"(text files: {[Path(file).name for file in files]}). Add text to it, or remove it."
    )


def _documents(
    name: str,
    files: tuple[str, ...],
    text_field: str,
    group_field: str | None,
    cache_key: tuple[Any, ...],
) -> Iterator[dict[str, str]]:
    """The documents of a domain's files, in order. `cache_key` tells one state of the files from another."""
    is_empty = True
    for document in _documents_of_files(files, text_field, group_field):
        is_empty = False
        yield document
    if is_empty:
        raise _no_documents(name, files)


def _documents_of_files(files: Sequence[str], text_field: str, group_field: str | None) -> Iterator[dict[str, str]]:
    """The documents of some files, in order, without those of white space alone."""
    import pyarrow as pa

    for file in files:
        path = Path(file)
        kind = _suffix(path).lower()
        if kind == ".txt":
            rows = _txt_rows(path)
        elif kind == ".parquet":
            rows = _parquet_rows(path, text_field, group_field)
        else:
            rows = _json_rows(path, text_field, group_field)
        try:
            for text, group in rows:
                if text.strip():
                    yield {"text": text} if group_field is None else {"text": text, "group": group}
        except UnicodeDecodeError as error:
            raise UsageError(f"Text files must be UTF-8, but {file!r} is not ({error}). Convert the file.") from error
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # gzip raises any of the first three
            raise UsageError(
                f"Text files must be whole and readable, but {file!r} is not ({type(error).__name__}: {error}). "
                "Write or download it again, or remove it."
            ) from error


def _txt_rows(path: Path) -> Iterator[tuple[str, str]]:
    """(text, group) of the documents of a .txt file; the group is the file and the document's number."""
    lines: list[str] = []
    number = 0
    with path.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if line.rstrip("\n") == DOCUMENT_SEPARATOR:
                yield "".join(lines).strip("\n"), f"{path.name}:{number}"
                lines, number = [], number + 1
            else:
                lines.append(line)
    yield "".join(lines).strip("\n"), f"{path.name}:{number}"


def _json_rows(path: Path, text_field: str, group_field: str | None) -> Iterator[tuple[str, str]]:
    """(text, group) of every line of a file of json objects; blank lines are skipped."""
    opener: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {str(path)!r}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"Every line of a .jsonl or .json file must be one json object, but {where} is malformed "
                    f"({error}). Repair or remove the line."
                ) from error
            if not isinstance(row, dict):
                raise UsageError(
                    f"Every line of a .jsonl or .json file must be one json object, but {where} holds a "
                    f"{type(row).__name__}. Write one object per line."
                )
            text = _field(row, "text_field", text_field, where)
            yield text, "" if group_field is None else _field(row, "group_field", group_field, where)


def _parquet_rows(path: Path, text_field: str, group_field: str | None) -> Iterator[tuple[str, str]]:
    """(text, group) of every row of a parquet file; only these columns are read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        present = parquet.schema_arrow.names
        wanted = [field for field in (text_field, group_field) if field in present]
        number = 0
        for batch in parquet.iter_batches(batch_size=READ_BATCH, columns=wanted or present):
            for row in batch.to_pylist():
                number += 1
                shown = dict.fromkeys(present) | row
                where = f"row {number} of {str(path)!r}"
                text = _field(shown, "text_field", text_field, where)
                yield text, "" if group_field is None else _field(shown, "group_field", group_field, where)


def _field(row: Mapping[str, Any], argument: str, field: str, where: str) -> str:
    """`row[field]`, a string that can be stored as UTF-8."""
    if field not in row:
        raise UsageError(
            f"`{argument}` must be a field of every document, but {field!r} is not in {where}, which has "
            f"{sorted(row)}. Name the right field."
        )
    value = row[field]
    if not isinstance(value, str):
        raise UsageError(
            f"`{argument}` ({field!r}) must hold strings, but {where} has a {type(value).__name__}. "
            "Name another field, or convert the file."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"`{argument}` ({field!r}) must be valid Unicode, but {where} is not ({error}). Repair the document."
        ) from error
    return value


def split_domains(
    domains: Mapping[str, Dataset], held_out_fraction: float = 0.1, seed: int = 0
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

    check_ranges({"held_out_fraction": held_out_fraction})
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
    for batch in dataset.select_columns(column).with_format(None).iter(batch_size=READ_BATCH):
        for key in batch[column]:
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
