"""Data too large to be walked: 1e9 samples behind the sampler, memory-mapped shards, and streams through ShearTrainer."""

from __future__ import annotations

import json
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from training_helpers import (
    LENGTH,
    RecordingTrainer,
    assert_equal_weights,
    held_out_domains,
    make_args,
    plain_model,
    train_domains,
    weights_of,
)

from examples.research.benchmarks import sampler_scale
from hf_shear import DynamicBatchSampler, ShearTrainer
from hf_shear.data import DynamicDataLoader
from hf_shear.data.loader import DomainSamples

SEVEN = {f"domain_{number}": 10**9 // 2**number for number in range(7)}
WEIGHTS = {name: 1 / (number + 1) for number, name in enumerate(SEVEN)}


class Simulated:
    """A packed data set that exists nowhere: every sample tells its number, in two tokens as one may not hold it."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        assert 0 <= index < self.size
        return {"input_ids": np.array(divmod(index, 2**20), dtype=np.int32)}


def test_a_billion_samples_start_and_resume_at_once():
    tracemalloc.start()
    begin = time.process_time()
    sampler = DynamicBatchSampler(SEVEN, 8, WEIGHTS, gradient_accumulation_steps=4, rank=300, world_size=512)
    loader = DynamicDataLoader({name: Simulated(size) for name, size in SEVEN.items()}, sampler)
    batches = iter(loader)
    assert next(batches)["input_ids"].shape == (8, 2)
    list(islice(batches, 3))
    sampler.commit()
    state = json.dumps(sampler.state_dict() | {"global_batch_index": 60_000})
    resumed = DynamicBatchSampler(SEVEN, 8, WEIGHTS, gradient_accumulation_steps=4, rank=300, world_size=512)
    resumed.load_state_dict(json.loads(state))
    next(iter(resumed))
    seconds = time.process_time() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1.0  # of this processor; tracing is a part of it
    assert peak < 5_000_000  # bytes: a global batch of 16,384 numbers, not an index of 2e9
    assert len(state) < 10_000


@pytest.mark.parametrize("world_size", [1, 2, 8, 512])
def test_ranks_draw_disjoint_samples_of_a_billion(world_size):
    state, drawn = None, []
    for rank in range(world_size):
        sampler = DynamicBatchSampler(SEVEN, 1024 // world_size, WEIGHTS, rank=rank, world_size=world_size)
        middle = {name: size // 2 for name, size in SEVEN.items()}
        state = state or sampler.state_dict() | {"samples_consumed": middle, "global_batch_index": 5}
        sampler.load_state_dict(state)
        drawn += next(iter(sampler))
    assert len(set(drawn)) == 1024
    assert drawn == sampler.peek_global_batch()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_new_weights_reach_the_next_batch_of_a_billion_samples(num_workers):
    sizes = {"a": 10**9, "b": 10**9}
    sampler = DynamicBatchSampler(sizes, 16, {"a": 1.0, "b": 0.0})
    loader = DynamicDataLoader({name: Simulated(size) for name, size in sizes.items()}, sampler,
                               num_workers=num_workers, prefetch_factor=4 if num_workers else None)  # fmt: skip
    batches = iter(loader)
    for weights in ({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0}):
        expected = [sampler.peek_global_batch()]
        found = next(batches)["input_ids"]
        sampler.commit()
        offset = 10**9 * sampler.mixture_weights["b"]
        assert [int(high) * 2**20 + int(low) + offset for high, low in found] == expected[0]
        sampler.set_mixture_weights(weights)
    loader.close()


def memory_mapped(folder: Path, name: str, first: int, num_samples: int) -> Dataset:
    data = Dataset.from_dict({"input_ids": [[first + index, 0] for index in range(num_samples)]})
    data.save_to_disk(folder / name)
    return Dataset.load_from_disk(str(folder / name), keep_in_memory=False)


def test_memory_mapped_shards_are_one_domain_without_being_joined(tmp_path):
    shards = [memory_mapped(tmp_path, str(number), 10 * number, 10) for number in range(4)]
    assert all(shard.cache_files for shard in shards)
    whole = DomainSamples(shards)
    assert len(whole) == 40
    assert [int(sample["input_ids"][0]) for sample in whole.__getitems__([39, 0, 17, 17, 20])] == [39, 0, 17, 17, 20]
    data = {"a": whole, "b": memory_mapped(tmp_path, "b", 40, 10)}
    for num_workers in (0, 2):
        sampler = DynamicBatchSampler({"a": 40, "b": 10}, 10)
        loader = DynamicDataLoader(data, sampler, num_workers=num_workers)
        for batch in islice(iter(loader), 2):
            assert batch["input_ids"][:, 0].tolist() == sampler.peek_global_batch()
            sampler.commit()
        loader.close()


def test_domains_of_different_columns_are_refused():
    data = [Dataset.from_dict({"input_ids": [[1]]}), Dataset.from_dict({"input_ids": [[1]], "position_ids": [[0]]})]
    with pytest.raises(
        ValueError, match=r"same columns, but they have \[\['input_ids'\], \['input_ids', 'position_ids'\]\]"
    ):
        DomainSamples(data)


# Streams through ShearTrainer


def streamed_domains(num_shards: int = 4) -> dict[str, IterableDataset]:
    return {name: data.to_iterable_dataset(num_shards=num_shards) for name, data in train_domains().items()}


def stream_trainer(folder, train=None, **changes) -> RecordingTrainer:
    fields = {
        "max_steps": 9,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "gradient_accumulation_steps": 2,
        "reference_losses": {"books": 3.0, "code": 3.9, "wiki": 3.5},
    } | changes
    train = streamed_domains() if train is None else train
    return RecordingTrainer(plain_model(), make_args(folder, **fields), train, held_out_domains())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_on_streams_that_is_resumed_is_the_run_that_never_stopped(tmp_path, capsys, num_workers):
    workers = {"dataloader_num_workers": num_workers}
    whole = stream_trainer(tmp_path / "whole", save_strategy="steps", save_steps=2, **workers)
    whole.train()
    assert len({json.dumps(record["mixture_weights"]) for record in whole.records}) == 3  # evaluations changed them
    assert "Domain 'wiki' (a stream) is exhausted" in capsys.readouterr().out
    for step in (4, 6):
        resumed = stream_trainer(tmp_path / "resumed", **workers)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        expected = [record for record in whole.records if record["step"] >= step]
        assert [r["input_ids"] for r in resumed.records] == [r["input_ids"] for r in expected]
        assert [r["loss"] for r in resumed.records] == [r["loss"] for r in expected]
        assert_equal_weights(resumed.model, weights_of(whole.model))


def test_num_tokens_and_a_mixture_of_streams_and_data_sets(tmp_path):
    mixed = train_domains() | {"code": streamed_domains()["code"]}
    trainer = stream_trainer(
        tmp_path, mixed, max_steps=-1, num_tokens=3 * 8 * LENGTH, eval_steps=3, dynamic_batches=False
    )
    assert trainer.sample_length == LENGTH and trainer.args.max_steps == 3
    trainer.train()
    assert len(trainer.records) == 6
    assert set(trainer.stage_record("recovery")["passes"]) == {"books", "wiki"}


def test_a_stream_that_fails_ends_training_with_its_name(tmp_path):
    def rows():
        yield from train_domains()["code"].select(range(5))
        raise OSError("the network is gone")

    trainer = stream_trainer(tmp_path, streamed_domains() | {"code": IterableDataset.from_generator(rows)})
    with pytest.raises(RuntimeError, match="stream of domain 'code' could not be read: OSError: the network is gone"):
        trainer.train()


def test_streams_are_checked_without_being_consumed(tmp_path):
    opened = []

    def rows(vocabulary: int):
        opened.append("rows")
        for number in range(30):
            yield {"input_ids": [number % vocabulary] * LENGTH}

    stream = IterableDataset.from_generator(rows, gen_kwargs={"vocabulary": 50})
    trainer = ShearTrainer(plain_model(), make_args(tmp_path), {"a": stream})
    loader = trainer.get_train_dataloader()
    assert [int(ids[0]) for ids in next(iter(loader))["input_ids"]] == [0, 1, 2, 3]
    loader.close()
    large = IterableDataset.from_generator(lambda: iter([{"input_ids": [61, 1]}]))
    with pytest.raises(ValueError, match=r"`train_dataset\['a'\]` holds token id 61, but the model's vocabulary"):
        ShearTrainer(plain_model(), make_args(tmp_path), {"a": large})
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(
        ValueError, match=r"`train_dataset\['a'\]`, a stream, gives no sample. The stream has no sample"
    ):
        ShearTrainer(plain_model(), make_args(tmp_path), {"a": empty})
    text = IterableDataset.from_generator(lambda: iter([{"text": "once"}]))
    with pytest.raises(ValueError, match=r"holds text that is not packed yet \(a\), which needs the model's tokenizer"):
        ShearTrainer(plain_model(), make_args(tmp_path), {"a": text})
    with pytest.raises(ValueError, match="`eval_dataset` must be packed data sets.* but a are streams. Take some"):
        ShearTrainer(plain_model(), make_args(tmp_path), {"a": stream}, {"a": stream})


# The simulation


def test_the_simulation_prints_a_table_and_json(capsys):
    sampler_scale.main(["--nodes", "1", "--window", "5", "--num_tokens", "1e9", "--max_length", "65536"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert list(result) == ["benchmark", "environment", "arguments", "run", "sampler", "streams", "checks"]
    assert result["run"]["world_size"] == 8 and result["run"]["global_batch_size"] == 16
    assert result["checks"] == {"global_batches_disjoint": 3, "samples_without_repeat": 80}
    assert 0 < result["sampler"]["state_bytes"] < 10_000 and 0 < result["streams"]["state_bytes"] < 10_000
    assert any("global_batch" in line for line in table)


def test_the_simulation_finds_shared_and_repeated_samples(monkeypatch):
    args = sampler_scale.parse_arguments(["--nodes", "1", "--window", "5"])
    same = sampler_scale.make_sampler
    with monkeypatch.context() as patch:
        patch.setattr(sampler_scale, "make_sampler", lambda args, rank=0: same(args, 0))
        with pytest.raises(RuntimeError, match="ranks' samples of global batch 0 are not disjoint"):
            sampler_scale.check_ranks(args)
    monkeypatch.setattr(sampler_scale, "domain_sizes", lambda args: dict.fromkeys(sampler_scale.MIXTURE, 20))
    with pytest.raises(RuntimeError, match="samples repeat within a pass"):
        sampler_scale.check_window(args)
