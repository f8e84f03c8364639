"""A plain checkpoint becomes a masked Llama: same weights, masks at their start, the dtype and config asked for."""

import copy
import shutil

import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import PAPER, TARGET, fresh
from transformers import AutoModelForCausalLM

from hf_shear.masks import HIDDEN, INTERMEDIATE, MaskSettings
from hf_shear.modeling import ShearingLlamaConfig, ShearingLlamaForCausalLM
from hf_shear.shapes import TargetShape


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
    assert model.config.model_type == "hf_shear_llama"
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
