"""What masks do in a forward of the masked Llama: what they multiply, when they are drawn, the reference's logits."""

import copy
import inspect

import numpy as np
import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import TARGET, TRAINING_PHASE, enable_checkpointing, fresh, gradients
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase, MaskSettings
from hf_shear.modeling import ShearingLlamaForCausalLM, head_channel_masks, residual_write_masks
from hf_shear.shapes import ModelShape
from hf_shear.shapes.family_table import FAMILIES

# ---- what the masks do ------------------------------------------------------------------------------------------


def test_head_gate_is_the_product_of_group_and_query():
    shape = ModelShape(12, 1, 6, 2, 8, head_dim=2)
    groups, queries = torch.tensor([[0.5, 0.25]]), torch.tensor([[[1.0, 0.0, 0.5], [0.2, 0.4, 1.0]]])
    both = head_channel_masks({KEY_VALUE_HEAD: groups, QUERY_HEAD: queries}, shape)
    expected = [0.5, 0.5, 0, 0, 0.25, 0.25, 0.05, 0.05, 0.1, 0.1, 0.25, 0.25]
    torch.testing.assert_close(both, torch.tensor([expected]))
    only_groups = head_channel_masks({KEY_VALUE_HEAD: groups}, shape)
    assert only_groups.tolist() == [[0.5] * 6 + [0.25] * 6]
    only_queries = head_channel_masks({QUERY_HEAD: queries}, shape)
    torch.testing.assert_close(only_queries, queries.repeat_interleave(2).reshape(1, 12))
    assert head_channel_masks({}, shape) is None


def test_residual_writes_take_layer_and_hidden_gates():
    layer, hidden = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.2, 0.0])
    llama, nothing = FAMILIES["llama"], [None, None]
    both, post_norms = residual_write_masks({LAYER: layer, HIDDEN: hidden}, 2, llama)
    torch.testing.assert_close(torch.stack(both), torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.0, 0.0]]))
    assert post_norms == nothing
    assert [mask.tolist() for mask in residual_write_masks({LAYER: layer}, 2, llama)[0]] == [[0.5], [0.0]]
    assert residual_write_masks({HIDDEN: hidden}, 2, llama) == ([hidden, hidden], nothing)
    assert residual_write_masks({}, 2, llama) == (nothing, nothing)


def test_layer_gates_act_on_the_norms_behind_the_sublayers():
    layer, hidden = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.2, 0.0])
    writes, post_norms = residual_write_masks({LAYER: layer, HIDDEN: hidden}, 2, FAMILIES["gemma2"])
    assert writes == [hidden, hidden] and [mask.tolist() for mask in post_norms] == [[0.5], [0.0]]


def test_closed_units_can_hold_anything(source, add_masks, token_ids):
    """What masks close must not be read: noise in it changes no logit."""
    model = fresh(source, add_masks)
    kept = model.masks.kept_units()
    with torch.no_grad():
        before = model(token_ids).logits
        hidden = ~kept[HIDDEN]
        model.model.embed_tokens.weight[:, hidden] += 5
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.bias[hidden] += 5
            layer.mlp.down_proj.bias[hidden] += 5
            layer.mlp.down_proj.weight[hidden] += 5
            layer.mlp.up_proj.weight[~kept[INTERMEDIATE][index]] += 5
            heads = (kept[KEY_VALUE_HEAD][index].unsqueeze(-1) & kept[QUERY_HEAD][index]).flatten()
            layer.self_attn.q_proj.bias[~heads.repeat_interleave(4)] += 5
            layer.self_attn.v_proj.weight[~kept[KEY_VALUE_HEAD][index].repeat_interleave(4)] += 5
            if not kept[LAYER][index]:
                layer.self_attn.o_proj.weight += 5
                layer.mlp.down_proj.bias += 5
        torch.testing.assert_close(model(token_ids).logits, before, rtol=0, atol=1e-5)
        model.model.embed_tokens.weight[:, kept[HIDDEN]] += 5
        assert (model(token_ids).logits - before).abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_masks_wide_open_are_the_source_in_training_mode(build_llama, add_masks, token_ids, tied, method):
    source = build_llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=tied)
    everything = {name: getattr(source.config, name) for name in TARGET}
    model = add_masks(source, everything, MaskSettings(method=method)).train()
    expected = source.train()(token_ids, labels=token_ids)
    output = model(token_ids, labels=token_ids)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert output.lagrangian_loss is None


def test_relaxed_masks_are_the_source_before_the_warmup_starts(source, add_masks, token_ids):
    model = fresh(source, add_masks).train()
    model.set_mask_phase(MaskPhase(budget_progress=0.0, temperature=0.5, noise_scale=0.4))
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids).logits, source(token_ids).logits, rtol=0, atol=1e-5)


def test_lagrangian_is_given_beside_the_loss_and_only_in_training(source, add_masks, token_ids):
    model = fresh(source, add_masks, "hard_concrete")
    for training in (True, False):
        model.train(training)
        model.set_mask_phase(TRAINING_PHASE)
        output = model(token_ids, labels=token_ids)
        cross_entropy = F.cross_entropy(output.logits[:, :-1].reshape(-1, 40), token_ids[:, 1:].reshape(-1))
        torch.testing.assert_close(output.loss, cross_entropy)
        if training:
            assert output.lagrangian_loss.abs() > 0.1
            torch.testing.assert_close(output.lagrangian_loss, model.masks.lagrangian())
        else:
            assert output.lagrangian_loss is None
    assert fresh(source, add_masks).train()(token_ids).lagrangian_loss is None


def test_training_draws_by_step_and_evaluation_does_not_draw(source, add_masks, token_ids):
    model = fresh(source, add_masks, "hard_concrete")

    def logits(step, training):
        model.train(training).set_mask_phase(MaskPhase(optimizer_step=step))
        with torch.no_grad():
            return model(token_ids).logits

    assert torch.equal(logits(1, True), logits(1, True))
    assert not torch.allclose(logits(1, True), logits(2, True))
    assert torch.equal(logits(1, False), logits(2, False))
    assert not torch.allclose(logits(1, True), logits(1, False))


def test_gates_can_be_given(source, add_masks, token_ids):
    model = fresh(source, add_masks)
    before = model(token_ids).logits
    gates = {LAYER: torch.tensor([0.5, 1.0, 0.0, 1.0], requires_grad=True)}
    with model.use_gates(gates):
        given = model(token_ids, labels=token_ids)
    assert not torch.allclose(given.logits, before)
    (gradient,) = torch.autograd.grad(given.loss, gates[LAYER])
    assert torch.isfinite(gradient).all() and (gradient != 0).all()
    assert torch.equal(model(token_ids).logits, before)
    with pytest.raises(KeyError), model.use_gates(gates):
        raise KeyError
    assert torch.equal(model(token_ids).logits, before)


@pytest.mark.parametrize("name, shape", [(HIDDEN, (17,)), (KEY_VALUE_HEAD, (4, 9)), ("head", (4, 9))])
def test_gates_of_another_shape_or_name_are_refused(source, add_masks, name, shape):
    model = fresh(source, add_masks)
    with pytest.raises(ValueError, match=rf"`gates\['{name}'\]` has shape .*'hidden': \(18,\)"):
        with model.use_gates({name: torch.ones(shape)}):
            pass


def test_gates_multiply_their_module_s_activations(source, add_masks, token_ids):
    """All kinds but hidden, against hooks on a stock model that multiply activations, as the paper writes it."""
    model = add_masks(source, TARGET)
    generator = torch.Generator().manual_seed(3)
    kinds = model.masks.kinds
    gates = {
        name: torch.rand(kinds[name].mask_shape, generator=generator)
        for name in (LAYER, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)
    }
    with torch.no_grad(), model.use_gates(gates):
        logits = model(token_ids).logits
    heads = (gates[KEY_VALUE_HEAD].unsqueeze(-1) * gates[QUERY_HEAD]).reshape(4, 9)
    hooks = []
    for index, layer in enumerate(source.model.layers):
        channels, neurons, share = heads[index].repeat_interleave(4), gates[INTERMEDIATE][index], gates[LAYER][index]
        for module, mask in ((layer.self_attn.o_proj, channels), (layer.mlp.down_proj, neurons)):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
            hooks.append(module.register_forward_hook(lambda *call, share=share: call[2] * share))
    try:
        with torch.no_grad():
            torch.testing.assert_close(logits, source(token_ids).logits, rtol=0, atol=1e-5)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_copy_computes_the_same(source, add_masks, token_ids, checkpointed):
    """Even with a graph pending, which the copy must not break."""
    model = fresh(source, add_masks).train()
    model.set_mask_phase(TRAINING_PHASE)
    if checkpointed:
        enable_checkpointing(model)
    expected = gradients(model, token_ids)
    model.zero_grad()
    pending = model(token_ids, labels=token_ids)
    clone = copy.deepcopy(model)
    pending.loss.backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in model.named_parameters())
    found = gradients(clone, token_ids)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    with torch.no_grad():
        assert torch.equal(clone(token_ids).logits, pending.logits)
        clone.masks.log_alpha[HIDDEN].neg_()
        clone.model.embed_tokens.weight.zero_()
        assert torch.equal(model(token_ids).logits, pending.logits)


# ---- how the model may be called --------------------------------------------------------------------------------


def test_layers_without_masks_are_refused(source, add_masks, token_ids):
    model = fresh(source, add_masks)
    model(token_ids)
    with pytest.raises(ValueError, match="ran without its masks.*call the masked model itself"):
        model.model(token_ids)


def test_raw_embeddings_are_refused(source, add_masks, token_ids):
    model = fresh(source, add_masks)
    embedded = source.model.embed_tokens(token_ids)
    calls = (
        lambda: model(inputs_embeds=embedded),
        lambda: model(None, None, None, None, embedded),
        lambda: model.generate(inputs_embeds=embedded, max_new_tokens=2),
        lambda: model(attention_mask=torch.ones_like(token_ids)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="`input_ids` must be given.*`inputs_embeds` .*: pass `input_ids`"):
            call()
    assert torch.equal(model(input_ids=token_ids, inputs_embeds=None).logits, model(token_ids).logits)


def test_the_forward_has_the_stock_signature():
    assert inspect.signature(ShearingLlamaForCausalLM.forward) == inspect.signature(LlamaForCausalLM.forward)


# ---- the reference's masked logits ------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["binary", "soft_nohidden"])
def test_reference_masked_logits(shared_data, masks):
    """On logits of up to 23."""
    reference = np.load(shared_data / "reference" / "stories260K_mha_masks.npz")
    target = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 128}
    model = ShearingLlamaForCausalLM.from_pretrained(shared_data / "models" / "stories260K-mha", target_shape=target)
    ids = torch.from_numpy(reference["input_ids"])
    assert (reference[f"{masks}.head_layer_z"] == reference[f"{masks}.mlp_z"]).all()
    shapes = {
        "head_z": (KEY_VALUE_HEAD, (5, 8)),
        "intermediate_z": (INTERMEDIATE, (5, 172)),
        "head_layer_z": (LAYER, (5,)),
        "hidden_z": (HIDDEN, (64,)),
    }
    gates = {
        kind: torch.from_numpy(reference[f"{masks}.{name}"]).reshape(shape)
        for name, (kind, shape) in shapes.items()
        if f"{masks}.{name}" in reference
    }
    assert len(gates) == (4 if masks == "binary" else 3)
    with torch.no_grad():
        with model.use_gates(gates):
            logits = model(ids).logits
        with model.use_gates({}):
            dense = model(ids).logits
        plain = LlamaForCausalLM.from_pretrained(shared_data / "models" / "stories260K-mha")(ids).logits
    expected = torch.from_numpy(reference[f"{masks}.masked_logits"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(dense, torch.from_numpy(reference["dense_logits"]), rtol=0, atol=1e-4)
    assert torch.equal(dense, plain)
    assert (expected - dense).abs().max() > 1
