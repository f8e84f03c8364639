"""A and G, streamed: the same as from whole forwards, for any batches, windows, checkpointing, and over ranks."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from launching import free_port
from masked_llama_helpers import TARGET, scatter_masks
from test_families import build

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.calibration import Moments, ShortCalibrationWarning, stream_curvature, stream_inputs
from hf_shear.calibration.moments import add_products, full_float32, mirror
from hf_shear.core import counted_tokens
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD
from hf_shear.sparsity import collect_factors, decoder_linears
from hf_shear.sparsity.factors import mean_loss

NAMES = ("self_attn.o_proj", "mlp.down_proj")


def samples(number=10, length=12):
    return torch.randint(3, 40, (number, length), generator=torch.Generator().manual_seed(3))


def batches_of(ids, size, labels=None, **more):
    labels = ids if labels is None else labels
    whole = {"input_ids": ids, "labels": labels, **more}
    return [{name: value[i : i + size] for name, value in whole.items()} for i in range(0, len(ids), size)]


def expected_moments(model, ids, labels=None, attention_mask=None):
    """A and G by module name, from one sample at a time and gradients of its summed loss, in float64."""
    labels = ids if labels is None else labels
    model = model.double()
    inputs, outputs, handles = {}, {}, []
    for index, layer in enumerate(model.model.layers):
        for name in NAMES:

            def keep(module, args, output, key=(index, name)):
                output.retain_grad()
                inputs[key], outputs[key] = args[0].detach(), output

            handles.append(layer.get_submodule(name).register_forward_hook(keep))
    grams, gradients, tokens, predicted = {}, {}, 0, 0
    for number, (row, label) in enumerate(zip(ids, labels, strict=True)):
        mask = None if attention_mask is None else attention_mask[number : number + 1]
        logits = model(row[None], attention_mask=mask, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], label[1:], reduction="sum")
        loss.backward()
        counted = torch.ones(len(row), dtype=torch.bool) if mask is None else mask[0].bool()
        tokens, predicted = tokens + int(counted.sum()), predicted + int((label[1:] != -100).sum())
        for key in inputs:
            a, g = inputs[key][0][counted], outputs[key].grad[0]
            grams[key] = grams.get(key, 0) + a.t() @ a
            gradients[key] = gradients.get(key, 0) + g.t() @ g
    for handle in handles:
        handle.remove()
    return {key: gram / tokens for key, gram in grams.items()}, {
        key: gradient / predicted for key, gradient in gradients.items()
    }


def streamed(model, batches, **options):
    grams, gradients, order = {}, {}, []
    for index, found in stream_curvature(model, batches, **options):
        order.append(index)
        for name in NAMES:
            grams[index, name] = found.inputs[name].gram.double()
            gradients[index, name] = found.gradients[name].gram.double()
    assert order == list(range(4))
    return grams, gradients


def assert_same(found, expected, tolerance=2e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and len(one) == 8
        for key, matrix in other.items():
            assert float((one[key] - matrix).abs().max()) <= tolerance * float(matrix.abs().max()), key


@pytest.mark.parametrize(
    "size, options",
    [
        (10, {}),
        (3, {}),
        (1, {"layers_per_pass": 1}),
        (4, {"layers_per_pass": 3}),
        (4, {"activation_checkpointing": True}),
        (4, {"layers_per_pass": 2, "activation_checkpointing": True, "store": "cpu"}),
    ],
)
def test_curvature_is_that_of_single_samples(build_llama, size, options):
    ids = samples()
    expected = expected_moments(build_llama(), ids)
    assert_same(streamed(build_llama(), batches_of(ids, size), **options), expected)


def test_forward_passes_give_the_same_inputs(build_llama):
    ids = samples()
    expected, _ = expected_moments(build_llama(), ids)
    found = {}
    for index, inputs in stream_inputs(build_llama(), batches_of(ids, 4)):
        found |= {(index, name): moments.gram.double() for name, moments in inputs.items()}
        assert inputs[NAMES[0]].count == ids.numel()
    assert_same([found], [expected])


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "granite", "olmo3", "phi3", "smollm3"])
def test_families_whose_layers_or_heads_differ(name):
    """Attention masks and embeddings by layer, norms behind o_proj, scaled or capped logits."""
    ids = samples(4)
    options = {"layers_per_pass": 2, "activation_checkpointing": True}
    found = streamed(build(name), batches_of(ids, 2), **options)
    assert_same(found, expected_moments(build(name), ids))


@pytest.mark.parametrize("left", [False, True])
def test_padding_and_ignored_labels_do_not_count(build_llama, left):
    ids = samples()
    mask = torch.ones_like(ids)
    for row in range(len(ids)):
        mask[row, slice(0, row % 4) if left else slice(12 - row % 4, 12)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    expected = expected_moments(build_llama(), ids, labels, mask)
    options = {"labels": labels, "attention_mask": mask}
    assert_same(streamed(build_llama(), batches_of(ids, 3, **options), layers_per_pass=2), expected)
    if not left:  # then nothing that counts reads what is behind it, and labels alone say what that is
        assert_same(streamed(build_llama(), batches_of(ids, 3, labels)), expected)


def test_under_gates_closed_units_write_nothing_and_columns_are_unmasked(build_llama):
    """A is of what reaches the linear layer, whose weight holds the gates; G sees the loss of the gated model."""
    ids, source = samples(), build_llama()
    masked = ShearingLlamaForCausalLM.from_model(source, {"intermediate_size": 11}).eval()
    gates = {
        HIDDEN: (torch.arange(18) % 3 != 1).float(),
        KEY_VALUE_HEAD: torch.tensor([[1.0, 0, 1]]).repeat(4, 1),
        INTERMEDIATE: (torch.rand(4, 22, generator=torch.Generator().manual_seed(2)) > 0.3).float(),
    }
    with masked.use_gates(gates):
        found = streamed(masked, batches_of(ids, 4), layers_per_pass=3, activation_checkpointing=True)
    double = ShearingLlamaForCausalLM.from_model(build_llama(), {"intermediate_size": 11}).eval()
    with double.use_gates(gates):
        expected = expected_moments(double, ids)
    assert_same(found, expected)
    closed = gates[HIDDEN] == 0
    assert float(found[1][2, "mlp.down_proj"][closed].abs().max()) == 0


@pytest.mark.parametrize("stream", [stream_inputs, stream_curvature])
def test_a_masked_model_without_gates_in_use_is_the_source(build_llama, add_masks, stream):
    source = build_llama()
    masked = scatter_masks(add_masks(source, TARGET))
    batches = batches_of(samples(), 5)
    for (_, found), (_, expected) in zip(stream(masked, batches), stream(source, batches), strict=True):
        found, expected = (getattr(one, "inputs", one) for one in (found, expected))
        for name, moments in expected.items():
            torch.testing.assert_close(found[name].gram, moments.gram)


@pytest.mark.parametrize(
    "batch, expected",
    [
        ({}, [[1, 1, 1]]),
        ({"labels": torch.tensor([[5, -100, 7]])}, [[1, 0, 1]]),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, [[0, 1, 1]]),
        ({"attention_mask": torch.tensor([[0, 1, 1]]), "labels": torch.tensor([[5, -100, 7]])}, [[0, 0, 1]]),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, [[1, 1, 1]]),  # added to the scores: who attends to whom
        ({"attention_mask": torch.ones(1, 1, 3, 3).tril().bool(), "labels": torch.tensor([[5, 6, -100]])}, [[1, 1, 0]]),
    ],
)
def test_tokens_that_count(batch, expected):
    found = counted_tokens({"input_ids": torch.tensor([[5, 6, 7]])} | batch)
    assert found.dtype == torch.bool and found.int().tolist() == expected


def test_the_model_is_left_as_it_was(build_llama):
    model = build_llama().train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    list(stream_curvature(model, batches_of(samples(), 5)))
    list(stream_inputs(model, batches_of(samples(), 5)))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_changed_layer_does_not_change_what_follows(build_llama):
    """Compensation updates a layer as soon as it has its statistics: later layers still see the source's activations."""
    expected, found, model = {}, {}, build_llama()
    for index, inputs in stream_inputs(build_llama(), batches_of(samples(), 4)):
        expected |= {(index, name): moments.gram for name, moments in inputs.items()}
    for index, inputs in stream_inputs(model, batches_of(samples(), 4)):
        found |= {(index, name): moments.gram for name, moments in inputs.items()}
        model.model.layers[index].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(18, 22))
    assert all(torch.equal(found[key], matrix) for key, matrix in expected.items())


@pytest.mark.parametrize("size", [3, 256, 1025])
def test_blocks_of_a_symmetric_sum(size):
    rows = torch.randn(7, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    add_products(total, rows[:4])
    add_products(total, rows[4:])
    torch.testing.assert_close(mirror(total), rows.t() @ rows)


def test_moments_in_float32_of_half_precision_inputs():
    inputs = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    moments = Moments.zeros(6)
    moments.add(inputs)
    flat = inputs.double().view(-1, 6)
    assert moments.gram.dtype == torch.float32
    torch.testing.assert_close(moments.gram.double(), flat.t() @ flat / 200, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.mean.double(), flat.mean(0), rtol=1e-5, atol=1e-6)


def test_sums_are_in_full_float32_whatever_the_user_allows():
    seen, backends = [], (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if "addmm" in function.__name__:
                seen.extend(backend.fp32_precision for backend in backends)
            return super().__torch_function__(function, types, args, kwargs)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        allowed = [backend.fp32_precision for backend in backends]
        add_products(torch.zeros(3, 3), torch.ones(5, 3).as_subclass(Watched))
        assert set(seen) == {"ieee"} and "ieee" not in allowed
        assert [backend.fp32_precision for backend in backends] == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_of_half_precision_are_exact_on_faster_units():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    for dtype, wanted in ((torch.bfloat16, ["tf32", "bf16"]), (torch.float16, ["tf32", "ieee"])):
        with full_float32(dtype):
            assert [backend.fp32_precision for backend in backends] == wanted
    rows = torch.randn(500, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    total = torch.zeros(300, 300)
    add_products(total, rows)
    exact = rows.double().t() @ rows.double()
    assert (mirror(total) - exact).abs().max() < 2e-6 * exact.max()


def test_gradients_may_be_read_of_the_first_samples_alone(build_llama):
    """A is of all samples, G of the first; also where a batch holds both, and in windows of layers."""
    ids = samples(10)
    everything = dict(stream_curvature(build_llama(), batches_of(ids, 4)))
    first = dict(stream_curvature(build_llama(), batches_of(ids[:6], 3)))
    for options in ({}, {"layers_per_pass": 3}):
        for index, found in stream_curvature(build_llama(), batches_of(ids, 4), gradient_samples=6, **options):
            for name in NAMES:
                torch.testing.assert_close(found.inputs[name].gram, everything[index].inputs[name].gram)
                wanted = first[index].gradients[name].gram
                torch.testing.assert_close(found.gradients[name].gram, wanted, rtol=1e-4, atol=1e-9)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_text_shorter_than_the_inputs_warns_once_and_can_be_silenced(build_llama):
    message = "has 24 tokens, fewer than the 36 inputs of self_attn.o_proj.*Give at least 36 tokens"
    short = batches_of(samples(2), 2)
    with pytest.warns(ShortCalibrationWarning, match=message) as caught:
        list(stream_curvature(build_llama(), short))
    assert len(caught) == 1
    with pytest.warns(ShortCalibrationWarning, match=message) as caught:
        list(stream_inputs(build_llama(), short))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortCalibrationWarning)
        list(stream_inputs(build_llama(), short))
    list(stream_inputs(build_llama(), batches_of(samples(3), 2)))  # 36 tokens are enough for a full rank


def test_a_loss_that_is_not_finite_is_refused_at_its_batch(build_llama):
    model = build_llama()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="The loss of calibration batch 0 is not finite.*dtype"):
        next(stream_curvature(model, batches_of(samples(), 4)))


def test_batches_without_anything_to_predict_are_refused(build_llama):
    ids = samples()
    with pytest.raises(ValueError, match="No token of the calibration text counts"):
        next(stream_curvature(build_llama(), batches_of(ids, 4, torch.full_like(ids, -100))))
    first = ids.masked_fill(torch.arange(12) > 0, -100)  # a label of a first token is predicted from nothing
    with pytest.warns(ShortCalibrationWarning), pytest.raises(ValueError, match="no token is predicted"):
        next(stream_curvature(build_llama(), batches_of(ids, 4, first)))
    with pytest.raises(ValueError, match="no `labels`"):
        next(stream_curvature(build_llama(), [{"input_ids": ids}]))
    with pytest.raises(ValueError, match="`batches` is empty"):
        next(stream_inputs(build_llama(), []))
    with pytest.raises(ValueError, match="`layers_per_pass` must be at least 1, but it is 0"):
        next(stream_curvature(build_llama(), batches_of(ids, 4), layers_per_pass=0))


# ---- over ranks -----------------------------------------------------------------------------------------------------


def factors_of(model, batches):
    """A and G of all linear layers, and the loss: what zeros are chosen by."""
    factors, loss = collect_factors(model, decoder_linears(model), Calibration(batches))
    assert loss == mean_loss(model, Calibration(batches))
    return {name: (found.inputs, found.outputs) for name, found in factors.items()}, loss


def curvature_of_rank(rank, port, model, ids, path=None):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        share = ids[:3] if rank == 0 else ids[3:]  # unequal shares, in unequal numbers of batches
        found = streamed(model, batches_of(share, 2), layers_per_pass=2)
        factors = factors_of(model, batches_of(share, 2))
    finally:
        dist.destroy_process_group()
    if path is not None:
        torch.save((found, factors), path)
    return found, factors


def test_two_ranks_find_what_one_does(build_llama, tmp_path):
    ids, port, path = samples(), free_port(), tmp_path / "other.pt"
    alone, (factors, loss) = (
        streamed(build_llama(), batches_of(ids, 10)),
        factors_of(build_llama(), batches_of(ids, 10)),
    )
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=curvature_of_rank, args=(1, port, build_llama(), ids, path))
    other.start()
    results = [curvature_of_rank(0, port, build_llama(), ids)]
    other.join()
    assert other.exitcode == 0
    results.append(torch.load(path))
    for found, (found_factors, found_loss) in results:
        assert_same(found, alone, 1e-5)
        assert found_loss == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found_factors, factors, rtol=1e-4, atol=1e-5)


def test_the_zeros_rank_by_the_same_moments(build_llama):
    """Two collectors, one definition: with padding and ignored labels, under any batch size."""
    ids = samples()
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:4, :3] = -100
    wanted = streamed(build_llama(), batches_of(ids, 4, labels, attention_mask=mask))
    factors, _ = factors_of(build_llama(), batches_of(ids, 5, labels, attention_mask=mask))
    for place, streams in enumerate(wanted):
        found = {(index, name): factors[f"model.layers.{index}.{name}"][place].double() for index, name in streams}
        torch.testing.assert_close(found, streams, rtol=1e-4, atol=1e-5)
