"""The loader: what training gets is what the sampler says now, however far ahead workers have read."""

from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers.trainer_utils import has_length

from hf_shear.data.loader import DynamicDataLoader, collate_domain_samples
from hf_shear.data.sampler import DynamicBatchSampler

SIZES = {"a": 40, "b": 5, "c": 100}
STEPS = 2


def make_datasets() -> dict[str, Dataset]:
    """Samples of three tokens that tell their global index."""
    datasets, offset = {}, 0
    for name, size in SIZES.items():
        ids = [[offset + i, 7, 70_000] for i in range(size)]
        datasets[name] = Dataset.from_dict({"input_ids": ids})
        offset += size
    return datasets


def make_sampler(seed: int = 3) -> DynamicBatchSampler:
    return DynamicBatchSampler(SIZES, 4, seed=seed, gradient_accumulation_steps=STEPS)


def make_loader(sampler: DynamicBatchSampler, num_workers: int = 0, **arguments) -> DynamicDataLoader:
    return DynamicDataLoader(make_datasets(), sampler, num_workers=num_workers, **arguments)


def next_global_batch(iterator) -> list[int]:
    return [int(i) for micro_batch in islice(iterator, STEPS) for i in micro_batch["input_ids"][:, 0]]


def test_collate_makes_long_tensors():
    samples = [{"input_ids": [1, 70_000]}, {"input_ids": np.array([3, 4], dtype=np.int32)}]
    batch = collate_domain_samples(samples)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1, 70_000], [3, 4]]
    batch["labels"][0, 0] = -100
    assert batch["input_ids"][0, 0] == 1


def test_the_first_token_of_a_separate_document_has_no_label():
    batch = collate_domain_samples([{"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1]}])
    assert (batch["position_ids"].dtype, batch["position_ids"].tolist()) == (torch.int64, [[0, 1, 0, 1]])
    assert batch["labels"].tolist() == [[-100, 6, -100, 8]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]]


@pytest.mark.parametrize(("num_workers", "persistent_workers"), [(0, None), (2, None), (2, False)])
def test_new_weights_reach_the_very_next_batch_and_nothing_is_lost(num_workers, persistent_workers):
    """Three batches, new weights, three batches, a restored state: as a sampler that never reads ahead."""
    sampler, reference = make_sampler(), make_sampler()
    loader = make_loader(sampler, num_workers, persistent_workers=persistent_workers)
    iterator = iter(loader)

    def both() -> None:
        expected = reference.peek_global_batch()
        reference.commit()
        assert next_global_batch(iterator) == expected
        sampler.commit()

    for _ in range(3):
        both()
    for weights in ({"a": 0.0, "b": 0.9, "c": 0.1}, {"a": 1.0, "b": 0.0, "c": 0.0}):
        sampler.set_mixture_weights(weights)
        reference.set_mixture_weights(weights)
        for _ in range(3):
            both()
    assert sampler.state_dict() == reference.state_dict()

    state = make_sampler().state_dict()
    sampler.load_state_dict(state)
    reference.load_state_dict(state)
    both()


def test_persistent_workers_stay_the_same_processes():
    sampler = make_sampler()
    loader = make_loader(sampler, 1)
    iterator = iter(loader)
    next_global_batch(iterator)
    workers = [worker.pid for worker in loader._loader._iterator._workers]
    sampler.commit()
    sampler.set_mixture_weights({"a": 0, "b": 1, "c": 0})
    assert set(next_global_batch(iterator)) <= set(range(40, 45))
    assert [worker.pid for worker in loader._loader._iterator._workers] == workers


def test_an_uncommitted_batch_is_given_again():
    sampler = make_sampler()
    iterator = iter(make_loader(sampler))
    expected = sampler.peek_global_batch()
    assert next_global_batch(iterator) == expected
    sampler.set_mixture_weights(sampler.mixture_weights)
    assert next_global_batch(iterator) == expected


def test_a_new_iterator_starts_at_the_committed_state():
    sampler = make_sampler()
    loader = make_loader(sampler)
    next_global_batch(iter(loader))
    sampler.commit()
    assert next_global_batch(iter(loader)) == sampler.peek_global_batch() != make_sampler().peek_global_batch()


def test_starting_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    sampler = make_sampler()
    iterator = iter(make_loader(sampler))
    next_global_batch(iterator)
    sampler.commit()
    sampler.set_mixture_weights({"a": 1, "b": 1, "c": 1})
    next_global_batch(iterator)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_trainer_sees_no_length_but_the_data():
    loader = make_loader(make_sampler())
    assert not has_length(loader)
    assert len(loader.dataset) == sum(SIZES.values())
    assert loader.sampler.domain_sizes == SIZES


def test_data_that_are_not_the_samplers_are_refused():
    datasets = make_datasets()
    swapped = {name: datasets[name] for name in ("b", "a", "c")}
    with pytest.raises(
        ValueError, match=r"`datasets` must have the names, order and sizes .*\[\('b', 5\), \('a', 40\)"
    ):
        DynamicDataLoader(swapped, make_sampler())
    with pytest.raises(ValueError, match=r"but they are \[\('a', 40\), \('b', 5\)\]"):
        DynamicDataLoader({name: datasets[name] for name in "ab"}, make_sampler())


class TorchDomain(torch.utils.data.Dataset):
    """A map-style data set of torch with the samples of another one."""

    def __init__(self, dataset):
        self.samples = list(dataset)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_data_sets_of_torch_give_the_same_batches():
    torch_domains = {name: TorchDomain(dataset) for name, dataset in make_datasets().items()}
    mine = iter(DynamicDataLoader(torch_domains, make_sampler()))
    other = iter(make_loader(make_sampler()))
    for _ in range(3 * STEPS):
        assert torch.equal(next(mine)["input_ids"], next(other)["input_ids"])
