"""One file of text: which kinds are read, and its rows, one after another. Memory is bounded, whatever a file expands to.

A kind is how rows are told apart; a compression is how bytes are packed. A file's name ends in both.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..core import MissingExtraError, UsageError

KINDS = (".jsonl", ".json", ".txt", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")
TEXT_SUFFIXES = tuple(kind + packed for kind in KINDS for packed in COMPRESSIONS if kind != ".parquet" or not packed)

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""A line of a .txt file that is exactly this ends a document."""

MAX_CHARACTERS = 2**28
"""Of one document, or one line or object of json: more is no document, but a file of another kind, or a bomb."""

PARQUET_BATCH = 256  # rows read at once
ZSTD_CHUNK = 1024  # compressed bytes taken at once: 4 of them expand to 128 KiB at the very most
JSON_CHUNK = 2**16  # characters

_DECODER = json.JSONDecoder()
_NOT_WHITE_SPACE = re.compile(r"\S")
_LONGEST_TOKEN = 32  # characters: an error farther from the end of what was read is no lack of text
_ONE_PER_LINE = "Write one object per line; a .json file may also be one array of objects."


def text_suffix(path: Path) -> str:
    """The suffix in `TEXT_SUFFIXES` that the file's name ends with, as it is written there, or ''."""
    for suffix in sorted(TEXT_SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[-len(suffix) :]
    return ""


def check_can_decompress(path: Path) -> None:
    """Raise MissingExtraError for a .zst file where `zstandard` is not installed."""
    if text_suffix(path).lower().endswith(".zst"):
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                f"{str(path)!r} needs `zstandard`, which is not installed. Run `pip install 'hf-shear[zst]'`, or"
                " decompress the file."
            ) from error


def read_rows(path: Path, text_field: str, group_field: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a file, in order. `where` names the place in messages.

    A row has the file's own fields. A document of a .txt file has the two fields that are asked for: its text, and as its
    group the file and the document's number.

    Raises:
        UsageError: the file is not whole, not readable, or not of its kind. Names it, and the place where it can.
    """
    import pyarrow as pa

    suffix = text_suffix(path).lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path, {text_field, group_field})
        elif suffix.startswith(".txt"):
            for number, text in enumerate(_txt_documents(path)):
                group = {} if group_field is None else {group_field: f"{path.name}:{number}"}
                yield f"document {number + 1}", {text_field: text, **group}
        elif suffix.startswith(".json") and not suffix.startswith(".jsonl") and _is_array(path):
            yield from _json_array(path)
        else:
            yield from _json_lines(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"Text files must be UTF-8, but {str(path)!r} is not ({error}). Convert the file.") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # gzip raises any of the first three
        raise UsageError(
            f"Text files must be whole and readable, but {str(path)!r} is not ({type(error).__name__}: {error}). "
            "Write or download it again, or remove it."
        ) from error


@contextmanager
def _open_text(path: Path) -> Iterator[io.TextIOBase]:
    """The file's characters, decompressed while they are read."""
    suffix = text_suffix(path).lower()
    with path.open("rb") as raw:
        stream: BinaryIO | gzip.GzipFile | io.BufferedReader = raw
        if suffix.endswith(".gz"):
            stream = gzip.open(raw, "rb")
        elif suffix.endswith(".zst"):
            stream = io.BufferedReader(_ZstdReader(raw))
        with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
            yield text


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or several frames. `zstandard`'s own reader takes a file that is cut off for whole."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw, self._error = raw, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame, self._taken, self._given = None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._given:
            self._taken = self._taken or self._raw.read(ZSTD_CHUNK)
            if not self._taken:
                if self._frame is not None:
                    raise EOFError("the compressed file ended before its last frame did")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._given = memoryview(self._frame.decompress(self._taken))
            except self._error as error:
                raise OSError(str(error)) from error
            self._taken = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._given))
        buffer[:count], self._given = self._given[:count], self._given[count:]
        return count


def _lines(path: Path) -> Iterator[str]:
    with _open_text(path) as stream:
        number = 1
        while line := stream.readline(MAX_CHARACTERS + 1):
            if len(line) > MAX_CHARACTERS:
                raise _too_long(f"line {number} of {str(path)!r}")
            yield line
            number += 1


def _too_long(where: str) -> UsageError:
    return UsageError(
        f"A document may have at most {MAX_CHARACTERS:,} characters, but {where} has more. Split it into documents (in a"
        f" .txt file, lines {DOCUMENT_SEPARATOR!r} separate them), or remove the file."
    )


def _txt_documents(path: Path) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    for line in _lines(path):
        if "\0" in line:
            raise UsageError(
                f"Text files must be UTF-8 text, but {str(path)!r} holds NUL bytes: it is binary, or UTF-16. Convert it,"
                " or remove it."
            )
        if line.rstrip("\n") == DOCUMENT_SEPARATOR:
            yield "".join(lines).strip("\n")
            lines, length = [], 0
            continue
        lines.append(line)
        length += len(line)
        if length > MAX_CHARACTERS:
            raise _too_long(f"a document of {str(path)!r}")
    yield "".join(lines).strip("\n")


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every line that is not blank is an object."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
                raise _malformed(path, where, error) from error
            yield where, _checked_object(path, where, row)


def _is_array(path: Path) -> bool:
    """Whether the first character that is no white space opens an array."""
    with _open_text(path) as stream:
        while (character := stream.read(1)).isspace():
            pass
    return character == "["


def _json_array(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of one array, of which no more is in memory than one object and a chunk."""
    with _open_text(path) as stream:
        text, number = _JsonText(path, stream), 0
        text.take()  # the opening bracket
        while text.next_character() != "]" or number and text.after_comma:
            number += 1
            where = f"object {number}"
            if number > 1 and not text.after_comma:
                raise _malformed(path, where, ValueError("no ',' or ']' before it"))
            yield where, _checked_object(path, where, text.value(where))
            text.after_comma = text.next_character() == ","
            if text.after_comma:
                text.take()
        text.take()
        if text.next_character():
            raise UsageError(f"A .json file must be one array, but {str(path)!r} goes on behind it. {_ONE_PER_LINE}")


class _JsonText:
    """A text of json that is read on while it is parsed."""

    def __init__(self, path: Path, stream: io.TextIOBase) -> None:
        self._path, self._stream = path, stream
        self._text, self._at = "", 0
        self.after_comma = False

    def next_character(self) -> str:
        """The next character that is no white space, or '' at the end."""
        while True:
            found = _NOT_WHITE_SPACE.search(self._text, self._at)
            if found is not None:
                self._at = found.start()
                return found[0]
            self._text, self._at = self._stream.read(JSON_CHUNK), 0
            if not self._text:
                return ""

    def take(self) -> None:
        """Go past that character."""
        self.next_character()
        self._at += 1

    def value(self, where: str) -> Any:
        """The next value; more is read until it is whole."""
        size = JSON_CHUNK
        self.next_character()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN
                more = self._stream.read(size) if cut_off else ""
                if not more:
                    raise _malformed(self._path, where, error) from error
            except (ValueError, RecursionError) as error:
                raise _malformed(self._path, where, error) from error
            self._text, self._at = self._text[self._at :] + more, 0
            size *= 2  # so that a long object is not parsed anew for every chunk
            if len(self._text) > 2 * MAX_CHARACTERS:
                raise _too_long(f"{where} of {str(self._path)!r}")


def _checked_object(path: Path, where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(
            f"Json files must hold objects, but {where} of {str(path)!r} is a {type(row).__name__}. {_ONE_PER_LINE}"
        )
    return row


def _malformed(path: Path, where: str, error: Exception) -> UsageError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return UsageError(
        f"Json files must hold objects, but {where} of {str(path)!r} is malformed ({reason}). Repair or remove it."
        f" {_ONE_PER_LINE}"
    )


def _parquet_rows(path: Path, wanted: set[str | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Only the columns that are wanted are read; the names of the others stand for them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        present = dict.fromkeys(parquet.schema_arrow.names)
        columns = [name for name in present if name in wanted]
        number = 0
        if not columns:
            for number in range(1, parquet.metadata.num_rows + 1):
                yield f"row {number}", present
            return
        for batch in parquet.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", present | row
