"""What all criteria promise: no dependence on batches, closed units or processes; the model is left as it is."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import free_port

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.core import UsageError
from hf_shear.criteria import CRITERIA, resolve_criterion
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, SUB_LAYERS, hard_topk
from hf_shear.pruning import score_units
from hf_shear.slicing import slice_model

OPTIONS = [
    "activation:aggregation=mean_abs",
    "flap:standardise=true",
    "magnitude:power=2",
    "taylor:order=mixed",
    "taylor:order=norm",
    "taylor:aggregation=token",
    "taylor:aggregation=element",
    "taylor:aggregation=element,order=mixed",
    "taylor:aggregation=element,order=norm",
    "taylor:aggregation=vector",
    "taylor:aggregation=fused",
    "taylor:aggregation=element,gradient=adapters,rank=2",
    "wanda_sp:gradient_weight=100",
]
# Curvature has tests of its own, tests/test_curvature*.py; so have experts, tests/test_experts.py.
OTHERS = ("random", "policy_gradient", "llm_surgeon", "kobd", "expert_rise")
MEASURED = [name for name in CRITERIA if name not in OTHERS] + OPTIONS
# Adapters are drawn for all inputs, and deviations run over all units, so that closed ones change the scale of these.
CLOSABLE = [name for name in MEASURED if "adapters" not in name and "fused" not in name]
KEPT = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 13,
}


@pytest.fixture
def samples():
    """Six samples with ignored labels and padding at their ends, of different lengths."""
    ids = torch.randint(3, 40, (6, 14), generator=torch.Generator().manual_seed(3))
    labels, attention = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate((14, 9, 14, 12, 14, 5)):
        labels[row, length:], attention[row, length:] = -100, 0
    labels[2, :4] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": attention}


@pytest.fixture
def model(build_llama):
    return ShearingLlamaForCausalLM.from_model(build_llama(attention_bias=True, mlp_bias=True), KEPT)


def scored(model, name, calibration):
    return score_units(model, name, calibration, resolve_criterion(name).ranks)


@pytest.mark.parametrize("name", MEASURED)
def test_scores_do_not_depend_on_the_batches(model, samples, name):
    together = scored(model, name, Calibration([samples]))
    parts = zip(*(tensor.split([1, 3, 2]) for tensor in samples.values()), strict=True)
    calibration = Calibration([dict(zip(samples, part, strict=True)) for part in parts])
    for kind, score in scored(model, name, calibration).items():
        shape = model.masks.kinds[LAYER if kind in SUB_LAYERS else kind].mask_shape
        assert score.dtype == torch.float32 and score.shape == shape
        torch.testing.assert_close(score, together[kind], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", MEASURED)
def test_padding_and_ignored_ends_count_for_nothing(model, samples, name):
    """What stands behind the last counted token of a sample changes no score."""
    other = {key: tensor.clone() for key, tensor in samples.items()}
    other["input_ids"][samples["attention_mask"] == 0] = 7
    wanted = scored(model, name, Calibration([samples]))
    for kind, score in scored(model, name, Calibration([other])).items():
        torch.testing.assert_close(score, wanted[kind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLOSABLE)
def test_scores_under_closed_units_are_those_of_the_model_without_them(build_llama, samples, name):
    """Through closed gates as on the sliced model, for every unit that stayed; untied in test_criteria_families.py."""
    source = build_llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    model = ShearingLlamaForCausalLM.from_model(source, KEPT)
    generator = torch.Generator().manual_seed(1)
    gates = {
        kind.name: hard_topk(torch.rand(kind.mask_shape, generator=generator), kind.num_kept)
        for kind in model.masks.kinds.values()
    }
    sliced, kept = slice_model(model, gates)
    calibration = Calibration([samples])
    with model.use_gates(gates):
        found = scored(model, name, calibration)
    wanted = scored(ShearingLlamaForCausalLM.from_model(sliced), name, calibration)
    layers = torch.tensor(kept.layers)
    stayed = {kind: gate.bool() if kind in (HIDDEN, LAYER) else gate.bool()[layers] for kind, gate in gates.items()}
    stayed |= dict.fromkeys(SUB_LAYERS, stayed[LAYER])
    for kind, score in wanted.items():
        mine = found[kind] if kind in (HIDDEN, LAYER, *SUB_LAYERS) else found[kind][layers]
        stays = stayed[kind]
        if kind == QUERY_HEAD:
            stays = stays & stayed[KEY_VALUE_HEAD].unsqueeze(-1)
        torch.testing.assert_close(mine[stays], score.flatten(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*CRITERIA, *OPTIONS])
def test_the_model_is_left_as_it_is(model, samples, name):
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    model.model.norm.weight.requires_grad_(False)
    state, modules = copy.deepcopy(model.state_dict()), [(key, type(module)) for key, module in model.named_modules()]
    torch.manual_seed(4)
    before = torch.get_rng_state()
    name = f"{name}:steps=2" if name == "policy_gradient" else name
    scored(model, name, Calibration([samples]))
    assert model.training and model.masks.training and model.gates_in_use == {}
    assert [(key, type(module)) for key, module in model.named_modules()] == modules
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all((parameter.grad == 0.25).all() for parameter in model.parameters())
    assert [key for key, parameter in model.named_parameters() if not parameter.requires_grad] == ["model.norm.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


@pytest.mark.parametrize("name", MEASURED)
def test_a_bfloat16_model_gets_float32_scores_close_to_the_exact_ones(build_llama, samples, name):
    source = build_llama()
    exact = scored(ShearingLlamaForCausalLM.from_model(source), name, Calibration([samples]))
    half = ShearingLlamaForCausalLM.from_model(copy.deepcopy(source).to(torch.bfloat16))
    for kind, score in scored(half, name, Calibration([samples])).items():
        assert score.dtype == torch.float32
        assert torch.corrcoef(torch.stack([score.flatten(), exact[kind].flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize("name", MEASURED)
def test_text_of_which_no_token_counts_is_refused(model, samples, name):
    """By criteria that read any: others run no forward."""
    nothing, forwards = samples | {"labels": torch.full_like(samples["labels"], -100)}, []
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: forwards.append(1))
    try:
        scored(model, name, Calibration([nothing]))
    except UsageError as error:
        assert re.search("calibration|[Nn]o token", str(error))
    else:
        assert not forwards
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", MEASURED)
def test_a_source_with_nan_is_refused(model, samples, name):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        scored(model, name, Calibration([samples]))


@pytest.mark.parametrize("name", [name for name in MEASURED if INTERMEDIATE in resolve_criterion(name).ranks])
def test_units_that_do_nothing_score_least(build_llama, samples, name):
    """Of each layer half of the neurons, and one head, have no weights."""
    source = build_llama()
    with torch.no_grad():
        for layer in source.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
            layer.mlp.up_proj.weight[::2] = 0
            layer.mlp.gate_proj.weight[::2] = 0
            layer.self_attn.o_proj.weight[:, 4 * 5 : 4 * 6] = 0  # head 5: query 2 of group 1
            layer.self_attn.q_proj.weight[4 * 5 : 4 * 6] = 0
            layer.self_attn.v_proj.weight[4:8] = 0  # dead: what group 1 hands on is all 0
    scores = scored(ShearingLlamaForCausalLM.from_model(source), name, Calibration([samples]))
    assert (scores[INTERMEDIATE][:, ::2].amax(dim=1) < scores[INTERMEDIATE][:, 1::2].amin(dim=1)).all()
    exact = not name.startswith(("magnitude", "taylor:aggregation", "flap:standardise", "wanda_sp:gradient"))
    if exact:
        assert (scores[INTERMEDIATE][:, ::2] == 0).all()
    if QUERY_HEAD not in scores:
        return
    if exact:
        assert (scores[KEY_VALUE_HEAD][:, 1] == 0).all() and (scores[QUERY_HEAD][:, 1] == 0).all()
    assert (scores[QUERY_HEAD][:, 1, 2:] <= scores[QUERY_HEAD][:, 1, :2]).all()
    assert (scores[QUERY_HEAD][:, 1, 2:] < scores[QUERY_HEAD][:, 0]).all()


@pytest.mark.slow
def test_two_processes_get_the_scores_of_one(model, samples, tmp_path):
    """Each of two gloo processes reads a part of the samples; both get the scores of all of them."""
    torch.save(samples, tmp_path / "samples.pt")
    script = Path(__file__).with_name("criteria_run.py")
    processes = []
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    names = [name for name in MEASURED if not name.startswith("magnitude")]  # which reads no text
    for rank in range(2):
        environment = os.environ | shared | {"RANK": str(rank), "PYTHONPATH": str(script.parent.parent)}
        with (tmp_path / f"log {rank}").open("w") as log:
            command = [sys.executable, str(script), str(tmp_path), *names]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        failed = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert failed == [0, 0], "\n".join((tmp_path / f"log {rank}").read_text()[-3000:] for rank in range(2))
    one, two = (torch.load(tmp_path / f"scores {rank}.pt") for rank in range(2))
    for name in names:
        for kind, wanted in scored(model, name, Calibration([samples])).items():
            torch.testing.assert_close(one[name][kind], wanted, rtol=2e-4, atol=2e-5)
            assert torch.equal(one[name][kind], two[name][kind])
