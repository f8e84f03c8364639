"""The masked Llama: loading, saving, modes, gradients, checkpointing, generation, the reference's masked logits."""

import copy
import inspect
import json
import logging
import shutil
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from hf_shear.families import FAMILIES
from hf_shear.masks import (
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    QUERY_HEAD,
    MaskPhase,
    MaskSettings,
    ShearingMasks,
)
from hf_shear.modeling import (
    ShearingLlamaConfig,
    ShearingLlamaForCausalLM,
    head_channel_masks,
    residual_write_masks,
)
from hf_shear.shapes import ModelShape, TargetShape
from hf_shear.slicing import slice_model

TARGET = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 13,
}
PAPER = MaskSettings(method="hard_concrete", seed=5)
TRAINING_PHASE = MaskPhase(optimizer_step=3, temperature=0.5, noise_scale=0.4)
METHODS = ("hard_concrete", "relaxed_topk")


@pytest.fixture(scope="module")
def source(build_llama):
    return build_llama(attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def source_folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    source.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def masked_folder(source_folder, tmp_path_factory):
    """A masked checkpoint whose masks, multipliers and phase are all away from their start."""
    model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, mask_settings=PAPER)
    scatter_masks(model)
    model.set_mask_phase(MaskPhase(7, 1, 0.25, 0.125, 0.5, 0.75))
    folder = tmp_path_factory.mktemp("masked")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def no_transformers_log():
    """transformers reports missing weights by a log line of its own; only our exception is wanted here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def scatter_masks(model, seed=0):
    """Random scores and multipliers, so that deterministic masks keep scattered units of every kind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.masks.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return model


def fresh(source, add_masks, method="relaxed_topk", target=TARGET, seed=0, **settings):
    model = add_masks(source, target, MaskSettings(method=method, **settings))
    return scatter_masks(model, seed)


def enable_checkpointing(model, options=None, **kwargs):
    """By the name that the installed transformers has for it: the older one is deprecated from 5.23 on."""
    older = not hasattr(model, "activation_checkpointing_enable")
    (model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable)(options, **kwargs)


def gradients(model, token_ids, lagrangian_share=1.0):
    model.zero_grad()
    output = model(token_ids, labels=token_ids)
    loss = output.loss
    if output.lagrangian_loss is not None:
        loss = loss + lagrangian_share * output.lagrangian_loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- loading a plain checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_plain_checkpoint_starts_its_masks_exactly_and_takes_its_weights(monkeypatch, source, source_folder, method):
    """Missing parameters are made uninitialised: hand out NaN, so that no leftover memory passes for a start."""

    def poisoned(function):
        def call(*args, **kwargs):
            tensor = function(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return call

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    settings = MaskSettings(method=method, seed=5)
    expected = None
    for _ in range(3):
        model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, mask_settings=settings)
        start = model.masks.start_parameters()
        assert start.keys() == dict(model.masks.named_parameters()).keys()
        for name, parameter in model.masks.named_parameters():
            assert torch.equal(parameter, start[name]), name
            assert parameter.dtype == torch.float32 and parameter.requires_grad
        expected = start if expected is None else expected
        assert all(torch.equal(start[name], expected[name]) for name in start)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("masks.")}
    assert weights.keys() == source.state_dict().keys()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in weights.items())
    assert not model.training


def test_building_from_a_config_starts_masks_too(source):
    target = TargetShape.from_source(source.config, **TARGET)
    model = ShearingLlamaForCausalLM(ShearingLlamaConfig.from_source(source.config, target, PAPER))
    start = model.masks.start_parameters()
    assert all(torch.equal(parameter, start[name]) for name, parameter in model.masks.named_parameters())


def test_target_may_be_an_object_or_a_dict(source, source_folder):
    target = TargetShape.from_source(source.config, intermediate_size=13)
    for given in (target, {"intermediate_size": 13}):
        model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=given)
        assert model.masks.target.to_dict() == target.to_dict()
        assert [kind.name for kind in model.masks.constrained] == [INTERMEDIATE]
        assert not [name for name, _ in model.masks.named_parameters() if name != "log_alpha_intermediate"]


def test_config_remembers_source_target_and_settings(source_folder):
    model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, mask_settings=PAPER)
    assert model.config.model_type == "shearing_llama"
    assert model.config.source_name_or_path == str(source_folder)
    assert model.config.resolved_target().sizes() == TARGET
    assert model.config.resolved_settings() == PAPER
    assert model.config.head_dim == 4 and model.config.rope_parameters["rope_theta"] == 10000.0


def test_tied_embeddings_stay_tied(build_llama, tmp_path):
    build_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("saved, asked", [(torch.bfloat16, None), (torch.float16, None), (None, torch.bfloat16)])
def test_dtype_is_the_checkpoint_s_or_the_one_asked_for_and_masks_stay_float32(build_llama, tmp_path, saved, asked):
    source = build_llama()
    (source if saved is None else source.to(saved)).save_pretrained(tmp_path)
    options = {} if asked is None else {"dtype": asked}
    model = ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET, mask_settings=PAPER, **options)
    assert model.dtype == model.model.layers[0].mlp.down_proj.weight.dtype == (saved or asked)
    start = model.masks.start_parameters()
    for name, parameter in model.masks.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, start[name])


def test_dtype_may_be_spelled_torch_dtype(source_folder):
    model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, torch_dtype=torch.bfloat16)
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.masks.log_alpha[HIDDEN].dtype == torch.float32
    both = ShearingLlamaForCausalLM.from_pretrained(
        source_folder, target_shape=TARGET, torch_dtype=torch.bfloat16, dtype=torch.float16
    )
    assert both.dtype == torch.float16


@pytest.mark.parametrize("load", [ShearingLlamaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_config_can_be_changed_on_loading(source_folder, masked_folder, load):
    options = {"use_cache": False, "attention_dropout": 0.1, "output_hidden_states": True, "dtype": torch.bfloat16}
    models = [load(masked_folder, attn_implementation="eager", **options)]
    if load == ShearingLlamaForCausalLM.from_pretrained:
        models.append(load(source_folder, target_shape=TARGET, attn_implementation="eager", **options))
    for model in models:
        assert {name: getattr(model.config, name) for name in options} == options
        assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
        assert model.model.layers[0].self_attn.attention_dropout == 0.1
        output = model(torch.arange(3, 9).view(1, 6))
        assert len(output.hidden_states) == 5 and "cache" not in output and "past_key_values" not in output


def test_arguments_that_no_config_knows_are_refused_as_by_stock_classes(source, source_folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_cash'"):
        ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, use_cash=False)
    # A config that is given is taken for final.
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_cache'"):
        ShearingLlamaForCausalLM.from_pretrained(
            source_folder, target_shape=TARGET, config=source.config, use_cache=False
        )


@pytest.mark.parametrize("revision", ["main", None])
def test_the_commit_is_recorded_and_not_the_branch(source_folder, tmp_path, revision):
    """From a cache as the Hub's client lays it out; nothing is downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--llama"
    shutil.copytree(source_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options = {} if revision is None else {"revision": revision}
    model = ShearingLlamaForCausalLM.from_pretrained(
        "some/llama", target_shape=TARGET, cache_dir=tmp_path, local_files_only=True, **options
    )
    assert model.config.source_name_or_path == "some/llama"
    assert model.config.source_revision == commit


@pytest.mark.parametrize("commit, recorded", [("0" * 40, "0" * 40), (None, "main")])
def test_the_config_s_commit_wins_over_the_branch(source, commit, recorded):
    source_config = copy.deepcopy(source.config)
    source_config._commit_hash = commit  # releases of transformers before 5.20 set it
    target = TargetShape.from_source(source_config, **TARGET)
    assert ShearingLlamaConfig.from_source(source_config, target, PAPER, "main").source_revision == recorded


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_casting_the_model_leaves_masks_alone(source, add_masks, token_ids, cast):
    model = fresh(source, add_masks, "hard_concrete")
    before = {name: parameter.detach().clone() for name, parameter in model.masks.named_parameters()}
    cast(model).train()
    model(token_ids, labels=token_ids).loss.backward()
    for name, parameter in model.masks.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name])
    assert model.masks.log_alpha[HIDDEN].grad.dtype == torch.float32


def test_loading_info_is_given_when_asked_for(source_folder):
    model, info = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET, output_loading_info=True)
    assert isinstance(model, ShearingLlamaForCausalLM) and not info["mismatched_keys"]


# ---- what is refused --------------------------------------------------------------------------------------------


def test_a_plain_checkpoint_needs_a_target(source_folder):
    with pytest.raises(ValueError, match="`target_shape` is needed to add masks.*hidden_size, num_hidden_layers"):
        ShearingLlamaForCausalLM.from_pretrained(source_folder)


def test_a_bad_target_is_refused_before_any_weight_is_read(source, tmp_path):
    source.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`hidden_size` must be between 1 and the source's 18, but it is 19"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape={"hidden_size": 19})


def test_another_family_is_refused_and_the_supported_one_is_named(tmp_path):
    config = MistralConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'mistral' has no exact equivalent of model_type 'llama'"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape={"intermediate_size": 4})


def copy_without(folder, target, *parts):
    """A copy of a checkpoint without the tensors whose names contain any of ``parts``."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


@pytest.mark.parametrize("part", ["layers.2.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight", "layers.1."])
def test_missing_weights_are_refused_by_name(source_folder, masked_folder, tmp_path, part, no_transformers_log):
    copy_without(source_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET)
    copy_without(masked_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["masks.log_alpha_hidden", "masks.multiplier_linear", "masks."])
def test_a_masked_checkpoint_without_its_masks_is_refused(masked_folder, tmp_path, part, no_transformers_log):
    """Start values in place of learned ones would be a silent loss of the whole mask learning."""
    copy_without(masked_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(source_folder, tmp_path, no_transformers_log):
    copy_without(source_folder, tmp_path, "model.norm.weight")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(17)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="mismatch|another shape"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET)
    with pytest.raises(ValueError, match=r"weights of another shape .*model\.norm\.weight"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET, ignore_mismatched_sizes=True)


# ---- saving and loading masked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [ShearingLlamaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_masked_checkpoint_comes_back_whole(masked_folder, token_ids, load):
    model = load(masked_folder)
    assert type(model) is ShearingLlamaForCausalLM
    saved = load_file(masked_folder / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert len([name for name in saved if name.startswith("masks.")]) == 7
    assert model.masks.phase == MaskPhase(7, 1, 0.25, 0.125, 0.5, 0.75)
    assert model.masks.settings == PAPER and model.masks.target.sizes() == TARGET


def test_masked_checkpoint_has_a_model_type_of_its_own(masked_folder):
    config = json.loads((masked_folder / "config.json").read_text())
    assert config["model_type"] == "shearing_llama"
    assert config["architectures"] == ["ShearingLlamaForCausalLM"]
    assert config["mask_phase"] == asdict(MaskPhase(7, 1, 0.25, 0.125, 0.5, 0.75))
    assert type(AutoConfig.from_pretrained(masked_folder)) is ShearingLlamaConfig


@pytest.mark.parametrize("method", METHODS)
def test_a_reloaded_model_computes_and_draws_the_same(source, add_masks, token_ids, tmp_path, method):
    model = fresh(source, add_masks, method)
    model.set_mask_phase(TRAINING_PHASE)
    model.save_pretrained(tmp_path)
    again = ShearingLlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, model(token_ids).logits)
        assert torch.equal(again.train()(token_ids).logits, model.train()(token_ids).logits)


def test_masks_of_a_bfloat16_checkpoint_are_saved_in_float32(source, add_masks, tmp_path):
    model = fresh(source, add_masks, "hard_concrete").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.float32}, {"dtype": torch.float16}):
        again = ShearingLlamaForCausalLM.from_pretrained(tmp_path, **options)
        assert again.dtype == options.get("dtype", torch.bfloat16)
        for name, parameter in again.masks.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, model.masks.get_parameter(name))


def test_the_same_target_and_settings_may_be_repeated(masked_folder):
    model = ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=TARGET, mask_settings=PAPER)
    assert model.masks.target.sizes() == TARGET


@pytest.mark.parametrize("given", [{"hidden_size": 12}, {"intermediate_size": 13, "num_hidden_layers": None}, {}])
def test_a_part_of_the_same_target_may_be_repeated(masked_folder, given):
    model = ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=given)
    assert model.masks.target.sizes() == TARGET


@pytest.mark.parametrize("given", [{"hidden_size": 18}, {"num_hidden_layers": 3, "head_dim": 5}, {"hidden": 12}])
def test_a_part_of_another_target_is_refused_on_reload(masked_folder, given):
    with pytest.raises(ValueError, match=f"`target_shape` {given} differs from .*'hidden_size': 12"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=given)


def test_another_target_is_refused_on_reload(masked_folder):
    wrong = {**TARGET, "intermediate_size": 12}
    with pytest.raises(ValueError, match="`target_shape` .*'intermediate_size': 12.* differs from .*: 13"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=wrong)


def test_other_settings_are_refused_on_reload(masked_folder):
    with pytest.raises(ValueError, match="`mask_settings` .*seed=6.* differ from .*seed=5"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, mask_settings=MaskSettings("hard_concrete", seed=6))


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


# ---- gradients, checkpointing, attention, host synchronisation --------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_masks_multipliers_and_weights(source, add_masks, token_ids, method):
    model = fresh(source, add_masks, method).train()
    model.set_mask_phase(TRAINING_PHASE)
    found = gradients(model, token_ids)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all() and (gradient != 0).any(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"preserve_rng_state": False}])
def test_checkpointing_gives_the_same_gradients(source, add_masks, token_ids, method, options):
    model = fresh(source, add_masks, method).train()
    model.set_mask_phase(TRAINING_PHASE)
    expected = gradients(model, token_ids)
    enable_checkpointing(model, options)
    assert model.model.gradient_checkpointing
    found = gradients(model, token_ids)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_masks_are_drawn_once_per_forward_even_when_layers_are_recomputed(monkeypatch, source, add_masks, token_ids):
    model = fresh(source, add_masks).train()
    enable_checkpointing(model)
    draws, norms = [], []
    sample = ShearingMasks.sample
    monkeypatch.setattr(ShearingMasks, "sample", lambda self: draws.append(1) or sample(self))
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *call: norms.append(1))
    gradients(model, token_ids)
    assert len(norms) == 2 and len(draws) == 1


def test_reentrant_checkpointing_is_refused_with_the_reason(source, add_masks):
    model = fresh(source, add_masks)
    reason = "`use_reentrant=True` does not work with masks: re-entrant checkpointing computes no gradient"
    for options in ({}, {"offload": True}):
        with pytest.raises(ValueError, match=reason):
            enable_checkpointing(model, {"use_reentrant": True}, **options)
    assert not model.model.gradient_checkpointing
    with warnings.catch_warnings(), pytest.raises(ValueError, match=reason):
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of transformers warn of this name
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_checkpointing_can_be_switched_off_and_thinned_out(source, add_masks):
    model = fresh(source, add_masks)
    enable_checkpointing(model, every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False, True, False]
    older = not hasattr(model, "activation_checkpointing_disable")
    (model.gradient_checkpointing_disable if older else model.activation_checkpointing_disable)()
    assert not model.model.gradient_checkpointing


@pytest.mark.parametrize("training", [True, False])
def test_sdpa_and_eager_attention_agree(source_folder, token_ids, training):
    outputs = []
    for attention in ("sdpa", "eager"):
        model = ShearingLlamaForCausalLM.from_pretrained(
            source_folder, target_shape=TARGET, attn_implementation=attention
        )
        assert model.config._attn_implementation == attention
        scatter_masks(model).train(training).set_mask_phase(TRAINING_PHASE)
        outputs.append((model(token_ids).logits.detach(), gradients(model, token_ids)))
    (sdpa, sdpa_gradients), (eager, eager_gradients) = outputs
    torch.testing.assert_close(sdpa, eager, rtol=0, atol=1e-5)
    for name, gradient in sdpa_gradients.items():
        torch.testing.assert_close(gradient, eager_gradients[name], rtol=1e-3, atol=1e-5)


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


# ---- generation -------------------------------------------------------------------------------------------------


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


def test_two_forwards_before_one_backward_keep_their_own_masks(source_folder):
    """A recompute must see the masks of its own forward, not those of a later one."""

    def gradients(checkpointing: bool) -> dict:
        model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET).train()
        if checkpointing:
            enable_checkpointing(model)
        losses = []
        for step in (0, 1):
            model.set_mask_phase(MaskPhase(optimizer_step=step, temperature=0.5, noise_scale=1.0))
            torch.manual_seed(step)
            ids = torch.randint(0, model.config.vocab_size, (2, 8))
            losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) > 10
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6, msg=name)


def test_weights_that_the_config_does_not_name_are_refused(source_folder, tmp_path):
    shutil.copytree(source_folder, tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    weights["model.layers.0.self_attn.extra.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"weights that the config does not name \['model\.layers\.0.*extra\.weight'\]"
    ):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path / "source", target_shape=TARGET)


@pytest.mark.parametrize(
    "target",
    [
        {"hidden_size": 18},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"num_attention_heads": 3},
        {"intermediate_size": 20},
    ],
    ids=lambda target: "-".join(target),
)
def test_each_kind_of_mask_learns_alone(source_folder, target):
    """Whatever else is frozen: a training step reaches every score, and masked equals sliced afterwards."""
    model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=target).train()
    model.set_mask_phase(MaskPhase(temperature=0.5))
    ids = torch.arange(16).view(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    for kind, log_alpha in model.masks.log_alpha.items():
        assert log_alpha.grad.shape == log_alpha.shape and log_alpha.grad.abs().sum() > 0, kind
        log_alpha.data -= log_alpha.grad
    with torch.no_grad():
        sliced, _ = slice_model(model.eval())
        torch.testing.assert_close(sliced(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
