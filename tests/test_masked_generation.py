"""The masked Llama generates what its sliced model generates, with padding, and with a cache or without."""

import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import fresh

from hf_shear.slicing import slice_model


@pytest.mark.parametrize("method", METHODS)
def test_generation_equals_that_of_the_sliced_model(source, add_masks, token_ids, method):
    model = fresh(source, add_masks, method)
    sliced, _ = slice_model(model)
    prompt = token_ids[:, :4]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        ours = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        theirs = sliced.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        dense = source.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert ours.shape == (2, 16)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, dense)


def test_generation_skips_padding_that_no_attention_mask_names(source, add_masks):
    """As the stock model does: `generate` sees from the forward's signature that it takes an attention mask."""
    model = fresh(source, add_masks)
    prompt = torch.tensor([[0, 0, 0, 5, 7], [4, 5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    derived = model.generate(prompt, **options)
    assert torch.equal(derived, model.generate(prompt, attention_mask=(prompt != 0).long(), **options))
    assert torch.equal(derived, slice_model(model)[0].generate(prompt, **options))
    assert not torch.equal(derived, model.generate(prompt, attention_mask=torch.ones_like(prompt), **options))


def test_generation_with_a_cache_equals_generation_without(source, add_masks, token_ids):
    model = fresh(source, add_masks)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = token_ids[:1, :4]
    cached, plain = (
        model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)
