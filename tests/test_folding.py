"""Masks folded into weights equal masks multiplied into activations, in value and in every gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_shear.modeling import MaskedLinear, MaskedRMSNorm, scale_weight
from hf_shear.modeling.folding import MaskedEmbedding, _ScaledLinear, make_masked, masked_class


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


MASKED = pytest.mark.parametrize("has_input, has_output", [(True, True), (True, False), (False, True)])


def masked_linear(generator, bias=True, has_input=True, has_output=True, dtype=torch.float32):
    """A masked layer and every leaf that its output depends on, the inputs [2, 3, 7] first."""
    module = linear(generator, bias).to(dtype)
    make_masked(module, MaskedLinear)
    module.input_mask = gate(generator, 7) if has_input else None
    module.output_mask = gate(generator, 5) if has_output else None
    inputs = torch.randn(2, 3, 7, generator=generator).to(dtype).requires_grad_()
    leaves = [inputs, module.weight, module.bias, module.input_mask, module.output_mask]
    return module, [leaf for leaf in leaves if leaf is not None]


def two_operations(module, inputs):
    """The same layer written out: autograd keeps the scaled weight."""
    weight, bias = scale_weight(module.weight, module.output_mask, module.input_mask), module.bias
    if bias is not None and module.output_mask is not None:
        bias = bias * module.output_mask.to(bias.dtype)
    return F.linear(inputs, weight, bias)


def value_and_gradients(call, leaves, upstream):
    outputs = call(leaves[0])
    return [outputs, *torch.autograd.grad(outputs, leaves, upstream.to(outputs.dtype))]


def test_without_masks_the_weight_itself_is_used(generator):
    weight = torch.randn(5, 7, generator=generator)
    assert scale_weight(weight, None, None) is weight
    module = linear(generator)
    inputs = torch.randn(3, 7, generator=generator)
    expected = module(inputs)
    make_masked(module, MaskedLinear)
    assert torch.equal(module(inputs), expected)


@MASKED
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_linear_equals_two_operations_in_value_and_gradients(generator, bias, has_input, has_output, dtype, autocast):
    module, leaves = masked_linear(generator, bias, has_input, has_output, dtype)
    upstream = torch.randn(2, 3, 5, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = value_and_gradients(lambda inputs: two_operations(module, inputs), leaves, upstream)
        found = value_and_gradients(module, leaves, upstream)
    # A sum over rows or columns of what was rounded to bfloat16 (2^-9) may differ by the order of its terms.
    exact = dtype != torch.bfloat16
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if exact else 0.0, atol=1e-6 if exact else 0.1)


def test_masks_keep_float32_gradients_and_autocast_its_bfloat16_products(generator, monkeypatch):
    """Half the memory and a fourth of the time of bfloat16 products are lost where one of their arguments is not."""
    seen, plain = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *tensors: seen.extend(t.dtype for t in tensors) or plain(*tensors))
    module, leaves = masked_linear(generator)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(leaves[0])
    assert outputs.dtype == torch.bfloat16 and set(seen) == {torch.bfloat16}
    assert {gradient.dtype for gradient in torch.autograd.grad(outputs.sum(), leaves)} == {torch.float32}
    module, leaves = masked_linear(generator, dtype=torch.bfloat16)
    gradients = torch.autograd.grad(module(leaves[0]).sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3 + [torch.float32] * 2


def test_linear_gradients_are_those_of_finite_differences(generator):
    weight, inputs = (torch.randn(5, size, generator=generator, dtype=torch.double) for size in (7, 7))
    rows, columns, bias = (torch.rand(size, generator=generator, dtype=torch.double) for size in (5, 7, 5))
    leaves = [tensor.requires_grad_() for tensor in (inputs, weight, rows, columns, bias)]
    assert torch.autograd.gradcheck(lambda *tensors: _ScaledLinear.apply(*tensors, torch.double), leaves)


def test_only_what_is_asked_for_gets_a_gradient(generator):
    module, leaves = masked_linear(generator)
    leaves[0].requires_grad_(False)
    module.weight.requires_grad_(False)
    module.input_mask = module.input_mask.detach()
    module(leaves[0]).sum().backward()
    assert module.output_mask.grad is not None and module.bias.grad is not None
    assert all(tensor.grad is None for tensor in (leaves[0], module.weight, module.input_mask))


def test_dtypes_that_a_linear_layer_refuses_are_refused(generator):
    module, leaves = masked_linear(generator, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="same dtype"):
        module(leaves[0].float())


@pytest.mark.parametrize("autocast", [True, False])
def test_the_scaled_weight_is_not_kept_for_the_backward_pass(generator, autocast):
    module, leaves = masked_linear(generator, bias=False)
    saved = {}
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        module(leaves[0])
    own = {leaf.data_ptr() for leaf in leaves[0 if not autocast else 1 :]}
    others = [tensor for pointer, tensor in saved.items() if pointer not in own]
    assert own <= set(saved)
    assert [(t.shape, t.dtype) for t in others] == ([((2, 3, 7), torch.bfloat16)] if autocast else [])


def test_a_weight_that_is_gathered_again_for_the_backward_pass(generator):
    """ZeRO-3 replaces the parameter's data; FSDP frees and refills the storage. Both between forward and backward."""
    module, leaves = masked_linear(generator)
    upstream = torch.randn(2, 3, 5, generator=generator)
    expected = value_and_gradients(module, leaves, upstream)
    whole = module.weight.detach().clone()
    outputs = module(leaves[0])
    module.weight.data = torch.empty(0)
    module.weight.data = whole
    for ours, theirs in zip(torch.autograd.grad(outputs, leaves, upstream), expected[1:], strict=True):
        assert torch.equal(ours, theirs)
    values, storage = whole.clone(), module.weight.untyped_storage()
    size, outputs = storage.size(), module(leaves[0])
    storage.resize_(0)
    storage.resize_(size)
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(module.weight):
        module.weight.copy_(values)
    for ours, theirs in zip(torch.autograd.grad(outputs, leaves, upstream), expected[1:], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("autocast", [True, False])
def test_linear_under_activation_checkpointing(generator, autocast):
    module, leaves = masked_linear(generator)
    upstream = torch.randn(2, 3, 5, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = module(leaves[0])
        again = checkpoint(module, leaves[0], use_reentrant=False)
    expected, found = (torch.autograd.grad(o, leaves, upstream.to(o.dtype)) for o in (plain, again))
    assert torch.equal(plain, again) and all(map(torch.equal, found, expected))


# Of torch's own tracing of autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("autocast", [True, False])
def test_linear_is_compiled_as_one_graph(generator, autocast):
    module, leaves = masked_linear(generator)
    upstream = torch.randn(2, 3, 5, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = value_and_gradients(module, leaves, upstream)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        found = value_and_gradients(compiled, leaves, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


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
