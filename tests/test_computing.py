"""In which dtype a device computes."""

import pytest
import torch
from torch import nn

from hf_shear.sources import computing_dtype, dtype_note, ready_to_compute

OLD = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False}
NEW = OLD | {"avx512_bf16": True}
MATRIX_UNITS = NEW | {"avx512_fp16": True, "amx_bf16": True}
OTHER = {"architecture": "aarch64"}


@pytest.mark.parametrize(
    ("processor", "stored", "computed"),
    [
        (OLD, torch.bfloat16, torch.float32),
        (OLD, torch.float16, torch.float32),
        (OLD, torch.float32, torch.float32),
        (NEW, torch.bfloat16, torch.bfloat16),
        (NEW, torch.float16, torch.float32),
        (MATRIX_UNITS, torch.bfloat16, torch.bfloat16),
        (MATRIX_UNITS | {"amx_bf16": False}, torch.bfloat16, torch.float32),  # as virtual machines may show it
        (MATRIX_UNITS | {"amx_bf16": False}, torch.float16, torch.float16),
        (OTHER, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_processor_without_instructions_computes_in_float32(monkeypatch, processor, stored, computed):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert computing_dtype(stored, "cpu") == computed
    model = ready_to_compute(nn.Linear(2, 2, dtype=stored), "cpu")
    assert model.weight.dtype == computed
    assert bool(dtype_note(stored, computed)) == (stored != computed)


def test_accelerators_and_users_choose_for_themselves(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD)
    assert computing_dtype(torch.bfloat16, "meta") == torch.bfloat16
    assert ready_to_compute(nn.Linear(2, 2), "cpu", torch.bfloat16).weight.dtype == torch.bfloat16
