"""The dynamic batch sampler: composition, passes, agreement of ranks, and a state that restores exactly."""

import ast
import json
import logging
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.data import sampler as sampler_module
from hf_shear.data.sampler import DynamicBatchSampler, permute, stream_slot

SIZES = {"a": 50, "b": 7, "c": 400}


def domain_of(index: int, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        if index < size:
            return name
        index -= size
    raise AssertionError("an index beyond the data")


def consume(sampler: DynamicBatchSampler, num_batches: int) -> list[list[int]]:
    """Draw and commit global batches (of a sampler of a single rank)."""
    batches = []
    for _ in range(num_batches):
        batches.append(sampler.peek_global_batch())
        sampler.commit()
    return batches


# The permutation


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_permute_is_a_bijection_at_any_subset_of_positions(size, seed, number):
    values = permute(np.arange(size), size, (seed, number))
    assert values.dtype == np.int64
    assert np.array_equal(np.sort(values), np.arange(size))
    some = np.arange(size)[::3]
    assert np.array_equal(permute(some, size, (seed, number)), values[some])


def test_first_positions_are_uniform():
    # the first 20 of 10**9, over 500 keys: 10,000 values; in 16 equal cells, chi-square has 15 degrees of
    # freedom, mean 15 and standard error sqrt(30) = 5.5
    size = 10**9
    values = np.concatenate([permute(np.arange(20), size, (key,)) for key in range(500)])
    counts = np.bincount(values * 16 // size, minlength=16)
    assert ((counts - 625) ** 2 / 625).sum() < 15 + 4 * 5.5
    # and neighbours are not related: correlation of 9,500 pairs, standard error 1/sqrt(9500) = .0103
    grid = values.reshape(500, 20)
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 4 * 0.0103


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_permutations_are_all_equally_likely(size):
    num_keys = 1500
    ranks = [tuple(permute(np.arange(size), size, (key,)).tolist()) for key in range(num_keys)]
    cells = {2: 2, 3: 6, 4: 24}[size]
    counts = np.array([ranks.count(rank) for rank in set(ranks)])
    assert len(counts) == cells
    expected = num_keys / cells
    # chi-square: mean cells - 1, standard error sqrt(2 (cells - 1))
    assert ((counts - expected) ** 2 / expected).sum() < cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def test_huge_domains_cost_no_memory():
    tracemalloc.start()
    sampler = DynamicBatchSampler({"a": 10**9, "b": 10**12}, 64)
    indices = consume(sampler, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes; a pass over "a" would take 8e9
    assert max(map(max, indices)) > 10**11


def test_streams_take_slots_without_a_size_and_leave_the_others_alone():
    sizes = {"a": 50, "b": None, "c": 400}
    sampler = DynamicBatchSampler(sizes, 12, {"a": 0.5, "b": 0.25, "c": 0.25}, seed=3)
    stored = DynamicBatchSampler({"a": 50, "c": 400}, 9, seed=3)
    batches = consume(sampler, 30)
    assert all([index for index in batch if index < 0] == [stream_slot(1)] * 3 for batch in batches)
    assert stream_slot(stream_slot(1)) == 1
    drawn = [index for batch in batches for index in batch if index >= 0]
    assert len(drawn) == 30 * 9 and max(drawn) < sum(stored.domain_sizes.values())
    assert sampler.passes == {"a": 180 / 50, "c": 90 / 400}
    assert sampler.samples_consumed == {"a": 180, "b": 90, "c": 90}
    resumed = DynamicBatchSampler(sizes, 12, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert consume(resumed, 3) == consume(sampler, 3)


# Composition


def test_counts_are_unbiased_and_off_by_less_than_one():
    weights = {"a": 0.61, "b": 0.013, "c": 0.377}
    sampler = DynamicBatchSampler(SIZES, 16, weights, seed=5)
    counts = []
    for _ in range(2000):
        before = sampler.samples_consumed
        sampler.commit()
        counts.append([sampler.samples_consumed[name] - before[name] for name in SIZES])
    counts = np.array(counts)
    expected = 16 * np.array(list(weights.values()))
    assert (counts.sum(axis=1) == 16).all()
    assert (np.abs(counts - expected) < 1).all()
    # a count is one of two neighbours: its standard deviation is at most .5, the mean's .5/sqrt(2000) = .0112
    assert (np.abs(counts.mean(axis=0) - expected) < 4 * 0.0112).all()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01),
    st.integers(1, 40),
    st.integers(0, 1000),
)
def test_every_global_batch_is_full_and_follows_the_weights(weights, batch_size, seed):
    sizes = {f"d{i}": 3 + 5 * i for i in range(len(weights))}
    sampler = DynamicBatchSampler(sizes, batch_size, dict(zip(sizes, weights, strict=True)), seed=seed)
    for batch in consume(sampler, 3):
        assert len(batch) == batch_size
        drawn = [domain_of(index, sizes) for index in batch]
        for name, weight in sampler.mixture_weights.items():
            assert abs(drawn.count(name) - weight * batch_size) < 1 + 1e-6
            if weight == 0:
                assert name not in drawn


def test_rounding_neither_leaves_a_gap_nor_fills_it_from_a_domain_of_weight_zero():
    # as if rounding had lost much of the sum of the weights, which makes the rare case certain
    sampler = DynamicBatchSampler(SIZES, 1000)
    counts, _ = sampler._counts(0, np.array([0.5, 0.4, 0.0]))
    assert counts.sum() == 1000
    assert counts[2] == 0


def test_the_last_domain_may_have_weight_zero():
    sizes = {f"d{i}": 100 for i in range(12)}
    weights = {name: 0.1 for name in sizes} | {"d0": 0.0, "d11": 0.0}
    sampler = DynamicBatchSampler(sizes, 10**4, weights)
    for _ in range(50):
        sampler.commit()
    assert sampler.samples_consumed["d0"] == sampler.samples_consumed["d11"] == 0
    assert sampler.samples_consumed["d10"] == 50 * 10**3


def test_the_order_within_a_batch_is_shuffled():
    batch = DynamicBatchSampler(SIZES, 64).peek_global_batch()
    drawn = [domain_of(index, SIZES) for index in batch]
    assert drawn != sorted(drawn)
    assert len(set(drawn[:16])) > 1


# Passes


def test_no_sample_repeats_within_a_pass():
    sampler = DynamicBatchSampler(SIZES, 12, {"a": 0.5, "b": 0.2, "c": 0.3}, seed=2)
    drawn: dict[str, list[int]] = {name: [] for name in SIZES}
    offsets = {"a": 0, "b": 50, "c": 57}
    for _ in range(60):
        # the order within a batch is shuffled, so a batch's own samples are put in the order of their pass
        for index in sampler.peek_global_batch():
            name = domain_of(index, SIZES)
            drawn[name].append(index - offsets[name])
        sampler.commit()
    assert sampler.samples_consumed == {name: len(indices) for name, indices in drawn.items()}
    assert sampler.passes == {name: len(indices) / SIZES[name] for name, indices in drawn.items()}
    for name, indices in drawn.items():
        full_passes, rest = divmod(len(indices), SIZES[name])
        times = np.bincount(indices, minlength=SIZES[name])
        assert set(times.tolist()) <= {full_passes, full_passes + 1}
        assert (times == full_passes + 1).sum() == rest
    assert sampler.passes["b"] > 10


def test_a_domain_smaller_than_a_batch_gives_several_passes_at_once():
    sampler = DynamicBatchSampler({"tiny": 3, "one": 1}, 16)
    (batch,) = consume(sampler, 1)
    assert batch.count(3) == 8
    assert sorted(batch.count(index) for index in range(3)) == [2, 3, 3]


def test_passes_are_in_different_orders():
    sampler = DynamicBatchSampler({"a": 20}, 1)
    order = [batch[0] for batch in consume(sampler, 60)]
    first, second, third = order[:20], order[20:40], order[40:]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(20))}) == 4


def test_domains_of_one_size_are_in_different_orders():
    indices = [batch for batch in consume(DynamicBatchSampler({"a": 30, "b": 30}, 2), 30)]
    a, b = ([i - 30 * (i >= 30) for pair in indices for i in pair if (i >= 30) == second] for second in (0, 1))
    assert a != b


def test_a_new_pass_is_logged_once_by_the_first_rank(caplog):
    caplog.set_level(logging.INFO, logger="hf_shear.data.sampler")
    sampler = DynamicBatchSampler({"a": 4, "b": 100}, 4)  # two of each domain per batch
    consume(sampler, 2)
    list(islice(sampler, 20))  # drawing ahead is not consuming
    assert caplog.messages == []  # exhausted, but a second pass has not begun
    consume(sampler, 2)
    assert len(caplog.messages) == 1
    assert "Domain 'a' (4 samples) is exhausted: pass 2 over it" in caplog.messages[0]
    assert "global batch 2" in caplog.messages[0]
    caplog.clear()
    other = DynamicBatchSampler({"a": 4, "b": 100}, 2, rank=1, world_size=2)
    for _ in range(4):
        other.commit()
    assert caplog.messages == []


def test_a_new_pass_is_told_to_the_caller_instead(caplog):
    caplog.set_level(logging.INFO, logger="hf_shear.data.sampler")
    lines: list[str] = []
    for rank in (0, 1):
        sampler = DynamicBatchSampler({"a": 4, "b": 100}, 2, rank=rank, world_size=2, on_new_pass=lines.append)
        for _ in range(4):
            sampler.commit()
    assert len(lines) == 1  # of rank 0
    assert lines[0].startswith("Domain 'a' (4 samples) is exhausted: pass 2 over it")
    assert caplog.messages == []


# Splits of the same global batch


@pytest.mark.parametrize(("batch_size", "steps", "world_size"), [(1, 8, 1), (8, 1, 1), (4, 1, 2), (1, 4, 2), (1, 1, 8)])
def test_every_split_consumes_the_same_global_batches(batch_size, steps, world_size):
    whole = consume(DynamicBatchSampler(SIZES, 8, seed=3), 5)
    ranks = [
        list(
            islice(
                DynamicBatchSampler(
                    SIZES,
                    batch_size,
                    seed=3,
                    gradient_accumulation_steps=steps,
                    rank=rank,
                    world_size=world_size,
                ),
                5 * steps,
            )
        )
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        order = [
            index for step in range(steps) for rank in range(world_size) for index in ranks[rank][number * steps + step]
        ]
        assert order == batch


def test_batches_are_as_recorded():
    # so that a change of the drawing, which would break the resuming of old runs, is seen (made with numpy
    # 2.4.6, whose generators draw the batches)
    assert consume(DynamicBatchSampler(SIZES, 6, {"a": 1, "b": 1, "c": 2}, seed=1), 2) == [
        [246, 42, 52, 147, 51, 316],
        [312, 54, 55, 279, 230, 44],
    ]


# Drawing ahead, committing, changing weights


def test_iterating_changes_nothing():
    sampler = DynamicBatchSampler(SIZES, 8)
    state = sampler.state_dict()
    first = list(islice(sampler, 7))
    assert sampler.state_dict() == state
    assert list(islice(sampler, 7)) == first


def test_commit_follows_what_was_drawn():
    sampler = DynamicBatchSampler(SIZES, 2, seed=9, gradient_accumulation_steps=3)
    ahead = list(islice(sampler, 12))
    iterator = iter(sampler)
    sampler.commit()  # after iter() and before next(): the state was copied by iter()
    assert next(iterator) == ahead[0]
    assert list(islice(sampler, 9)) == ahead[3:]
    drawn = [domain_of(index, SIZES) for batch in ahead[:3] for index in batch]
    assert sampler.samples_consumed == {name: drawn.count(name) for name in SIZES}
    assert sampler.global_batch_index == 1


def test_new_weights_hold_from_the_next_uncommitted_batch():
    sampler = DynamicBatchSampler(SIZES, 10)
    consume(sampler, 3)
    consumed = sampler.samples_consumed
    old = iter(sampler)
    version = sampler.version
    sampler.set_mixture_weights({"a": 0, "b": 1, "c": 0})
    assert sampler.version == version + 1
    assert sampler.samples_consumed == consumed
    assert {domain_of(index, SIZES) for index in sampler.peek_global_batch()} == {"b"}
    assert {domain_of(index, SIZES) for index in next(iter(sampler))} == {"b"}
    assert len({domain_of(index, SIZES) for index in next(old)}) == 3  # stale: drawn with the weights it began with


def test_bad_weights_change_nothing():
    sampler = DynamicBatchSampler(SIZES, 10)
    version, state = sampler.version, sampler.state_dict()
    with pytest.raises(ValueError, match=r"\['x'\] are unknown"):
        sampler.set_mixture_weights({"x": 1})
    assert (sampler.version, sampler.state_dict()) == (version, state)
    sampler.mixture_weights["a"] = 5.0
    assert sampler.state_dict() == state


# State


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 30), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_a_restored_sampler_goes_on_exactly(num_batches, weights):
    sampler = DynamicBatchSampler(SIZES, 8, seed=4)
    consume(sampler, num_batches)
    sampler.set_mixture_weights(dict(zip(SIZES, weights, strict=True)))
    text = json.dumps(sampler.state_dict(), sort_keys=True)
    assert len(text) < 10_000
    other = DynamicBatchSampler(SIZES, 1, seed=4, gradient_accumulation_steps=8)
    version = other.version
    other.load_state_dict(json.loads(text))
    assert other.version > version
    assert other.state_dict() == sampler.state_dict()
    assert [i for batch in islice(other, 80) for i in batch] == [i for batch in islice(sampler, 10) for i in batch]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"domain_sizes": {"a": 50, "b": 7, "c": 401}},
            r"`domain_sizes` is .*400.* and this sampler's is .*401",
        ),
        ({"domain_sizes": {"b": 7, "a": 50, "c": 400}}, r"`domain_sizes` is \[\['a', 50\], \['b', 7\]"),
        ({"seed": 1}, r"`seed` is 0 and this sampler's is 1"),
        ({"batch_size": 9}, r"`global_batch_size` is 8 and this sampler's is 9"),
    ],
)
def test_the_state_of_another_run_is_refused(changes, message):
    state = DynamicBatchSampler(SIZES, 8).state_dict()
    arguments = {"domain_sizes": SIZES, "batch_size": 8, "seed": 0} | changes
    other = DynamicBatchSampler(**arguments)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert other.version == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain_sizes": {"a": 5, "x": 0}}, r"`domain_sizes\['x'\]` must be at least 1, but it is 0"),
        ({"domain_sizes": {}}, "at least one domain"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1"),
        ({"world_size": 0}, "`world_size` must be at least 1"),
        ({"rank": 2, "world_size": 2}, r"`rank` must lie in range\(`world_size`\), 2, but it is 2"),
        ({"seed": -1}, "`seed` must be between 0 and 4,294,967,295, but it is -1"),
        ({"mixture_weights": {"a": 1}}, r"\['b', 'c'\] are missing"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        DynamicBatchSampler(**({"domain_sizes": SIZES, "batch_size": 4} | changes))


def test_optional_packages_are_imported_where_they_are_used():
    # a machine that only measures the sampler's speed may lack them
    files = sorted(Path(sampler_module.__file__).parent.glob("*.py"))
    assert len(files) >= 7
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:  # not inside functions or TYPE_CHECKING
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {
                "datasets",
                "pyarrow",
                "scipy",
                "transformers",
            }
