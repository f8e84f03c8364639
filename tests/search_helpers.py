"""Text that a model writes itself, which it predicts as well as any model can."""

from __future__ import annotations

import torch
from datasets import Dataset

from hf_shear.data import Calibration


def written_by(model):
    """Calibration text, and held-out samples by domain."""
    torch.manual_seed(0)
    ids = model.generate(
        torch.ones(64, 1, dtype=torch.long), do_sample=True, top_k=0, max_new_tokens=31, eos_token_id=None
    )
    calibration = Calibration.from_batches([{"input_ids": ids[:16], "labels": ids[:16]}], 8)
    return calibration, {"own": Dataset.from_dict({"input_ids": ids[16:].tolist()}).with_format("torch")}
