"""Calibration text that is also evaluation text is found, however it is packed, and warned of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hf_shear.data import shared_share, warn_of_shared_text


@pytest.fixture
def tokens():
    return torch.randint(3, 500, (64, 256), generator=torch.Generator().manual_seed(0))


def test_the_same_samples_are_all_shared(tokens):
    assert shared_share(tokens[:8], tokens[:8]) == 1.0
    assert shared_share(tokens[:8], tokens[4:12].tolist()) == 0.5


def test_text_at_another_offset_is_found(tokens):
    stream = tokens.flatten()
    moved = stream[77 : 77 + 256 * 20].view(20, 256)
    assert shared_share(stream[None], moved) == 1.0
    assert shared_share(tokens[:21], moved) > 0.8  # but for windows over the ends of samples


def test_other_text_is_not(tokens):
    assert shared_share(tokens[:32], tokens[32:]) == 0.0
    assert shared_share(tokens[:32], tokens[:32].flip(1)) == 0.0
    two = torch.randint(0, 2, (200, 256), generator=torch.Generator().manual_seed(1))  # 2^32 windows of two tokens
    assert shared_share(two[:100], two[100:]) < 1e-2


def test_samples_below_a_window_share_nothing(tokens):
    assert shared_share(tokens[:4, :20], tokens[:4, :20]) == 0.0
    assert shared_share([], tokens) == shared_share(tokens, []) == 0.0


def test_a_warning_names_the_share(tokens):
    with pytest.warns(UserWarning, match="25% of the evaluation text is also calibration text.*Hold the evaluation"):
        warn_of_shared_text(tokens[:8], tokens[6:14])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared_text(tokens[:8], tokens[8:])
        warn_of_shared_text(np.zeros((0, 256), int), tokens)
