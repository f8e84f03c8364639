"""The invariant of slicing sees deliberate mistakes in the forward, the slice and the saved config."""

import importlib

import pytest
import torch
from slicing_helpers import assert_invariant, make_model, random_gates
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_shear.masks import HIDDEN, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from hf_shear.modeling import MaskedLinear, MaskedRMSNorm, scale_weight
from hf_shear.shapes import shape_config as shape_config_module

# The module, which the function of the same name hides.
slice_module = importlib.import_module("hf_shear.slicing.slice_model")
select_module = importlib.import_module("hf_shear.slicing.select_kept")


def scale_once_more(monkeypatch, weight):
    """The slice multiplies one weight by the hidden gates on top of what is right."""
    original = slice_module._sliced_state_dict

    def wrong(model, gates, kept, *rest):
        state = original(model, gates, kept, *rest)
        state[weight] = state[weight] * gates[HIDDEN][kept.hidden]
        return state

    monkeypatch.setattr(slice_module, "_sliced_state_dict", wrong)


def scale_final_norm_twice(monkeypatch):
    scale_once_more(monkeypatch, "model.norm.weight")


def scale_untied_head_too(monkeypatch):
    """The reference's export: z in the embeddings, the final norm and the head."""
    scale_once_more(monkeypatch, "lm_head.weight")


def average_over_all_dimensions(monkeypatch):
    def wrong(self, hidden_states):
        normed = LlamaRMSNorm.forward(self, hidden_states)
        return normed if self.output_mask is None else normed * self.output_mask

    monkeypatch.setattr(MaskedRMSNorm, "forward", wrong)


def average_over_all_dimensions_in_epsilon(monkeypatch):
    """Only epsilon is left unscaled: seen where it matters beside the variance."""

    def wrong(self, hidden_states):
        if self.output_mask is None:
            return LlamaRMSNorm.forward(self, hidden_states)
        share = self.kept_count / hidden_states.shape[-1]
        variance = hidden_states.square().mean(-1, keepdim=True) / share + self.variance_epsilon / share
        return self.weight * self.output_mask * hidden_states * torch.rsqrt(variance)

    monkeypatch.setattr(MaskedRMSNorm, "forward", wrong)


def leave_bias_unmasked_in_the_forward(monkeypatch):
    def wrong(self, inputs):
        return torch.nn.functional.linear(
            inputs, scale_weight(self.weight, self.output_mask, self.input_mask), self.bias
        )

    monkeypatch.setattr(MaskedLinear, "forward", wrong)


def leave_bias_unmasked_in_the_slice(name):
    def patch(monkeypatch):
        original = slice_module._sliced_state_dict

        def wrong(model, gates, kept, *rest):
            state = original(model, gates, kept, *rest)
            for place, index in enumerate(kept.layers):
                bias = model.model.layers[index].get_submodule(name).bias
                state[f"model.layers.{place}.{name}.bias"] = bias[kept.hidden]
            return state

        monkeypatch.setattr(slice_module, "_sliced_state_dict", wrong)

    return patch


def keep_layer_types(monkeypatch):
    monkeypatch.setattr(shape_config_module, "_cut_layer_lists", lambda config, layers: {})


def cut_layer_lists_at_the_end(monkeypatch):
    original = shape_config_module._cut_layer_lists
    monkeypatch.setattr(
        shape_config_module, "_cut_layer_lists", lambda config, layers: original(config, range(len(layers)))
    )


def leave_head_dim_implicit(monkeypatch):
    original = LlamaConfig.to_dict
    monkeypatch.setattr(
        LlamaConfig, "to_dict", lambda self: {k: v for k, v in original(self).items() if k != "head_dim"}
    )


def replace_in_slice(name, make_wrong):
    return lambda monkeypatch: monkeypatch.setattr(slice_module, name, make_wrong(getattr(slice_module, name)))


def replace_in_selection(name, make_wrong):
    return lambda monkeypatch: monkeypatch.setattr(select_module, name, make_wrong(getattr(select_module, name)))


def without(kind):
    return lambda original: lambda gates, *rest: original({k: v for k, v in gates.items() if k != kind}, *rest)


def renumber_heads(original):
    """Reads the first heads in place of the kept ones."""
    return lambda heads, head_dim, device: original(list(range(len(heads))), head_dim, device)


APART = "masked and sliced logits are .* apart"
MISTAKES = {  # what is done, and the complaint
    "tied head scaled twice": (scale_final_norm_twice, APART),
    "untied head scaled too": (scale_untied_head_too, APART),
    "norm averaged over all dimensions": (average_over_all_dimensions, APART),
    "epsilon not scaled": (average_over_all_dimensions_in_epsilon, APART),
    "o_proj bias unmasked in the forward": (leave_bias_unmasked_in_the_forward, APART),
    "o_proj bias unmasked in the slice": (leave_bias_unmasked_in_the_slice("self_attn.o_proj"), APART),
    "down_proj bias unmasked in the slice": (leave_bias_unmasked_in_the_slice("mlp.down_proj"), APART),
    "layer_types not cut": (keep_layer_types, r"must be equal to the number of `layer_types` \(4\)"),
    "layer lists cut at the end": (cut_layer_lists_at_the_end, "layer_scales does not fit the kept layers"),
    "head_dim left implicit": (leave_head_dim_implicit, "head_dim is not in the config"),
    "layer gate not folded": (replace_in_slice("residual_write_masks", without(LAYER)), APART),
    "query gate not folded": (replace_in_slice("head_channel_masks", without(QUERY_HEAD)), APART),
    "group gate not folded": (replace_in_slice("head_channel_masks", without(KEY_VALUE_HEAD)), APART),
    "first heads in place of kept ones": (replace_in_selection("head_channels", renumber_heads), APART),
}
# A tied pair is one tensor, which a second fold would meet twice; an untied pair has a norm and a head to fold into.
ONLY_FOR = {"tied head scaled twice": True, "untied head scaled too": False}


def model_for_mistakes(build_llama, add_masks, tied):
    lists = {"layer_types": ["full_attention"] * 4, "layer_scales": [0.1, 0.2, 0.3, 0.4]}
    model = make_model(build_llama, add_masks, tied=tied, bias=True, rms_norm_eps=1e-2, **lists)
    return model, random_gates(model, [0, 3])


@pytest.mark.parametrize(
    "mistake, tied",
    [(name, tied) for name in MISTAKES for tied in (False, True) if ONLY_FOR.get(name, tied) == tied],
)
def test_the_invariant_sees_deliberate_mistakes(
    monkeypatch, build_llama, add_masks, token_ids, tmp_path, mistake, tied
):
    model, gates = model_for_mistakes(build_llama, add_masks, tied)
    make_mistake, complaint = MISTAKES[mistake]
    make_mistake(monkeypatch)
    with pytest.raises((AssertionError, ValueError), match=complaint):
        assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_model_without_a_mistake(build_llama, add_masks, token_ids, tmp_path, tied):
    model, gates = model_for_mistakes(build_llama, add_masks, tied)
    assert_invariant(model, gates, token_ids, tmp_path)
