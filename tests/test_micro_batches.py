"""Scores do not depend on how many samples of a calibration batch fit into one forward."""

from __future__ import annotations

import pytest
import torch
from training_helpers import masked_model

from hf_shear.calibration import micro_batches
from hf_shear.importance import layer_loss_rise, mask_start_importance, taylor_importance


def batches() -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 61, (6, 10), generator=generator) for _ in range(2)]
    return [{"input_ids": part, "labels": part} for part in ids]


@pytest.mark.parametrize(("size", "shares"), [(None, [1.0]), (6, [1.0]), (4, [4 / 6, 2 / 6]), (1, [1 / 6] * 6)])
def test_parts_are_the_batch(size, shares):
    batch = batches()[0]
    parts = list(micro_batches(batch, size))
    assert [share for share, _ in parts] == pytest.approx(shares)
    for name in batch:
        assert torch.equal(torch.cat([part[name] for _, part in parts]), batch[name])


@pytest.mark.parametrize("score", [taylor_importance, mask_start_importance])
@pytest.mark.parametrize("size", [1, 4])
def test_scores_do_not_depend_on_it(score, size):
    model = masked_model(attention_dropout=0.0)
    whole, parts = score(model, batches()), score(model, batches(), size)
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=1e-4, atol=2e-6)


def test_taylor_scores_do_not_depend_on_the_batches_themselves():
    """Each sample's slope has its own magnitude. That of a batch's mean slope would be another score."""
    model = masked_model(attention_dropout=0.0)
    whole = taylor_importance(model, batches())
    apart = taylor_importance(model, [part for batch in batches() for _, part in micro_batches(batch, 1)])
    for name, wanted in whole.items():
        torch.testing.assert_close(apart[name], wanted, rtol=1e-4, atol=1e-6)


def test_loss_rise_does_not_depend_on_it():
    model = masked_model(attention_dropout=0.0)
    torch.testing.assert_close(
        layer_loss_rise(model, batches(), 4), layer_loss_rise(model, batches()), rtol=0, atol=2e-6
    )
