"""Scores do not depend on how many samples of a calibration batch fit into one forward."""

from __future__ import annotations

import pytest
import torch
from training_helpers import masked_model

from hf_shear.criteria import mask_start_importance
from hf_shear.criteria.taylor import taylor
from hf_shear.data import Calibration, micro_batches


def batches() -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 61, (6, 10), generator=generator) for _ in range(2)]
    return [{"input_ids": part, "labels": part} for part in ids]


@pytest.mark.parametrize(("size", "lengths"), [(None, [6]), (6, [6]), (4, [4, 2]), (1, [1] * 6)])
def test_parts_are_the_batch(size, lengths):
    batch = batches()[0]
    parts = list(micro_batches(batch, size))
    assert [len(part["input_ids"]) for part in parts] == lengths
    for name in batch:
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])


@pytest.mark.parametrize("size", [1, 4])
def test_mask_starts_do_not_depend_on_it(size):
    model = masked_model(attention_dropout=0.0)
    whole, parts = mask_start_importance(model, batches()), mask_start_importance(model, batches(), size)
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=1e-4, atol=2e-6)


def test_taylor_scores_do_not_depend_on_the_batches_themselves():
    """Each sample's slope has its own magnitude. That of a batch's mean slope would be another score."""
    model = masked_model(attention_dropout=0.0)
    whole = taylor(model, Calibration(batches()))
    apart = taylor(model, Calibration.from_batches(batches(), 1))
    for name, wanted in whole.items():
        torch.testing.assert_close(apart[name], wanted, rtol=1e-4, atol=1e-6)
