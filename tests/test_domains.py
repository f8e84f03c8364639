"""Reading folders of text, and splitting them without a leak."""

import gzip
import json
import os
import sys
import tracemalloc
import warnings
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_shear.core import MissingExtraError, UsageError
from hf_shear.data import text_files
from hf_shear.data.domains import load_domains, split_domains

zstandard = pytest.importorskip("zstandard")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_jsonl(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_reads_every_kind_of_file_in_order(tmp_path):
    write_jsonl(tmp_path / "code" / "b.jsonl", [{"text": "b1", "other": 1}, {"text": "b2"}])
    write_jsonl(tmp_path / "code" / "a.json", [{"text": "a"}])
    (tmp_path / "code" / "c.txt").write_text("one\ntwo\n<|endoftext|>\nthree <|endoftext|>\n<|endoftext|>\n\n")
    (tmp_path / "code" / "deep").mkdir()
    Dataset.from_dict({"x": [1, 2], "text": ["p1", "p2"]}).to_parquet(tmp_path / "code" / "deep" / "d.parquet")
    (tmp_path / "books").mkdir()
    with gzip.open(tmp_path / "books" / "e.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write('{"text": "zipped \\u00e9"}\n\n')
    (tmp_path / "README.md").write_text("not data")

    domains = load_domains(tmp_path)

    assert isinstance(domains, DatasetDict)
    assert list(domains) == ["books", "code"]
    assert domains["books"]["text"][:] == ["zipped é"]
    assert domains["code"]["text"][:] == ["a", "b1", "b2", "one\ntwo", "three <|endoftext|>", "p1", "p2"]
    assert domains["code"].column_names == ["text"]


def test_each_file_of_a_flat_folder_is_a_domain(tmp_path):
    (tmp_path / "tales.v2.txt").write_text("once upon a time")
    write_jsonl(tmp_path / "Facts.jsonl", [{"content": "two and two"}])
    (tmp_path / ".hidden.txt").write_text("no")
    with pytest.raises(ValueError, match="`text_field`"):
        load_domains(tmp_path)
    domains = load_domains(tmp_path, text_field="content")
    assert {name: dataset["text"][:] for name, dataset in domains.items()} == {
        "Facts": ["two and two"],
        "tales.v2": ["once upon a time"],
    }


def test_drops_blank_documents_and_hidden_files(tmp_path):
    write_jsonl(tmp_path / "a" / "x.jsonl", [{"text": " \n\t"}, {"text": "kept"}, {"text": ""}])
    write_jsonl(tmp_path / "a" / ".hidden" / "y.jsonl", [{"text": "hidden folder"}])
    write_jsonl(tmp_path / "a" / ".z.jsonl", [{"text": "hidden file"}])
    assert load_domains(tmp_path)["a"]["text"][:] == ["kept"]


def test_group_field_is_kept(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t1", "module": "m1"}, {"text": "t2", "module": "m1"}])
    (tmp_path / "b.txt").write_text("u1\n<|endoftext|>\nu2")
    domains = load_domains(tmp_path, group_field="module")
    assert domains["a"]["group"][:] == ["m1", "m1"]
    assert domains["b"]["group"][:] == ["b.txt:0", "b.txt:1"]


def test_a_changed_file_is_read_again_and_the_folder_stays_clean(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    os.utime(file, ns=(1, 1))
    assert load_domains(tmp_path)["a"]["text"][:] == ["old"]
    first = load_domains(tmp_path)["a"]
    assert load_domains(tmp_path)["a"]._fingerprint == first._fingerprint
    file.write_text("new")
    os.utime(file, ns=(2, 2))
    assert load_domains(tmp_path)["a"]["text"][:] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"line 2 of '.*x\.jsonl' is malformed.*Repair or remove it"),
        ('{"body": "a", "id": 3}\n', r"`text_field`.*'text' is not in line 1 of .*\['body', 'id'\]"),
        ('{"text": 3}\n', r"1 of 1 rows do not\. The first: line 1 of .* has int"),
        ('{"text": "\\ud800"}\n', r"must be valid Unicode, but line 1 of"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_domains(tmp_path)


def test_bad_parquet_and_bytes_are_named(tmp_path):
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"'text' is not in row 1 of '.*p\.parquet', which has \['x'\]"):
        load_domains(tmp_path)
    (tmp_path / "p.parquet").unlink()
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"must be UTF-8, but '.*p\.txt' is not"):
        load_domains(tmp_path)


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode())


def parquet_bytes(folder: Path) -> bytes:
    Dataset.from_dict({"text": ["a" * 100]}).to_parquet(folder / "whole")
    return (folder / "whole").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl.gz", lambda _: b'{"text": "never compressed"}', r"BadGzipFile: Not a gzipped file"),
        ("x.jsonl.gz", lambda _: gzipped('{"text": "cut off"}')[:-12], r"EOFError: Compressed file ended"),
        ("x.jsonl.gz", lambda _: gzipped('{"text": "a"}')[:10] + b"\xff" * 20, r"error: Error -3 while decompressing"),
        ("x.parquet", lambda _: b"", "ArrowInvalid: .*size is 0 bytes"),
        ("x.parquet", lambda folder: parquet_bytes(folder)[:-20], "ArrowInvalid: .*magic bytes not found"),
    ],
)
def test_broken_files_are_named(tmp_path_factory, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content(tmp_path_factory.mktemp("whole")))
    with pytest.raises(ValueError, match=rf"whole and readable, but '.*{name}' is not \({reason}.*Write or download"):
        load_domains(tmp_path)


UNREAD = ["b.csv", "b.TSV", "b.docx", "b.arrow", "b.zip", "b.txt.bz2", "b.py", "b", "deep/b.parquet.gz"]


@pytest.mark.parametrize("name", UNREAD)
def test_a_file_of_another_kind_is_refused_or_left_out_with_a_warning(tmp_path, name):
    write_jsonl(tmp_path / "a" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "a" / name).write_bytes(b"?")
    told = rf"not read, 1: 'a/{name}' \(of another kind\)\."
    with pytest.raises(UsageError, match=told + r" The kinds .* \.jsonl, \.jsonl\.gz, .*`--skip_unreadable`"):
        load_domains(tmp_path)
    with pytest.warns(UserWarning, match=told):
        assert load_domains(tmp_path, skip_unreadable=True)["a"]["text"][:] == ["a"]


def test_links_that_lead_nowhere_and_pipes_are_refused(tmp_path):
    write_jsonl(tmp_path / "a" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "a" / "b.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "a" / "c.jsonl").symlink_to("c.jsonl")
    os.mkfifo(tmp_path / "a" / "d.jsonl")
    (tmp_path / "a" / "e").symlink_to(tmp_path)
    with pytest.raises(
        UsageError, match=r"not read, 4: 'a/b\.jsonl' \(FileNotFoundError: .*'a/c\.jsonl' \(OSError: Too man"
    ) as caught:
        load_domains(tmp_path)
    assert "'a/d.jsonl' (not a regular file), ..." in str(caught.value)
    for name in "bcd":
        (tmp_path / "a" / f"{name}.jsonl").unlink()
    with pytest.raises(UsageError, match=r"not read, 1: 'a/e/a' \(a link to a folder that it lies in\)"):
        load_domains(tmp_path)


def test_links_to_folders_and_files_are_followed(tmp_path):
    write_jsonl(tmp_path / "store" / "deep" / "x.jsonl", [{"text": "x"}])
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "store" / "deep" / "x.jsonl")
    (tmp_path / "data" / "a" / "y.jsonl").symlink_to(tmp_path / "store" / "deep" / "x.jsonl")
    (tmp_path / "data" / "b.jsonl").unlink()
    assert load_domains(tmp_path / "data")["a"]["text"][:] == ["x", "x"]


def test_notes_and_hidden_files_are_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    notes = (
        "README.md",
        "readme.txt",
        "LICENSE",
        "dataset_infos.json.lock",
        "dataset_info.json",
        "a.txt.sha256",
        "CITATION.cff",
    )
    for name in (*notes, ".b.csv", ".cache/b.csv", ".gz", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not data")
    write_jsonl(tmp_path / "license.jsonl", [{"text": "a domain of licences"}])
    assert list(load_domains(tmp_path)) == ["a", "license"]  # and warnings are errors


def zstd(text: str) -> bytes:
    return zstandard.compress(text.encode())


SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
PACKED = {"": str.encode, ".gz": lambda text: gzip.compress(text.encode()), ".zst": zstd}
ROWS = [{"text": f"t{number}", "n": number} for number in range(3)]
KINDS = {
    ".jsonl": "".join(json.dumps(row) + "\r\n" for row in ROWS),
    ".json": json.dumps(ROWS, indent=2),
    ".txt": "t0\n<|endoftext|>\nt1\r\n<|endoftext|>\r\nt2\n",
}


@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_is_read_in_every_compression(tmp_path, streaming):
    for kind, text in KINDS.items():
        for suffix, pack in PACKED.items():
            for mark in ("", "\ufeff"):
                (tmp_path / f"{kind[1:]}{suffix[1:]}{len(mark)}{kind}{suffix.upper()}").write_bytes(pack(mark + text))
    (tmp_path / "lines.json.gz").write_bytes(PACKED[".gz"](KINDS[".jsonl"]))
    (tmp_path / "frames.jsonl.zst").write_bytes(
        zstd('{"text": "t0"}\n{"te') + SKIPPABLE_FRAME + zstd('xt": "t1"}\n{"text": "t2"}')
    )
    (tmp_path / "members.jsonl.gz").write_bytes(
        PACKED[".gz"](KINDS[".jsonl"][:20]) + PACKED[".gz"](KINDS[".jsonl"][20:])
    )
    domains = load_domains(tmp_path, streaming=streaming)
    assert len(domains) == 21
    for name, dataset in domains.items():
        assert [row["text"] for row in dataset] == ["t0", "t1", "t2"], name


def test_zst_without_zstandard_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd('{"text": "a"}'))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        MissingExtraError, match=r"a\.jsonl\.zst' needs `zstandard`, .* `pip install 'hf-shear\[zst\]'`"
    ):
        load_domains(tmp_path)


ARRAY = [{"text": "short"}, {"text": "long " * 50_000, "[": "]},{"}, {"text": '\u00e9"\\'}, {"text": "x" * 70_000}]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_object_by_object(tmp_path, indent, monkeypatch):
    (tmp_path / "a.json").write_text(f" \n{json.dumps(ARRAY, indent=indent)}\n ")
    monkeypatch.setattr(text_files, "JSON_CHUNK", 7)
    rows = [row for _, row in text_files.read_rows(tmp_path / "a.json", "text", None)]
    assert rows == ARRAY


NESTED = '{"text": "a", "x": ' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.json", b'[{"text": "a"}, {"text": "b"}', r"object 3 of '.*x\.json' is malformed \(no ',' or '\]'"),
        ("x.json", b'[{"text": "a"}, {"text": "b', r"object 2 of '.*' is malformed \(Unterminated string"),
        ("x.json", b'[{"text": "a"} {"text": "b"}]', r"object 2 of '.*' is malformed \(no ','"),
        ("x.json", b'[{"text": "a"},]', r"object 2 of '.*' is malformed \(Expecting value"),
        ("x.json", b'[{"text": "a"}] x', r"must be one array, but '.*x\.json' goes on behind it"),
        ("x.json", b'["a", "b"]', r"object 1 of '.*' is a str\. Write one object per line; a \.json file may also be one"),
        ("x.json", b'{\n "text": "a"\n}', r"line 1 of '.*' is malformed .* may also be one array"),
        ("x.jsonl", b'[{"text": "a"}]', r"line 1 of '.*' is a list\. Write one object per line"),
        ("x.jsonl", NESTED.encode(), r"line 1 of '.*' is malformed \(nested too deeply\)"),
        ("x.json", f"[{NESTED}]".encode(), r"object 1 of '.*' is malformed \(nested too deeply\)"),
        ("x.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", r"line 1 of '.*' is malformed \(Exceeds the limit"),
        ("x.jsonl", b'{"text": "a\0b"}', r"line 1 of '.*' is malformed \(Invalid control character"),
        ("x.jsonl", '{"text": "a"}'.encode("utf-16"), r"must be UTF-8, but '.*x\.jsonl' is not"),
        ("x.txt", "text".encode("utf-16-le"), r"'.*x\.txt' holds NUL bytes: it is binary, or UTF-16\. Convert"),
        ("x.txt", b"a" * 101, r"at most 100 characters, but line 1 of '.*x\.txt' has more\. Split it into documents"),
        ("x.txt", b"a\n" * 60, r"at most 100 characters, but a document of '.*x\.txt' has more\."),
        ("x.jsonl.gz", gzip.compress(b"\0" * 10_000, mtime=0), r"at most 100 characters, but line 1 of"),
        ("x.json.gz", gzip.compress(b'[{"text": "' + b"a" * 300_000 + b'"}]', mtime=0),
         r"at most 100 characters, but object 1 of"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", r"readable, but '.*zst' is not \(EOFError: the compressed file ended"),
        ("x.jsonl.zst", zstd('{"text": "a"}\n')[:-3], r"\(EOFError: the compressed file ended before its last frame did\)"),
        ("x.jsonl.zst", zstd('{"text": "a"}\n') + b"garbage", r"whole and readable, but '.*zst' is not \(OSError: zstd"),
        ("x.txt.zst", b"never compressed", r"whole and readable, but '.*zst' is not \(OSError: zstd"),
        ("x.jsonl", b"", r"Every text file must hold a document, but '.*x\.jsonl' holds none\. Remove it"),
        ("x.txt.gz", b"", r"must hold a document, but '.*x\.txt\.gz' holds none"),
        ("x.json", b"[]", r"must hold a document, but '.*x\.json' holds none"),
        ("x.jsonl", b'{"text": "  "}\n', r"must hold a document, but '.*x\.jsonl' holds none"),
    ],
)  # fmt: skip
def test_a_fault_of_one_file_is_an_error_or_left_out_with_a_warning(tmp_path, monkeypatch, name, content, reason):
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 100 if "at most" in reason else 10**7)
    write_jsonl(tmp_path / "d" / "a.jsonl", [{"text": "whole"}])
    (tmp_path / "d" / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason) as caught:
        load_domains(tmp_path)
    assert str(caught.value).endswith("`--skip_unreadable`.") and len(str(caught.value)) < 600
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"Domain 'd': files were skipped \(`skip_unreadable`\), 1\. .*" + reason):
            found = load_domains(tmp_path, skip_unreadable=True)["d"]["text"][:]
        assert found[0] == "whole" and len(found) <= 3
    with pytest.warns(UserWarning, match=reason):
        assert [row["text"] for row in load_domains(tmp_path, skip_unreadable=True, streaming=True)["d"]] == found


def test_memory_is_bounded_when_a_line_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 10**6)
    for name, packed in (
        ("a.jsonl.gz", gzip.compress(b"0" * 10**8, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(b"0" * 10**8)),
    ):
        (tmp_path / name).write_bytes(packed)
        tracemalloc.start()
        with pytest.raises(UsageError, match="at most 1,000,000 characters"):
            list(text_files.read_rows(tmp_path / name, "text", None))
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**7
        tracemalloc.stop()


NO_TEXT = [{"text": "one"}, {"text": None}, {"text": 3}, {"other": "x"}, {"text": "two"}]


def test_rows_without_a_text_are_counted_and_refused_or_skipped(tmp_path):
    write_jsonl(tmp_path / "d" / "a.jsonl", [{"text": "zero"}])
    write_jsonl(tmp_path / "d" / "b.jsonl", NO_TEXT)
    Dataset.from_dict({"text": ["p", None]}).to_parquet(tmp_path / "d" / "c.parquet")
    with pytest.raises(UsageError) as caught:
        load_domains(tmp_path)
    assert str(caught.value) == (
        "`text_field` ('text') must hold a string in every row, but in domain 'd' 4 of 8 rows do not. The first: line 2 of"
        f" '{tmp_path}/d/b.jsonl' has null. Repair the file, or leave such rows out with `--skip_null_text`."
    )
    for _ in range(2):  # the second time from the cache
        with pytest.warns(
            UserWarning, match=r"Domain 'd': rows without a text were skipped \(`skip_null_text`\), 4\. The f"
        ):
            assert load_domains(tmp_path, skip_null_text=True)["d"]["text"][:] == ["zero", "one", "two", "p"]
    streamed = load_domains(tmp_path, streaming=True)["d"]
    with pytest.raises(UsageError, match=r"must hold a string in every row\. The first: line 2 of .* has null"):
        list(streamed)
    with pytest.warns(UserWarning, match=r"File '.*[bc].[a-z]*': rows without a text were skipped .* [13]\.") as caught:
        streamed = [row["text"] for row in load_domains(tmp_path, skip_null_text=True, streaming=True)["d"]]
    assert len(caught) == 2  # one for each file
    assert streamed == ["zero", "one", "two", "p"]


def test_a_wrong_field_is_told_whatever_is_skipped(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"content": "x"}, {"content": "y"}])
    told = r"'text' is not in line 1 of '.*a\.jsonl', which has \['content'\]\."
    for options in ({}, {"skip_unreadable": True}):
        with pytest.raises(
            UsageError, match=rf"^`text_field` must be .* {told} Name the right one with `--text_field`\.$"
        ):
            load_domains(tmp_path, **options)
    with pytest.raises(UsageError, match=rf"domain 'a' has none \(text files: \['a\.jsonl'\]; The first: {told}"):
        load_domains(tmp_path, skip_null_text=True)


def test_what_is_no_fault_stays_as_it_is(tmp_path):
    texts = ["nul \0 escaped", "\u2028 line \u0085 ends", "\U0001f600", "a\r\nb", " kept "]
    write_jsonl(tmp_path / "a b|c*<d>é.jsonl", [{"text": text} for text in texts])
    domains = load_domains(tmp_path)
    assert list(domains) == ["a b|c*<d>é"]
    assert domains["a b|c*<d>é"]["text"][:] == texts


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[31m", b"caf\xe9"])
def test_names_of_domains_are_printable(tmp_path, name):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".txt")).write_text("text")
    with pytest.raises(UsageError, match="A domain's name must be printable") as caught:
        load_domains(tmp_path)
    assert str(caught.value).isprintable()


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`data_dir` must be an existing folder, but it is '.*missing'"):
        load_domains(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"`data_dir` must hold text"):
        load_domains(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`data_dir` must hold text"):
        load_domains(tmp_path)
    write_jsonl(tmp_path / "full" / "x.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"domain 'empty' has none \(text files: \[\]\)"):
        load_domains(tmp_path)
    (tmp_path / "top.txt").write_text("a")
    with pytest.raises(ValueError, match=r"holds both: the file 'top\.txt' and the sub-folder 'empty'"):
        load_domains(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"'a\.jsonl' and 'a\.txt' in .* are both 'a'"):
        load_domains(tmp_path)


def texts(domains: DatasetDict) -> dict[str, list[str]]:
    return {name: dataset["text"][:] for name, dataset in domains.items()}


def test_split_is_stable_and_close_to_the_fraction():
    documents = [f"document {i}" for i in range(4000)]
    train, held_out = split_domains({"a": Dataset.from_dict({"text": documents})}, 0.2, seed=3)
    # 4000 draws of probability .2: the standard error of the share is sqrt(.2*.8/4000) = .0063
    assert abs(len(held_out["a"]) / 4000 - 0.2) < 4 * 0.0063
    assert sorted(train["a"]["text"][:] + held_out["a"]["text"][:]) == sorted(documents)
    # the side of a document does not depend on the others, nor on the process
    half_train, half_held_out = split_domains({"a": Dataset.from_dict({"text": documents[::2]})}, 0.2, seed=3)
    assert half_held_out["a"]["text"][:] == [text for text in held_out["a"]["text"][:] if int(text[9:]) % 2 == 0]
    assert [int(text[9:]) for text in held_out["a"]["text"][:5]] == [0, 4, 7, 12, 16]
    assert texts(split_domains({"a": Dataset.from_dict({"text": documents})}, 0.2, seed=4)[1]) != texts(held_out)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=12),
        min_size=1,
    ),
    st.sampled_from([0.02, 0.1, 0.5, 0.97]),
    st.integers(0, 3),
)
def test_no_group_is_on_both_sides(rows, fraction, seed):
    domains = {
        name: Dataset.from_dict(
            {"text": [f"text {group} {i}" for group, i in pairs], "group": [str(group) for group, _ in pairs]}
        )
        for name, pairs in rows.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            train, held_out = split_domains(domains, fraction, seed)
        except ValueError as error:
            assert "without a leak" in str(error)
            return
    blocks = {name for name, dataset in domains.items() if len(set(dataset["group"])) == 1}
    sides = [
        {group for name in domains if name not in blocks for group in part[name]["group"]} for part in (train, held_out)
    ]
    assert not sides[0] & sides[1]
    for name, dataset in domains.items():
        assert len(train[name]) and len(held_out[name])
        assert train[name].features == held_out[name].features == dataset.features
        if name not in blocks:
            assert sorted(train[name]["text"][:] + held_out[name]["text"][:]) == sorted(dataset["text"][:])


def test_identical_documents_stay_together():
    dataset = Dataset.from_dict({"text": [f"text {i % 20}" for i in range(60)]})
    other = Dataset.from_dict({"text": [f"text {i}" for i in range(20)]})
    train, held_out = split_domains({"a": dataset, "b": other}, 0.3)
    assert not {*train["a"]["text"], *train["b"]["text"]} & {*held_out["a"]["text"], *held_out["b"]["text"]}


def test_one_group_moves_when_a_side_is_empty():
    dataset = Dataset.from_dict({"text": ["a", "b", "c"]})
    train, held_out = split_domains({"d": dataset}, 1e-9)
    assert (len(train["d"]), len(held_out["d"])) == (2, 1)
    moved = held_out["d"]["text"][0]
    train, held_out = split_domains({"d": dataset}, 1 - 1e-9)
    assert (len(train["d"]), len(held_out["d"])) == (1, 2)
    assert moved in held_out["d"]["text"]  # the smallest hash is the first to be held out, the last to leave


def test_a_moved_group_moves_in_every_domain():
    shared = ["s1", "s2"]
    domains = {
        "few": Dataset.from_dict({"text": shared}),
        "many": Dataset.from_dict({"text": shared + [f"t{i}" for i in range(50)]}),
    }
    train, held_out = split_domains(domains, 1e-9)
    assert len(held_out["few"]) == 1
    assert held_out["few"]["text"][0] in held_out["many"]["text"]
    assert held_out["few"]["text"][0] not in train["many"]["text"]


def test_an_impossible_split_is_refused():
    # three domains of two groups each, in a ring: two groups of one domain must always share a side
    ring = {name: Dataset.from_dict({"text": list(pair)}) for name, pair in (("a", "xy"), ("b", "yz"), ("c", "zx"))}
    with pytest.raises(ValueError, match="cannot be split without a leak: the 2 groups of domain"):
        split_domains(ring, 0.5)


def test_one_document_is_cut_into_blocks_with_a_warning():
    text = " ".join(f"word{i}" for i in range(100))
    domains = {
        "book": Dataset.from_dict({"text": [text]}),
        "rest": Dataset.from_dict({"text": list("abcdefgh")}),
    }
    with pytest.warns(UserWarning, match="Domain 'book' has a single document") as caught:
        train, held_out = split_domains(domains, 0.25)
    assert len(caught) == 1
    (first,), (last,) = train["book"]["text"][:], held_out["book"]["text"][:]
    assert first + last == text
    assert last.startswith(" word")
    assert abs(len(last) / len(text) - 0.25) < 0.02


def test_blocks_of_the_same_text_have_the_same_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four")

    def fingerprints(fraction, domains=None):
        with pytest.warns(UserWarning, match="single"):
            parts = split_domains(domains or load_domains(tmp_path), fraction)
        return [part["a"]._fingerprint for part in parts]

    first = fingerprints(0.5)
    assert first[0] != first[1]
    assert fingerprints(0.5) == first
    in_memory = Dataset.from_dict({"text": ["one two three four"]}, features=load_domains(tmp_path)["a"].features)
    assert fingerprints(0.5, {"a": in_memory}) == first
    assert not set(fingerprints(0.3)) & set(first)
    with_group = in_memory.add_column("group", ["g"])
    assert not set(fingerprints(0.5, {"a": with_group})) & set(first)


def test_one_group_of_several_documents_is_cut_into_blocks():
    documents = ["alpha beta", "alpha beta", "gamma delta", "epsilon zeta"]
    dataset = Dataset.from_dict({"text": documents, "group": ["g"] * 4})
    with pytest.warns(UserWarning, match="single group"):
        train, held_out = split_domains({"a": dataset}, 0.5)
    assert train["a"]["text"][:] == ["alpha beta", "gamma"]  # the repeated document is there once
    assert held_out["a"]["text"][:] == [" delta", "epsilon zeta"]
    assert held_out["a"]["group"][:] == ["g", "g"]


def test_a_text_without_white_space_is_still_cut():
    with pytest.warns(UserWarning):
        train, held_out = split_domains({"a": Dataset.from_dict({"text": ["abcdefghij"]})}, 0.2)
    assert (train["a"]["text"][:], held_out["a"]["text"][:]) == (["abcdefgh"], ["ij"])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="only 1 characters"):
        split_domains({"a": Dataset.from_dict({"text": ["x"]})}, 0.2)


def test_a_block_that_is_in_another_domain_is_refused():
    domains = {
        "a": Dataset.from_dict({"text": ["same text"]}),
        "b": Dataset.from_dict({"text": ["same text", "x"]}),
    }
    with pytest.raises(ValueError, match="domain 'a' has a single document .* also in domain 'b'"):
        split_domains(domains)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_bad_fractions(fraction):
    with pytest.raises(ValueError, match="`held_out_fraction` must be (a finite number )?above 0 and below 1"):
        split_domains({"a": Dataset.from_dict({"text": ["a", "b"]})}, fraction)


def test_bad_domains_to_split():
    with pytest.raises(ValueError, match="domain 'a' has none"):
        split_domains({"a": Dataset.from_dict({"text": []})})
    with pytest.raises(ValueError, match=r"column 'text', but domain 'a' has \['body'\]"):
        split_domains({"a": Dataset.from_dict({"body": ["x"]})})
