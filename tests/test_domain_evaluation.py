"""evaluate_domains: one pass over all domains gives what a loop per domain gives, on any number of processes."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from training_helpers import LENGTH, make_domains, masked_model, plain_model

from hf_shear.training import SampleLosses, evaluate_domains, evaluate_samples

SIZES = {"books": 5, "code": 3, "wiki": 1}


@pytest.fixture(scope="module")
def model():
    return plain_model().eval()


@pytest.fixture(scope="module")
def domains():
    return make_domains(SIZES, seed=1)


@torch.no_grad()
def loop_losses(model, domains) -> dict[str, float]:
    """Domain by domain, sample by sample, token by token."""
    losses = {}
    for name, dataset in domains.items():
        values = []
        for ids in dataset["input_ids"]:
            log_probabilities = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            values += [-log_probabilities[position, ids[position + 1]].item() for position in range(len(ids) - 1)]
        losses[name] = math.fsum(values) / len(values)
    return losses


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_equals_a_loop_per_domain(model, domains, batch_size):
    losses, num_tokens = evaluate_domains(model, domains, batch_size)
    assert list(losses) == list(SIZES)
    assert losses == pytest.approx(loop_losses(model, domains), abs=2e-6)
    assert num_tokens == 9 * (LENGTH - 1)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_the_batches(model, domains, world_size):
    """With 9 samples in batches of 2 there are 5: the last round is not full, and counts nothing twice."""
    expected, num_tokens = evaluate_domains(model, domains, 2)
    parts, forwards = [], []
    for rank in range(world_size):
        called = []
        evaluate_domains(model, domains, 2, rank=rank, world_size=world_size, on_batch=called.append,
                         reduce=lambda totals: parts.append(totals) or torch.ones_like(totals))  # fmt: skip
        forwards.append(called)
    assert forwards == [[-(-5 // world_size)] * -(-5 // world_size)] * world_size
    assert sum(part.sum(dim=1)[1].item() for part in parts) == num_tokens
    assert all(sum(bool(part[1, sample]) for part in parts) == 1 for sample in range(9))  # one process reads each
    total = torch.stack(parts).sum(dim=0)
    found, counted = evaluate_domains(model, domains, 2, world_size=world_size, reduce=lambda own: total)
    assert counted == num_tokens
    samples = evaluate_samples(model, domains, 2, world_size=world_size, reduce=lambda own: total)
    assert samples == evaluate_samples(model, domains, 2)  # to the last bit, in every process
    assert found == pytest.approx(expected, abs=1e-7)


def test_no_domain_may_be_empty(model, domains):
    empty = {"books": domains["books"], "void": Dataset.from_dict({"input_ids": []})}
    with pytest.raises(
        ValueError, match=r"`eval_dataset\['void'\]` is empty: a domain without held-out samples has no"
    ):
        evaluate_domains(model, empty, 2)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_left_alone(domains, training):
    """Dropout is off during evaluation; the mode comes back, also after an error."""
    model = plain_model().train(training)
    losses, _ = evaluate_domains(model, domains, 4)
    assert model.training is training
    assert losses == evaluate_domains(plain_model().eval(), domains, 4)[0]
    assert all(parameter.grad is None for parameter in model.parameters())
    bad = {"books": Dataset.from_dict({"input_ids": [[1, 10_000]]})}
    with pytest.raises(IndexError):
        evaluate_domains(model, bad, 1)
    assert model.training is training


def test_masks_are_deterministic_and_the_lagrangian_is_not_there(domains):
    model = masked_model("hard_concrete").train()
    with torch.no_grad():
        model.masks.multiplier_linear.fill_(1000.0)
    losses, _ = evaluate_domains(model, domains, 4)
    assert losses == pytest.approx(loop_losses(model.eval(), domains), abs=2e-6)


def test_positions_reach_the_model(model):
    """Restarted positions confine attention to a document, whose first token nothing predicts."""
    ids = make_domains({"books": 2})["books"]["input_ids"]
    positions = [[*range(6), *range(LENGTH - 6)]] * 2
    plain = {"books": Dataset.from_dict({"input_ids": ids})}
    blocks = {"books": Dataset.from_dict({"input_ids": ids, "position_ids": positions})}
    crossing, confined = evaluate_domains(model, plain, 2)[0], evaluate_domains(model, blocks, 2)[0]
    assert abs(crossing["books"] - confined["books"]) > 1e-3
    with torch.no_grad():
        sums = []
        for part in (part for row in ids for part in (row[:6], row[6:])):
            logits = model(input_ids=torch.tensor([part])).logits[0]
            sums.append(F.cross_entropy(logits[:-1], torch.tensor(part[1:]), reduction="sum").item())
    num_tokens = 2 * (LENGTH - 2)
    assert confined["books"] == pytest.approx(sum(sums) / num_tokens, abs=2e-6)
    assert evaluate_domains(model, blocks, 2)[1] == num_tokens


def test_the_forward_runs_in_the_context(model, domains):
    entered = []

    class Context:
        def __enter__(self):
            entered.append(torch.is_grad_enabled())

        def __exit__(self, *error):
            return None

    evaluate_domains(model, domains, 4, context=Context)
    assert entered == [False] * 3


# ---- how far chance may have moved a loss ---------------------------------------------------------------------


def test_every_sample_has_its_losses(model, domains):
    found = evaluate_samples(model, domains, 2)
    assert {name: len(losses.sums) for name, losses in found.items()} == SIZES
    for name, losses in found.items():
        single = {str(row): domains[name].select([row]) for row in range(SIZES[name])}
        means, _ = evaluate_domains(model, single, 1)
        own = [loss / count for loss, count in zip(losses.sums, losses.num_tokens, strict=True)]
        assert own == pytest.approx(list(means.values()), abs=2e-6)
    assert {name: losses.mean for name, losses in found.items()} == evaluate_domains(model, domains, 2)[0]


def test_the_standard_error_of_equal_samples_is_that_of_a_mean():
    losses = SampleLosses([10.0, 14.0, 12.0, 20.0], [4] * 4)
    means = torch.tensor([2.5, 3.5, 3.0, 5.0])
    assert losses.mean == pytest.approx(means.mean().item())
    assert losses.standard_error == pytest.approx(means.std().item() / 2, rel=1e-6)
    assert SampleLosses([10.0], [4]).standard_error == math.inf


@pytest.mark.parametrize("lengths", [(16, 16), (4, 40)])
def test_the_standard_error_is_the_spread_of_means_over_draws(lengths):
    """2,000 draws of 32 samples whose token losses share a part per sample; its own standard error is about 2 %."""
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(2000):
        counts = torch.randint(lengths[0], lengths[1] + 1, (32,), generator=generator)
        sums = counts * (3.0 + 0.5 * torch.randn(32, generator=generator))
        losses = SampleLosses(sums.tolist(), counts.tolist())
        means.append(losses.mean)
        errors.append(losses.standard_error)
    spread = torch.tensor(means).std().item()
    assert torch.tensor(errors).square().mean().sqrt().item() == pytest.approx(spread, rel=0.06)


def test_a_difference_sample_by_sample_varies_less():
    """Hard samples are hard for both models: what they share is no noise of the difference."""
    generator = torch.Generator().manual_seed(0)
    hardness = 16 * (3.0 + 0.5 * torch.randn(32, generator=generator))
    reference = (hardness + torch.randn(32, generator=generator)).tolist()
    losses = SampleLosses((hardness + 4.0 + torch.randn(32, generator=generator)).tolist(), [16] * 32)
    difference = losses.above(reference + [99.0])  # a reference of more samples: the first count
    assert difference.mean == pytest.approx(losses.mean - sum(reference) / (16 * 32))
    assert difference.standard_error < 0.3 * losses.standard_error
