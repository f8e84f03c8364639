"""Teachers: frozen, the same wherever their weights are, and over the student's vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_helpers import letter_tokenizer, plain_model, tiny_config

from hf_shear.distillation import Teacher, check_same_tokens, check_teacher

IDS = torch.arange(3, 19).view(2, 8)


@pytest.mark.parametrize("tied", [False, True])
def test_an_offloaded_teacher_answers_bit_for_bit_as_one_on_the_device(tied):
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 2)
    here = Teacher(plain_model(tie_word_embeddings=tied))
    there = Teacher(plain_model(tie_word_embeddings=tied), "cpu")
    assert there.model.model.layers[0].mlp.up_proj.weight.is_meta  # it is not on the device between forwards
    assert not there.head.weight.is_meta
    for inputs in ((IDS,), (IDS, positions)):
        assert torch.equal(here.hidden_states(*inputs), there.hidden_states(*inputs))
        assert torch.equal(here.logits(*inputs), there.logits(*inputs))
    assert not torch.equal(here.logits(IDS), here.logits(IDS, positions))


def test_a_teacher_is_frozen_and_without_dropout():
    model = plain_model().train()
    teacher = Teacher(model)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(teacher.logits(IDS), model(IDS).logits)
    assert not teacher.logits(IDS).requires_grad


def test_what_is_no_teacher_is_refused():
    with pytest.raises(ValueError, match="must be 'device' or 'cpu', but it is 'disk'"):
        Teacher(plain_model(), "disk")
    with pytest.raises(ValueError, match="must be a causal language model of transformers, but it is Linear"):
        Teacher(nn.Linear(2, 2))


def test_teachers_that_do_not_fit_are_refused():
    student = tiny_config()
    check_teacher(student, tiny_config(hidden_size=36), num_positions=32)
    with pytest.raises(ValueError, match="The teacher's vocabulary has 64 entries, the student's 61"):
        check_teacher(student, tiny_config(vocab_size=64))
    with pytest.raises(ValueError, match="Samples have 33 tokens, but the teacher has 32 positions"):
        check_teacher(student, tiny_config(), num_positions=33)
    capped = tiny_config()
    capped.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="The teacher changes its logits behind the head"):
        check_teacher(student, capped)


def test_the_same_size_of_vocabulary_is_not_the_same_vocabulary():
    own, other = letter_tokenizer(), letter_tokenizer()
    check_same_tokens(own, other)
    check_same_tokens(own, other, 61)
    other.add_special_tokens({"additional_special_tokens": ["<image>"]})
    largest = len(other) - 1
    check_same_tokens(own, other, largest)  # no text may give it
    with pytest.raises(
        ValueError, match=f"1 tokens differ, the first is '<image>' \\(student: None, teacher: {largest}"
    ):
        check_same_tokens(own, other, largest + 1)
    other = letter_tokenizer()
    vocabulary = other.get_vocab()
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other.get_vocab = lambda: vocabulary
    with pytest.raises(ValueError, match="2 tokens differ, the first is 'a' \\(student: 4, teacher: 5\\)"):
        check_same_tokens(own, other)
