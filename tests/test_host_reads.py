"""A training step of the masked Llama never makes the host wait for a value, beyond what the stock model reads."""

import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import enable_checkpointing, fresh
from torch.utils._python_dispatch import TorchDispatchMode

from hf_shear.masks import MaskPhase
from hf_shear.modeling import ShearingLlamaForCausalLM


class HostRead(Exception):
    """A value was read back to the host."""


class CountHostReads(TorchDispatchMode):
    """Counts, below Python's methods, the operators that make a GPU's host wait for a result."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self, error=None):
        super().__init__()
        self.error, self.count = error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name == "index" else ()
        if name in self.READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.count += 1
            if self.error:
                raise self.error(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def forbid_host_reads(monkeypatch):
    """A context in which reading a tensor's value raises, by a method of Python's or by an operator."""

    def refuse(*args, **kwargs):
        raise HostRead

    def forbid():
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        return CountHostReads(error=HostRead)

    return forbid


def training_step(model, token_ids, **options):
    output = model(token_ids, labels=token_ids, **options)
    lagrangian = getattr(output, "lagrangian_loss", None)
    (output.loss if lagrangian is None else output.loss + lagrangian).backward()
    if isinstance(model, ShearingLlamaForCausalLM):
        model.masks.clamp_log_alpha()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hardening", [0.0, 0.5, 1.0])
def test_a_training_step_reads_nothing_back(source, add_masks, token_ids, forbid_host_reads, method, hardening):
    model = fresh(source, add_masks, method, log_alpha_bound=4.0).train()
    model.set_mask_phase(MaskPhase(3, 0, 0.7, 0.5, 0.4, hardening))
    with forbid_host_reads():
        training_step(model, token_ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_without_a_cache_nothing_is_read_beyond_the_stock_model_s_own_check(
    build_llama, add_masks, token_ids, method, checkpointed
):
    """A stock Llama without cache or attention mask reads one value per forward: whether samples are packed."""
    reads = []
    source = build_llama()
    for model in (source, fresh(source, add_masks, method, log_alpha_bound=4.0)):
        model.train()
        if checkpointed:
            enable_checkpointing(model)
        with CountHostReads() as guard:
            training_step(model, token_ids, use_cache=False)
        reads.append(guard.count)
    stock, masked = reads
    assert masked <= stock <= 1


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.sum()),
        lambda t: t.tolist(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.where(t > 0),
        lambda t: float(t.sum()),
        lambda t: torch.equal(t, t),
    ],
)
def test_the_guard_against_host_reads_sees_them(forbid_host_reads, read):
    values = torch.ones(3)
    with pytest.raises(HostRead), forbid_host_reads():
        read(values)
