"""Streams: what a share gives, from where it goes on, and that no two shares give the same."""

from __future__ import annotations

import json
from itertools import islice

import datasets
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from training_helpers import letter_tokenizer, random_documents

from hf_shear.data import first_sample, is_stream, load_domains, pack_domains
from hf_shear.data.streams import PackedStream, SampleStream, read_share

LENGTH = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_domain(folder, num_files: int, documents_per_file: int = 90, seed: int = 0) -> None:
    """Files of json lines; documents of 1 to 40 letters, so that samples hold parts of several or of one."""
    folder.mkdir()
    for number in range(num_files):
        texts = random_documents(1000 * seed + number, documents_per_file, length=40)
        rows = [{"text": text[: 1 + 7 * index % 40].replace(" ", "e")} for index, text in enumerate(texts)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def packed(folder, **options) -> PackedStream:
    domains = load_domains(folder.parent, streaming=True)
    return pack_domains(domains, letter_tokenizer(), LENGTH, **options)[folder.name]


def one_pass(stream, index: int = 0, num_shares: int = 1) -> list[tuple[dict, dict]]:
    """Samples and positions of a share's first pass."""
    found = []
    for sample, position in read_share(stream, index, num_shares, None):
        if position["pass"]:
            return found
        found.append((sample, json.loads(json.dumps(position))))


def ids_of(samples) -> list[tuple[int, ...]]:
    return [tuple(sample["input_ids"].tolist()) for sample, _ in samples]


def as_lists(samples) -> list[dict]:
    return [{name: values.tolist() for name, values in sample.items()} for sample, _ in samples]


@pytest.mark.parametrize("block_diagonal", [False, True])
def test_a_stream_gives_the_samples_of_the_packed_data_set(tmp_path, block_diagonal):
    write_domain(tmp_path / "books", num_files=2)
    whole = pack_domains(load_domains(tmp_path), letter_tokenizer(), LENGTH, block_diagonal=block_diagonal)["books"]
    stream = packed(tmp_path / "books", block_diagonal=block_diagonal)
    assert as_lists(one_pass(stream)) == list(whole)
    assert is_stream(stream) and not is_stream(whole)
    assert first_sample(stream)["input_ids"].tolist() == first_sample(whole)["input_ids"]


def test_a_mixture_of_data_sets_and_streams_is_packed_into_a_dict(tmp_path):
    write_domain(tmp_path / "a", num_files=1)
    stored, streamed = load_domains(tmp_path), load_domains(tmp_path, streaming=True)
    mixed = pack_domains({"a": stored["a"], "b": streamed["a"]}, letter_tokenizer(), LENGTH)
    assert type(mixed) is dict and isinstance(mixed["a"], Dataset) and isinstance(mixed["b"], PackedStream)
    assert type(pack_domains(stored, letter_tokenizer(), LENGTH)) is datasets.DatasetDict


@pytest.mark.parametrize("block_diagonal", [False, True])
def test_reading_goes_on_from_every_position(tmp_path, block_diagonal):
    write_domain(tmp_path / "books", num_files=3, documents_per_file=70)
    stream = packed(tmp_path / "books", block_diagonal=block_diagonal)
    expected = list(islice(read_share(stream, 0, 1, None), 700))
    assert expected[-1][1]["pass"] >= 2
    for start in range(0, 600, 23):
        position = json.loads(json.dumps(expected[start][1]))
        found = list(islice(read_share(stream, 0, 1, position), 70))
        assert as_lists(found) == as_lists(expected[start + 1 : start + 71])
        assert [position for _, position in found] == [position for _, position in expected[start + 1 : start + 71]]


def text_streams(folder):
    """The kinds of streams of `datasets`, each of six shards."""
    files = sorted(map(str, folder.glob("*.jsonl")))
    texts = [row["text"] for row in load_dataset("json", data_files=files, split="train")]
    for number in range(6):
        Dataset.from_dict({"text": texts[number::6]}).to_parquet(folder / f"{number}.parquet")
    parquet = sorted(map(str, folder.glob("*.parquet")))
    yield load_dataset("json", data_files=files, split="train", streaming=True)
    yield load_dataset("parquet", data_files=parquet, split="train", streaming=True)
    yield load_dataset("parquet", data_files=parquet, split="train", streaming=True).map(str_lower, batched=True)
    yield Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=6)


def str_lower(batch):
    return {"text": [text.lower() for text in batch["text"]]}


def test_all_kinds_of_streams_go_on_from_their_positions(tmp_path):
    write_domain(tmp_path / "books", num_files=6, documents_per_file=30)
    for dataset in text_streams(tmp_path / "books"):
        stream = PackedStream(dataset, letter_tokenizer(), LENGTH)
        expected = list(islice(read_share(stream, 1, 2, None), 200))
        for start in (0, 63, 99, 130):
            position = json.loads(json.dumps(expected[start][1]))
            found = list(islice(read_share(stream, 1, 2, position), 60))
            assert ids_of(found) == ids_of(expected[start + 1 : start + 61])
            assert len(json.dumps(position)) < 1200


@pytest.mark.parametrize(("num_shards", "num_shares"), [(8, 1), (8, 2), (8, 8), (5, 3), (3, 8), (1, 4)])
def test_shares_are_disjoint_and_complete_in_every_pass(num_shards, num_shares):
    rows = Dataset.from_dict({"input_ids": [[number] * 4 for number in range(200)]})
    stream = SampleStream(rows.to_iterable_dataset(num_shards=num_shards))
    first = None
    for number in range(2):
        shares = []
        for index in range(num_shares):
            samples = list(islice(read_share(stream, index, num_shares, None), 410))
            shares.append([int(s["input_ids"][0]) for s, position in samples if position["pass"] == number])
        assert sorted(value for share in shares for value in share) == list(range(200))
        if num_shares > 1:
            assert max(map(len, shares)) < 200
        first = first or shares
        assert [set(share) for share in shares] == [set(share) for share in first]  # a sample never changes its share


def test_a_later_pass_shuffles_the_files_of_a_share(tmp_path):
    write_domain(tmp_path / "books", num_files=5)
    samples = list(islice(read_share(packed(tmp_path / "books"), 0, 1, None), 1200))
    first, second = ([s for s in samples if s[1]["pass"] == number] for number in (0, 1))
    assert abs(len(first) - len(second)) <= 1 and ids_of(first) != ids_of(second)


def test_the_first_sample_is_not_consumed(tmp_path):
    write_domain(tmp_path / "books", num_files=1)
    stream = packed(tmp_path / "books")
    expected = ids_of(one_pass(stream))
    iterator = read_share(stream, 0, 1, None)
    found = [next(iterator)]
    assert tuple(first_sample(stream)["input_ids"].tolist()) == expected[0]
    found += islice(iterator, 50)
    assert ids_of(found) == expected[:51]


def rows_stream(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (SampleStream(rows_stream([{"text": "a"}])), r"must have the column 'input_ids', but they have \['text'\]"),
        (
            SampleStream(rows_stream([{"input_ids": [1, 2]}, {"input_ids": [1]}])),
            "must be of one length, but one has 1 tokens and others have 2. Pack all with one `max_length`",
        ),
        (
            PackedStream(rows_stream([{"body": "a"}]), letter_tokenizer(), 4),
            r"'text' of strings, but .* {'body': 'str'}",
        ),
        (PackedStream(rows_stream([{"text": None}]), letter_tokenizer(), 4), r"'text' of strings, .* 'NoneType'"),
        (PackedStream(rows_stream([{"text": "ab"}]), letter_tokenizer(), 4), "Share 1 of 1 holds not one sample. Give"),
    ],
)
def test_streams_without_samples_are_refused(stream, message):
    with pytest.raises(ValueError, match=message):
        list(islice(read_share(stream, 0, 1, None), 2))


def test_a_stream_that_is_split_already_is_refused():
    from datasets.distributed import split_dataset_by_node

    stream = SampleStream(split_dataset_by_node(rows_stream([{"input_ids": [1, 2]}] * 4), 0, 2))
    with pytest.raises(ValueError, match="split by node already. Give the whole of it"):
        next(read_share(stream, 0, 2, None))


def test_streamed_files_are_not_read_before_their_turn(tmp_path):
    write_domain(tmp_path / "books", num_files=2)
    domains = load_domains(tmp_path, streaming=True)
    assert domains["books"].num_shards == 2
    (tmp_path / "books" / "1.jsonl").write_text("broken")
    share = read_share(PackedStream(domains["books"], letter_tokenizer(), LENGTH), 0, 1, None)
    with pytest.raises(ValueError, match=r"line 1 of '.*1.jsonl' is malformed"):
        list(islice(share, 200))
