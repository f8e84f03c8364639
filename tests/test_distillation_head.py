"""The head that computes losses in chunks: equal to whole logits, never larger than a chunk, and gone afterwards."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import plain_model, weights_of

from hf_shear.distillation import DistillationSettings, DistillationTarget
from hf_shear.distillation.distillation import DIVERGENCES, top_k_log_probs
from hf_shear.distillation.distillation_head import DistillationHead, distillation_sums, make_distilling, make_plain

VOCAB, WIDTH, TEACHER_WIDTH, BATCH, LENGTH = 37, 6, 5, 2, 8
CHUNK = 3 * VOCAB  # three tokens of fourteen: the last chunk is not full


def parts(dtype=torch.float32):
    """Student's hidden states and head, teacher's, labels of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, LENGTH, WIDTH, generator=generator)
    head = torch.randn(VOCAB, WIDTH, generator=generator)
    teacher_hidden = torch.randn(BATCH, LENGTH, TEACHER_WIDTH, generator=generator)
    teacher_head = torch.randn(VOCAB, TEACHER_WIDTH, generator=generator)
    labels = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=generator)
    labels[0, 3] = labels[1, :2] = -100
    return *(tensor.to(dtype) for tensor in (hidden, head, teacher_hidden, teacher_head)), labels


def run(kind: str, max_chunk_logits: int, stored: bool, temperature: float = 2.0):
    """The two sums, and the gradients of hidden states and head of a mix of them."""
    hidden, weight, teacher_hidden, teacher_weight, labels = parts()
    hidden.requires_grad_(), weight.requires_grad_()
    target = DistillationTarget(labels, VOCAB, DistillationSettings(kind, temperature))
    if stored:
        target.teacher_log_probs, target.teacher_ids = top_k_log_probs(
            teacher_hidden @ teacher_weight.T, temperature, VOCAB - 1
        )
    else:
        target.teacher_hidden, target.teacher_head = teacher_hidden, lambda rows: rows @ teacher_weight.T
    sums = distillation_sums(lambda rows: rows @ weight.T, hidden, target, max_chunk_logits)
    return sums, *torch.autograd.grad((sums * torch.tensor([0.3, 0.7])).sum(), (hidden, weight))


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
@pytest.mark.parametrize("max_chunk_logits", [1, CHUNK, 10**6], ids=["token", "chunks", "whole"])
def test_values_and_gradients_are_the_naive_ones(kind, stored, max_chunk_logits):
    found = run(kind, max_chunk_logits, stored)
    hidden, weight, teacher_hidden, teacher_weight, labels = parts(torch.float64)
    hidden.requires_grad_(), weight.requires_grad_()
    logits, teacher = hidden[:, :-1] @ weight.T, teacher_hidden[:, :-1] @ teacher_weight.T
    q, p = (logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
    p, q = (p, q) if kind == "forward_kl" else (q, p)
    distance = (p.exp() * (p - q)).sum(-1)[labels[:, 1:] != -100].sum()
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected = torch.stack([cross_entropy, distance])
    wanted = torch.autograd.grad((expected * torch.tensor([0.3, 0.7])).sum(), (hidden, weight))
    for mine, theirs in zip(found, (expected, *wanted), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
def test_logits_of_a_large_vocabulary_never_exceed_a_chunk(stored):
    vocab, tokens, width = 128_256, 17, 2
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (1, tokens), generator=generator)
    target = DistillationTarget(labels, vocab, DistillationSettings())
    if stored:
        target.teacher_log_probs = torch.randn(1, tokens, 4, generator=generator)
        target.teacher_ids = torch.randint(0, vocab, (1, tokens, 3), generator=generator)
    else:
        target.teacher_hidden, target.teacher_head = hidden.detach(), lambda rows: rows @ weight.detach().T
    chunk = 2 * vocab  # as large as the weight: nothing else is
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
    with LargestTensor() as mode:
        with hooks:
            sums = distillation_sums(lambda rows: rows @ weight.T, hidden, target, chunk)
        kept = [number for number in saved if number > chunk // 2 and number != weight.numel()]
        sums.sum().backward()
    assert mode.largest == chunk
    assert not kept  # between the passes no logits are kept at all
    assert hidden.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_in_a_model_the_gradients_reach_a_tied_embedding(tied, monkeypatch):
    monkeypatch.setattr("hf_shear.distillation.distillation_head.MAX_CHUNK_LOGITS", 1)
    model, teacher = (plain_model(seed, tie_word_embeddings=tied, attention_dropout=0.0) for seed in (0, 1))
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    target = DistillationTarget(ids, 61, DistillationSettings("reverse_kl"))
    with torch.no_grad():
        target.teacher_hidden = teacher.model(ids).last_hidden_state
    target.teacher_head = teacher.lm_head
    make_distilling(model.lm_head).distillation_target = target
    model(ids).logits.sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.lm_head.distillation_target = None
    model.zero_grad()
    q, p = (m(ids).logits[:, :-1].log_softmax(-1) for m in (model, teacher))
    (F.nll_loss(q.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") + (q.exp() * (q - p)).sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=2e-4, msg=name)


def test_the_stock_head_comes_back(tmp_path):
    model = plain_model()
    before, ids = weights_of(model), torch.arange(3, 12)[None]
    logits = model.eval()(ids).logits
    head = make_distilling(model.lm_head)
    assert head is model.lm_head and isinstance(head, DistillationHead) and make_distilling(head) is head
    assert torch.equal(model(ids).logits, logits)  # without a target it gives logits
    assert model.state_dict().keys() == before.keys()
    model.save_pretrained(tmp_path)
    make_plain(head)
    assert type(head) is nn.Linear and make_plain(head) is head
    assert torch.equal(type(model).from_pretrained(tmp_path).eval()(ids).logits, logits)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, logits)
