"""Streams in training: weights act at once, ranks differ, errors surface, and a resumed loader gives the same batches."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import islice

import pytest
import torch
from datasets import Dataset, IterableDataset
from training_helpers import letter_tokenizer, random_documents

from hf_shear.data import DynamicBatchSampler, DynamicDataLoader, StreamDataLoader
from hf_shear.data.streams import PackedStream

SIZES = {"a": 96, "b": 24, "c": 160}
FIRST = {"a": 0, "b": 100, "c": 200}  # input_ids[0] of each domain's samples counts from here
STEPS = 2


def sample_streams(num_shards: int = 8) -> dict[str, IterableDataset]:
    """Samples of three tokens that tell their number."""
    return {name: make_data_set(name).to_iterable_dataset(num_shards=num_shards) for name in SIZES}


def make_data_set(name: str) -> Dataset:
    return Dataset.from_dict({"input_ids": [[FIRST[name] + number, 7, 70_000] for number in range(SIZES[name])]})


def make_loader(rank: int = 0, world_size: int = 1, num_workers: int = 0, data=None, batch_size: int = 4, **options):
    data = sample_streams() if data is None else data
    sizes = {name: None if not isinstance(dataset, Dataset) else len(dataset) for name, dataset in data.items()}
    sampler = DynamicBatchSampler(sizes, batch_size, seed=3, gradient_accumulation_steps=STEPS, rank=rank,
                                  world_size=world_size, **options)  # fmt: skip
    return StreamDataLoader(data, sampler, num_workers=num_workers)


@pytest.fixture
def opened():
    """Loaders that are closed at the end of the test."""
    loaders = []
    yield lambda **options: loaders.append(make_loader(**options)) or loaders[-1]
    for loader in loaders:
        loader.close()


def next_global_batch(iterator) -> list[int]:
    """This rank's part of it."""
    return [int(number) for batch in islice(iterator, STEPS) for number in batch["input_ids"][:, 0]]


def run(loader, num_batches: int, iterator=None) -> list[list[int]]:
    iterator = iter(loader) if iterator is None else iterator
    batches = []
    for _ in range(num_batches):
        batches.append(next_global_batch(iterator))
        loader.sampler.commit()
    return batches


def domain_of(number: int) -> str:
    return "abc"[min(number // 100, 2)]


def test_batches_are_tensors_in_the_samplers_composition(opened):
    loader = opened()
    batch = next(iter(loader))
    assert batch["input_ids"].dtype == torch.int64 and batch["input_ids"].shape == (4, 3)
    assert torch.equal(batch["input_ids"], batch["labels"]) and (batch["input_ids"][:, 2] == 70_000).all()
    # a map-style sampler of the same seed gives every slot the same domain
    stored = DynamicBatchSampler(SIZES, 4, seed=3, gradient_accumulation_steps=STEPS)
    ends = torch.tensor(list(SIZES.values())).cumsum(0)
    for found in run(loader, 4):
        expected = ["abc"[int(torch.searchsorted(ends, index, right=True))] for index in stored.peek_global_batch()]
        assert [domain_of(number) for number in found] == expected
        stored.commit()
    assert loader.sampler.samples_consumed == stored.samples_consumed


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_new_weights_reach_the_very_next_batch_and_nothing_is_lost(opened, num_workers):
    loader = opened(num_workers=num_workers)
    iterator = iter(loader)
    found = run(loader, 2, iterator)
    time.sleep(0.05)  # time to read ahead
    for weights in ({"a": 0, "b": 0, "c": 1}, {"a": 1, "b": 0, "c": 0}):
        loader.sampler.set_mixture_weights(weights)
        wanted = max(weights, key=weights.get)
        batches = run(loader, 2, iterator)
        assert {domain_of(number) for batch in batches for number in batch} == {wanted}
        found += batches
    assert loader.weight_lag == DynamicDataLoader.weight_lag == 0
    for name, size in SIZES.items():  # in the order of the stream, each sample once
        drawn = [number for batch in found for number in batch if domain_of(number) == name]
        assert len(set(drawn)) == len(drawn) <= size
        if num_workers < 2:  # the first shard's samples, then those of the next
            assert sorted(drawn) == list(range(FIRST[name], FIRST[name] + len(drawn)))


def test_what_was_not_committed_is_given_again(opened):
    loader = opened()
    iterator = iter(loader)
    first = next_global_batch(iterator)
    second = next_global_batch(iterator)
    loader.sampler.commit()
    loader.sampler.set_mixture_weights(loader.sampler.mixture_weights)
    assert next_global_batch(iterator) == second != first
    assert next_global_batch(iter(loader)) == second
    loader.close()
    assert next_global_batch(iter(loader)) == second


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_batches", [1, 14])
def test_a_resumed_loader_goes_on_exactly(opened, num_workers, num_batches):
    loader = opened(num_workers=num_workers)
    iterator = iter(loader)
    run(loader, num_batches - 1, iterator)
    loader.sampler.set_mixture_weights({"a": 0.5, "b": 0.2, "c": 0.3})
    run(loader, 1, iterator)
    next(iterator)  # half of a global batch, not committed
    states = saved(loader)
    loader.sampler.set_mixture_weights(loader.sampler.mixture_weights)
    for _ in range(2):  # what was resumed can be resumed again
        expected = run(loader, 15, iterator)
        resumed = opened(num_workers=num_workers)
        restore(resumed, states)
        assert run(resumed, 15) == expected
        assert resumed.sampler.state_dict() == loader.sampler.state_dict()
        states = saved(resumed)


def saved(loader) -> str:
    return json.dumps([loader.sampler.state_dict(), loader.state_dict()])


def restore(loader, states: str) -> None:
    sampler_state, state = json.loads(states)
    loader.sampler.load_state_dict(sampler_state)
    loader.load_state_dict(state)


def test_a_thread_and_one_process_give_the_same(opened):
    thread, process = opened(), opened(num_workers=1)
    assert run(thread, 5) == run(process, 5)
    process.close()
    process.load_state_dict(thread.state_dict())
    assert run(thread, 5) == run(process, 5)


@pytest.mark.parametrize(("world_size", "num_shards"), [(2, 8), (8, 8), (4, 3)])
def test_ranks_read_disjoint_samples(opened, world_size, num_shards):
    streams = sample_streams(num_shards)
    loaders = [opened(rank=rank, world_size=world_size, data=streams, batch_size=1) for rank in range(world_size)]
    drawn = [[number for batch in run(loader, 5) for number in batch] for loader in loaders]
    everything = [number for numbers in drawn for number in numbers]
    assert len(everything) == 5 * STEPS * world_size
    assert sum(len(set(numbers)) for numbers in drawn) == len(set(everything))  # though one may be in its second pass
    # together they are as the sampler says: it agrees on all ranks without talking
    assert all(loader.sampler.state_dict() == loaders[0].sampler.state_dict() for loader in loaders)
    counts = {name: sum(domain_of(number) == name for number in everything) for name in SIZES}
    assert counts == loaders[0].sampler.samples_consumed


def test_a_new_pass_is_told_once_by_the_first_rank(opened):
    lines = []
    loader = opened(on_new_pass=lines.append, mixture_weights={"a": 0, "b": 1, "c": 0})
    batches = run(loader, 7)  # 8 of 24 samples each
    assert all(len(set(sum(batches[start : start + 3], []))) == 24 for start in (0, 3))
    loader.state_dict()
    assert lines == [
        f"Domain 'b' (a stream) is exhausted, as far as this process reads it: pass {number} over it begins in global"
        f" batch {batch}."
        for number, batch in ((2, 3), (3, 6))
    ]
    assert loader.sampler.passes == {}
    other = opened(rank=1, world_size=2, on_new_pass=lines.append, mixture_weights={"a": 0, "b": 1, "c": 0})
    run(other, 7)
    other.state_dict()
    assert len(lines) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streams_and_data_sets_mix(opened, num_workers):
    data = sample_streams() | {"b": make_data_set("b")}
    loader = opened(data=data, num_workers=num_workers)
    drawn = [number for batch in run(loader, 6) for number in batch]
    assert len(set(drawn)) == len(drawn) == 48
    counts = {name: sum(domain_of(number) == name for number in drawn) for name in SIZES}
    assert counts == loader.sampler.samples_consumed and min(counts.values()) > 8
    assert [n for n in drawn if domain_of(n) == "b"] != sorted(n for n in drawn if domain_of(n) == "b")
    assert list(loader.sampler.passes) == ["b"] and list(loader.state_dict()["streams"]) == ["a", "c"]


def failing(number: int) -> IterableDataset:
    """A stream whose file is not there any more after so many samples."""

    def rows():
        for index in range(number):
            yield {"input_ids": [FIRST["b"] + index, 0, 0]}
        raise FileNotFoundError("part-00007.parquet")

    return IterableDataset.from_generator(rows)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_reader_surfaces_with_the_domains_name(opened, num_workers):
    loader = opened(data=sample_streams() | {"b": failing(9)}, num_workers=num_workers)
    iterator = iter(loader)
    with pytest.raises(
        RuntimeError, match="(?s)stream of domain 'b' could not be read: FileNotFoundError: .*part-00007"
    ):
        for _ in range(10):
            run(loader, 1, iterator)
    assert loader.sampler.samples_consumed["b"] <= 9  # what was read before the error was trained on
    with pytest.raises(RuntimeError, match="(?s)domain 'b' .*part-00007"):  # and it stays an error
        run(loader, 1)


def test_a_killed_process_surfaces(opened):
    loader = opened(num_workers=1, mixture_weights={"a": 0, "b": 0, "c": 1})
    iterator = iter(loader)
    run(loader, 1, iterator)
    reader = loader._readers[-3]
    os.kill(reader._sources[0]._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="stream of domain 'c' could not be read: RuntimeError: DataLoader worker"):
        run(loader, 50, iterator)


def test_a_state_that_does_not_fit_is_refused(opened):
    loader = opened()
    run(loader, 2)
    state, sampler_state = loader.state_dict(), loader.sampler.state_dict()

    def refuse(message: str, changes: dict | None = None, **options) -> None:
        other = opened(**options)
        other.sampler.load_state_dict(sampler_state | {"global_batch_size": other.sampler.global_batch_size})
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state | (changes or {}))

    refuse("its `world_size` is 1 and here it is 2. Streams resume with as many processes", world_size=2)
    refuse("its `rank` is 1 and here it is 0.* each from its own file", {"rank": 1})
    refuse("its `global_batch_index` is 1 and here it is 2", {"global_batch_index": 1})
    refuse("'a' must have the shards .* it was saved with, 8, but it has 4", data=sample_streams(4))
    refuse(r"'a' was read in 1 share\(s\) .* makes it 2. Resume with `dataloader_num_workers=1` or 0", num_workers=2)
    refuse(r"must be of the streams \['a', 'b', 'c'\], but it is of \[\]", {"streams": {}})

    forgotten = opened()
    forgotten.sampler.load_state_dict(sampler_state)
    with pytest.raises(ValueError, match="sampler is at global batch 2, but the streams are at 0 .* Restore both"):
        next(iter(forgotten))
    stored = DynamicDataLoader({"b": make_data_set("b")}, DynamicBatchSampler({"b": SIZES["b"]}, 4))
    assert stored.state_dict() == {}
    stored.load_state_dict({})
    with pytest.raises(
        ValueError, match=r"written with streams \(\['a', 'b', 'c'\]\), but no domain .* is a stream now"
    ):
        stored.load_state_dict(state)


def test_data_that_are_not_the_samplers_are_refused():
    with pytest.raises(ValueError, match=r"sizes of the sampler's domains .*but they are \[\('a', None\)"):
        StreamDataLoader(sample_streams(), DynamicBatchSampler(SIZES, 4))


def test_samples_of_different_kinds_are_refused(opened):
    separate = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 9, "position_ids": [[0, 1, 2]] * 9})
    loader = opened(data={"a": sample_streams()["a"], "b": separate.to_iterable_dataset()})
    with pytest.raises(ValueError, match="Some samples of a batch have `position_ids` .* same `block_diagonal`"):
        run(loader, 1)


def test_the_state_of_seven_packed_domains_is_small(opened, tmp_path):
    texts = [{"text": text} for text in random_documents(0, 200)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    from datasets import load_dataset

    text = load_dataset("json", data_files=str(tmp_path / "x.jsonl"), split="train", streaming=True)
    streams = {f"domain_{n}": PackedStream(text, letter_tokenizer(), 16) for n in range(7)}
    loader = opened(data=streams, batch_size=32)
    run(loader, 9)
    assert 1000 < len(json.dumps(loader.state_dict())) + len(json.dumps(loader.sampler.state_dict())) < 6000
