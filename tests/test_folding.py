"""Masks folded into weights equal masks multiplied into activations, in value and in every gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_shear.modeling import MaskedEmbedding, MaskedLinear, MaskedRMSNorm, scale_weight
from hf_shear.modeling.folding import make_masked, masked_class


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def linear(generator, bias=True):
    module = nn.Linear(7, 5, bias=bias)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def gate(generator, size, num_closed=2):
    values = torch.rand(size, generator=generator)
    values[:num_closed] = 0.0
    return values.requires_grad_()


@pytest.mark.parametrize("rows, columns", [(True, True), (True, False), (False, True)])
def test_scaled_weight_equals_the_product_in_value_and_gradients(generator, rows, columns):
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    row_mask = gate(generator, 5) if rows else None
    column_mask = gate(generator, 7) if columns else None
    tensors = [tensor for tensor in (weight, row_mask, column_mask) if tensor is not None]
    plain = weight
    if rows:
        plain = plain * row_mask[:, None]
    if columns:
        plain = plain * column_mask[None, :]
    upstream = torch.randn(5, 7, generator=generator)
    scaled = scale_weight(weight, row_mask, column_mask)
    torch.testing.assert_close(scaled, plain)
    expected = torch.autograd.grad(plain, tensors, upstream)
    for ours, theirs in zip(torch.autograd.grad(scaled, tensors, upstream), expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_without_masks_the_weight_itself_is_used(generator):
    weight = torch.randn(5, 7, generator=generator)
    assert scale_weight(weight, None, None) is weight


def test_bfloat16_weights_keep_their_dtype_and_masks_their_float32_gradients(generator):
    weight = torch.randn(5, 7, generator=generator).bfloat16().requires_grad_()
    rows, columns = gate(generator, 5), gate(generator, 7)
    scaled = scale_weight(weight, rows, columns)
    assert scaled.dtype == torch.bfloat16
    upstream = torch.randn(5, 7, generator=generator).bfloat16()
    gradients = torch.autograd.grad(scaled, (weight, rows, columns), upstream)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    product = (upstream.double() * weight.double()).detach()
    # The elementwise product is rounded to bfloat16 (2^-9) once, its sum runs in float32.
    torch.testing.assert_close(gradients[1].double(), product @ columns.double(), rtol=0, atol=0.05)
    torch.testing.assert_close(gradients[2].double(), rows.double() @ product, rtol=0, atol=0.05)


def test_only_what_is_asked_for_gets_a_gradient(generator):
    weight, rows = torch.randn(5, 7, generator=generator), gate(generator, 5)
    scale_weight(weight, rows, torch.rand(7, generator=generator)).sum().backward()
    assert weight.grad is None and rows.grad is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("has_input, has_output", [(True, True), (True, False), (False, True), (False, False)])
def test_linear_masks_inputs_outputs_and_the_bias(generator, bias, has_input, has_output):
    module = linear(generator, bias)
    inputs = torch.randn(3, 7, generator=generator)
    input_mask = gate(generator, 7) if has_input else None
    output_mask = gate(generator, 5) if has_output else None
    expected = module(inputs if input_mask is None else inputs * input_mask)
    expected = expected if output_mask is None else expected * output_mask
    make_masked(module, MaskedLinear)
    module.input_mask, module.output_mask = input_mask, output_mask
    torch.testing.assert_close(module(inputs), expected)


def test_one_output_mask_may_serve_all_rows(generator):
    """A layer gate alone is [1], not [d]."""
    module, inputs = linear(generator), torch.randn(3, 7, generator=generator)
    expected = 0.25 * module(inputs)
    make_masked(module, MaskedLinear)
    module.output_mask = torch.tensor([0.25], requires_grad=True)
    outputs = module(inputs)
    torch.testing.assert_close(outputs, expected)
    outputs.sum().backward()
    torch.testing.assert_close(module.output_mask.grad, (4 * expected.detach()).sum().reshape(1))


def test_embedding_masks_its_output(generator):
    module, ids = nn.Embedding(6, 5), torch.tensor([[0, 3], [5, 3]])
    expected = module(ids)
    make_masked(module, MaskedEmbedding)
    assert torch.equal(module(ids), expected)
    module.output_mask = gate(generator, 5)
    torch.testing.assert_close(module(ids), expected * module.output_mask)


def stock_norm(generator, size, epsilon=1e-5):
    norm = LlamaRMSNorm(size, eps=epsilon)
    norm.weight.data = torch.randn(size, generator=generator)
    return norm


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_norm_averages_over_kept_dimensions_only(generator, scale):
    """Masked norm over d dimensions = stock norm over the k kept ones; at scale 1e-3 epsilon outweighs the variance."""
    kept = torch.tensor([0, 2, 3, 7, 8])
    values = torch.zeros(2, 3, 9)
    values[..., kept] = scale * torch.randn(2, 3, 5, generator=generator)
    mask = torch.zeros(9)
    mask[kept] = torch.rand(5, generator=generator) + 0.1
    norm = stock_norm(generator, 9)
    small = stock_norm(generator, 5)
    small.weight.data = (norm.weight * mask)[kept].detach()
    make_masked(norm, MaskedRMSNorm)
    norm.output_mask, norm.kept_count = mask, torch.tensor(5.0)
    outputs = norm(values)
    torch.testing.assert_close(outputs[..., kept], small(values[..., kept]), rtol=1e-5, atol=1e-6)
    assert (outputs[..., mask == 0] == 0).all()


def test_norm_without_a_mask_is_the_stock_norm(generator):
    norm = stock_norm(generator, 9)
    values = torch.randn(2, 9, generator=generator)
    expected = norm(values)
    make_masked(norm, MaskedRMSNorm)
    assert torch.equal(norm(values), expected)


def test_norm_gradients_equal_those_of_the_written_out_formula(generator):
    norm = stock_norm(generator, 6)
    make_masked(norm, MaskedRMSNorm)
    mask = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0, 0.75], requires_grad=True)
    values = torch.randn(4, 6, generator=generator) * (mask != 0)
    values.requires_grad_()
    norm.output_mask, norm.kept_count = mask, torch.tensor(4.0)
    upstream = torch.randn(4, 6, generator=generator)
    tensors = (values, mask, norm.weight)
    plain = values * torch.rsqrt(values.square().sum(-1, keepdim=True) / 4 + 1e-5) * norm.weight * mask
    expected = torch.autograd.grad(plain, tensors, upstream)
    for ours, theirs in zip(torch.autograd.grad(norm(values), tensors, upstream), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_norm_keeps_bfloat16(generator):
    norm = stock_norm(generator, 6).to(torch.bfloat16)
    make_masked(norm, MaskedRMSNorm)
    norm.output_mask, norm.kept_count = torch.rand(6, generator=generator), torch.tensor(6.0)
    assert norm(torch.randn(2, 6, generator=generator).bfloat16()).dtype == torch.bfloat16


def test_make_masked_keeps_weights_names_and_hooks(generator):
    module = linear(generator)
    weight, seen = module.weight, []
    module.register_forward_hook(lambda *call: seen.append(True))
    make_masked(module, MaskedLinear)
    assert isinstance(module, nn.Linear) and isinstance(module, MaskedLinear)
    assert module.weight is weight and set(module.state_dict()) == {"weight", "bias"}
    module(torch.zeros(1, 7))
    assert seen == [True]
    # Masks belong to the module, not to its class.
    module.output_mask = torch.zeros(5)
    assert MaskedLinear.output_mask is None


def test_masked_classes_are_made_once():
    assert masked_class(MaskedLinear, nn.Linear) is masked_class(MaskedLinear, nn.Linear)
    assert masked_class(MaskedLinear, nn.Linear) is not masked_class(MaskedLinear, nn.Bilinear)


def test_folding_costs_no_more_saved_tensors_than_its_inputs(generator):
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    rows, columns = gate(generator, 5), gate(generator, 7)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        scaled = scale_weight(weight, rows, columns)
    assert set(saved) == {weight.data_ptr(), rows.data_ptr(), columns.data_ptr()}
    assert F.linear(torch.ones(1, 7), scaled).shape == (1, 5)
