"""What a slice keeps and takes along, what it leaves alone, and the masks and models that it refuses."""

import copy
import json

import pytest
import torch
from slicing_helpers import make_model, random_gates

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from hf_shear.slicing import slice_model


def test_kept_units_by_hand(build_llama, add_masks):
    source = build_llama(num_attention_heads=6, num_key_value_heads=2, hidden_size=6, num_hidden_layers=3)
    model = add_masks(
        source,
        {
            "hidden_size": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 1,
        },
    )
    neurons = torch.zeros(3, 22)
    neurons[0, 21], neurons[2, 7] = 1.0, 0.5
    gates = {
        HIDDEN: torch.tensor([0.0, 1.0, 0.3, 0.0, 1.0, 1.0]),
        LAYER: torch.tensor([1.0, 0.0, 0.2]),
        KEY_VALUE_HEAD: torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]]),
        QUERY_HEAD: torch.tensor(
            [[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], [[0.0] * 3, [0.0] * 3], [[0.0, 0.1, 1.0], [0.0] * 3]]
        ),
        INTERMEDIATE: neurons,
    }
    sliced, kept = slice_model(model, gates)
    assert kept.to_dict() == {
        "layers": [0, 2],
        "hidden": [1, 2, 4, 5],
        "key_value_heads": {"0": [1], "2": [0]},
        "heads": {"0": [3, 5], "2": [1, 2]},
        "intermediate": {"0": [21], "2": [7]},
    }
    assert json.loads(json.dumps(kept.to_dict())) == kept.to_dict()
    # Unmasked weights are plain selections of the source's.
    second, origin = sliced.model.layers[1], source.model.layers[2]
    hidden = [1, 2, 4, 5]
    assert torch.equal(second.self_attn.q_proj.weight, origin.self_attn.q_proj.weight[4:12][:, hidden])
    assert torch.equal(second.self_attn.k_proj.weight, origin.self_attn.k_proj.weight[0:4][:, hidden])
    assert torch.equal(second.mlp.gate_proj.weight, origin.mlp.gate_proj.weight[[7]][:, hidden])


@pytest.mark.parametrize(
    "name, index, text",
    [
        (HIDDEN, (), "The hidden mask of the model keeps 18 of 18 units, but the target keeps 12"),
        (LAYER, (), "The layer mask of the model keeps 4 of 4 units, but the target keeps 2"),
        (INTERMEDIATE, (3,), "The intermediate mask of layer 3 keeps 22 of 22 units, but the target keeps 13"),
        (KEY_VALUE_HEAD, (3,), "The key_value_head mask of layer 3 keeps 3 of 3 units, but the target keeps 2"),
    ],
)
def test_gates_that_keep_another_number_are_refused(build_llama, add_masks, name, index, text):
    model = make_model(build_llama, add_masks)
    gates = random_gates(model, [0, 3])
    gates[name][index] = 1.0
    with pytest.raises(ValueError, match=text):
        slice_model(model, gates)
    del gates[name]
    with pytest.raises(ValueError, match=f"The {name} mask of .* but the target keeps"):
        slice_model(model, gates)


def test_queries_of_a_kept_group_are_counted_and_those_of_a_removed_group_are_not(build_llama, add_masks):
    model = make_model(build_llama, add_masks)
    gates = random_gates(model, [0, 3])
    removed_group = (gates[KEY_VALUE_HEAD][0] == 0).nonzero().item()
    kept_group = (gates[KEY_VALUE_HEAD][0] != 0).nonzero()[0].item()
    gates[QUERY_HEAD][0, removed_group] = 1.0
    slice_model(model, gates)
    gates[QUERY_HEAD][0, kept_group] = 1.0
    text = f"query_head mask of layer 0, KV head {kept_group} keeps 3 of 3 units, but the target keeps 2"
    with pytest.raises(ValueError, match=text):
        slice_model(model, gates)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_masked_model_is_left_as_it_is(build_llama, add_masks, token_ids, tied, training):
    model = make_model(build_llama, add_masks, tied=tied, bias=True, num_layers=4).train(training)
    config, state = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    sliced, _ = slice_model(model)
    with torch.no_grad():
        for parameter in sliced.parameters():
            parameter.fill_(7.0)
    assert model.training == training
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_a_sliced_model_trains_on(build_llama, add_masks, token_ids, tied):
    model = make_model(build_llama, add_masks, tied=tied, bias=True)
    sliced, _ = slice_model(model, random_gates(model, [0, 3]))
    assert (sliced.lm_head.weight is sliced.model.embed_tokens.weight) == tied
    optimizer = torch.optim.SGD(sliced.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = sliced.train()(token_ids, labels=token_ids).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.is_leaf for parameter in sliced.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_generation_settings_and_attention_come_along(build_llama, add_masks):
    source = build_llama()
    source.generation_config.temperature = 0.7
    source.generation_config.do_sample = True
    model = add_masks(source, {"intermediate_size": 13})
    model.generation_config = copy.deepcopy(source.generation_config)
    model.set_attn_implementation("eager")
    sliced, _ = slice_model(model)
    assert sliced.generation_config.to_dict() == source.generation_config.to_dict()
    assert sliced.generation_config is not model.generation_config
    assert sliced.config._attn_implementation == "eager"


def test_a_plain_model_can_not_be_sliced(build_llama):
    with pytest.raises(
        ValueError, match="`model` must be masked, but it is a LlamaForCausalLM. Load it with AutoShearing"
    ):
        slice_model(build_llama())
