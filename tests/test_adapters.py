"""Adapters: any of peft's configs, merged exactly, and never into weights they were not trained on."""

from __future__ import annotations

import json

import pytest
import torch
from training_helpers import plain_model, tiny_config, weights_of
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_shear.core import UsageError
from hf_shear.training import check_mergeable, merge_adapter, num_trainable, save_adapter_record
from hf_shear.training.adapters import add_adapters, peft_config_from, weights_digest

peft = pytest.importorskip("peft", reason="peft is not installed")

IDS = torch.arange(3, 19).view(2, 8)
IA3 = {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
LOHA = {"peft_type": "LOHA", "target_modules": ["q_proj", "up_proj"], "r": 2}
LN = {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm", "norm"]}
SAVING = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "r": 2}
CONFIGS = {"lora": None, "ia3": IA3, "loha": LOHA, "modules_to_save": SAVING}


def disturbed(description, **changes):
    """A model whose adapters were moved from their start, as by training."""
    model = add_adapters(plain_model(**changes), peft_config_from(description)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_is_base_and_adapter_and_a_plain_checkpoint(kind, tied, tmp_path):
    if tied and kind == "modules_to_save":
        pytest.skip("a saved head of a tied model is a weight of its own, which peft warns of")
    model = disturbed(CONFIGS[kind], tie_word_embeddings=tied)
    expected = model(IDS).logits
    assert (expected - plain_model(tie_word_embeddings=tied).eval()(IDS).logits).abs().max() > 0.05
    model.save_pretrained(tmp_path / "adapter")
    base = plain_model(tie_word_embeddings=tied)
    save_adapter_record(tmp_path / "adapter", base, note="x")
    base.save_pretrained(tmp_path / "base")
    merged = merge_adapter(tmp_path / "base", tmp_path / "adapter").eval()
    assert type(merged) is LlamaForCausalLM
    assert merged.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=2e-5)  # rounding differs by CPU
    merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(loaded(IDS).logits, merged(IDS).logits)


@pytest.mark.filterwarnings(
    "ignore:Unsupported layer type:UserWarning"
)  # peft's of RMSNorm, which it scales all the same
def test_norms_can_be_adapters(tmp_path):
    model = disturbed(LN)
    model.save_pretrained(tmp_path)
    check_mergeable(tiny_config(), peft_config_from(LN))
    torch.testing.assert_close(merge_adapter(plain_model(), tmp_path).eval()(IDS).logits, model(IDS).logits)


def test_configs_come_as_dict_or_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["q_proj"]}))
    for description in (str(path), path, {"r": 3, "target_modules": ["q_proj"]}):
        config = peft_config_from(description)
        assert type(config) is peft.LoraConfig and config.r == 3 and config.task_type == "CAUSAL_LM"
        assert num_trainable(add_adapters(plain_model(), config)) == 3 * 3 * (18 + 24)
    assert peft_config_from(None).r == 16


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ({"peft_type": "LARA"}, "the peft_type 'LARA', which peft does not know; it knows .*IA3.*LORA"),
        ({"rank": 3}, "`peft_config` does not fit LORA: .*rank"),
        ("no/such.json", "is not a file"),
        ([1], "must be a JSON object, but it is \\[1\\]"),
    ],
)
def test_configs_of_nothing_are_refused(description, text):
    with pytest.raises(ValueError, match=text):
        peft_config_from(description)


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("r: 3")
    with pytest.raises(ValueError, match="x.json' is not valid JSON"):
        peft_config_from(tmp_path / "x.json")


def test_adapters_that_do_not_fit_are_refused():
    model = add_adapters(plain_model())
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(model)
    with pytest.raises(ValueError, match="must be a config of peft, but it is dict"):
        add_adapters(plain_model(), {"r": 3})
    prompts = peft_config_from({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3})
    with pytest.raises(ValueError, match="PROMPT_TUNING puts prompts before every sample"):
        add_adapters(plain_model(), prompts)
    with pytest.raises(ValueError, match="nowhere"):
        add_adapters(plain_model(), peft_config_from({"target_modules": ["nowhere"]}))


def test_what_can_not_be_merged_is_known_before_training():
    for description in CONFIGS.values():
        config = peft_config_from(description)
        check_mergeable(tiny_config(), config)
        assert num_trainable(add_adapters(plain_model(), config)) > 0  # the config can still be used
    if "SHADOW" in {kind.value for kind in peft.PeftType}:
        with pytest.raises(ValueError, match="type SHADOW can not be merged into weights .* Keep the adapter"):
            check_mergeable(tiny_config(), peft_config_from({"peft_type": "SHADOW"}))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    disturbed(None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="(?s)does not fit the base .*size mismatch"):
        merge_adapter(plain_model(intermediate_size=20), tmp_path)
    with pytest.raises(ValueError, match="(?s)does not fit the base .*missing adapter keys"):
        merge_adapter(plain_model(num_hidden_layers=4), tmp_path)
    save_adapter_record(tmp_path, plain_model())
    other = plain_model(1)
    before = weights_of(other)
    with pytest.raises(ValueError, match="was trained on other weights than those of the base"):
        merge_adapter(other, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="holds no adapter"):
        merge_adapter(plain_model(), tmp_path / "nothing")


@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("shear_adapter.json", b"{}", "shear_adapter.json' lacks base_digest"),
        ("shear_adapter.json", b'{"ba', "shear_adapter.json' is not valid JSON"),
        ("adapter_config.json", b"{}", "adapter_config.json' lacks peft_type"),
        ("adapter_config.json", b"[]", "adapter_config.json' must hold one JSON object"),
        ("adapter_model.safetensors", b"\0" * 100, "weights of the adapter .* are damaged"),
        ("adapter_model.safetensors", None, "lacks the adapter's weights"),
    ],
)
def test_a_damaged_adapter_is_named(tmp_path, file, damage, said):
    disturbed(None).save_pretrained(tmp_path)
    save_adapter_record(tmp_path, plain_model())
    (tmp_path / file).unlink() if damage is None else (tmp_path / file).write_bytes(damage)
    with pytest.raises(UsageError, match=said):
        merge_adapter(plain_model(), tmp_path)


def test_the_digest_tells_weights_apart_and_not_how_they_are_kept(tmp_path):
    model = plain_model().bfloat16()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert weights_digest(model) == weights_digest(loaded)
    with torch.no_grad():
        loaded.model.norm.weight[0] += 1e-6
    assert weights_digest(model) != weights_digest(loaded)
