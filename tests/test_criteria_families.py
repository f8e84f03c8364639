"""Criteria on every family: under closed units they give the scores of the model that was cut, which is another path."""

from __future__ import annotations

import pytest
import torch
from test_families import build, target_of

from hf_shear import PruneConfig, prune_one_shot, slice_model
from hf_shear.calibration import sample_losses
from hf_shear.criteria import resolve_criterion
from hf_shear.criteria.taylor import taylor
from hf_shear.data import Calibration
from hf_shear.masks import ATTENTION, EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, hard_topk
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.pruning import score_units
from hf_shear.shapes.family_table import FAMILIES

CRITERIA = ("magnitude", "activation", "flap", "taylor", "taylor:aggregation=element", "block_influence")
FOR_EXPERTS = ("magnitude", "taylor", "taylor:aggregation=token", "taylor:aggregation=element", "block_influence")
NAMES = list(FAMILIES)
DENSE = [name for name in NAMES if not FAMILIES[name].has_experts]


@pytest.mark.parametrize("name", NAMES)
def test_scores_under_closed_units_are_those_of_the_cut_model(name):
    model = AutoShearingModelForCausalLM.from_model(build(name), target_of(name, "gqa", [0, 2]))
    generator = torch.Generator().manual_seed(1)
    gates = {
        kind.name: hard_topk(torch.rand(kind.mask_shape, generator=generator), kind.num_kept)
        for kind in model.masks.kinds.values()
    }
    gates[LAYER] = torch.tensor([1.0, 0.0, 1.0, 0.0])  # attention of both kinds, where they alternate
    sliced, kept = slice_model(model, gates)
    cut, layers = AutoShearingModelForCausalLM.from_model(sliced), torch.tensor(kept.layers)
    ids = torch.randint(3, 40, (2, 9), generator=generator)
    calibration = Calibration([{"input_ids": ids, "labels": ids}])
    for criterion in FOR_EXPERTS if model.family.has_experts else CRITERIA:
        kinds = resolve_criterion(criterion).ranks
        with model.use_gates(gates):
            found = score_units(model, criterion, calibration, kinds)
        for kind, wanted in score_units(cut, criterion, calibration, kinds).items():
            whole = kind in (HIDDEN, LAYER)
            if kind == HIDDEN and criterion == "magnitude" and FAMILIES[name].scaled_embedding:
                continue  # the cut embedding is scaled by another sqrt(d), which its weights make up for
            stays = gates[kind].bool() if whole else gates[kind].bool()[layers]
            if kind == QUERY_HEAD:
                stays = stays & gates[KEY_VALUE_HEAD].bool()[layers].unsqueeze(-1)
            mine = (found[kind] if whole else found[kind][layers])[stays]
            torch.testing.assert_close(
                mine, wanted.flatten(), rtol=1e-3, atol=2e-5, msg=lambda m, c=criterion, k=kind: f"{c} {k}: {m}"
            )


@pytest.mark.parametrize("name", DENSE)
def test_every_dense_family_is_pruned_by_default(name):
    """Hidden dimensions, layers, heads (where the family has them cut) and neurons, with nothing named."""
    source, target = build(name), target_of(name, "gqa", [0, 2])
    ids = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    pruning = prune_one_shot(source, target, [{"input_ids": ids, "labels": ids}], PruneConfig(num_shots=1))
    assert {size: getattr(pruning.model.config, size) for size in target} == target
    (report,) = pruning.compensation
    assert report.before and sum(report.after.values()) < sum(report.before.values())


@pytest.mark.parametrize("name", NAMES)
def test_taylor_scores_are_the_slopes_of_gates_on_every_family(name):
    """Against autograd by the gates themselves, which the masked forward multiplies by."""
    model = AutoShearingModelForCausalLM.from_model(build(name))
    ids = torch.randint(3, 40, (1, 9), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "labels": ids}
    gates = {kind.name: torch.ones(kind.mask_shape, requires_grad=True) for kind in model.masks.kinds.values()}
    with model.use_gates(gates):
        slopes = torch.autograd.grad(model(**batch).loss, list(gates.values()))
    scores = taylor(model, Calibration([batch]))
    for kind, slope in zip(gates, slopes, strict=True):
        torch.testing.assert_close(scores[kind], slope.abs(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loss_rises_of_every_family_are_those_of_whole_forwards(name):
    """Under hidden gates and a closed layer, against forwards that run from the embedding on."""
    model = AutoShearingModelForCausalLM.from_model(build(name), target_of(name, "gqa", [0, 2]))
    outer = {HIDDEN: torch.ones(model.masks.kinds[HIDDEN].mask_shape), LAYER: torch.tensor([1.0, 0.0, 1.0, 1.0])}
    outer[HIDDEN][::3] = 0
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    ignored = torch.where(torch.arange(9) < 3, -100, ids)
    text = Calibration([{"input_ids": ids[:2], "labels": ids[:2]}, {"input_ids": ids[2:], "labels": ignored[2:]}])

    def loss(gates):
        with torch.no_grad(), model.use_gates(outer | gates):
            return sum(sample_losses(model, batch)[0].double().sum() for batch in text.batches)

    def without(kind, *place):
        gate = outer.get(kind, torch.ones(model.masks.kinds[kind].mask_shape)).clone()
        gate[place] = 0
        return {kind: gate}

    num_predicted, whole = text.num_predicted, loss({})
    kinds = {EXPERT: (EXPERT, 1)} if model.family.has_experts else {ATTENTION: (KEY_VALUE_HEAD,), MLP: (INTERMEDIATE,)}
    with model.use_gates(outer):
        found = score_units(model, "loss_rise", text, [LAYER])
        found |= score_units(model, "expert_rise" if EXPERT in kinds else "sub_layer_rise", text, list(kinds))
    for layer in (0, 2, 3):
        expected = (loss(without(LAYER, layer)) - whole) / num_predicted
        assert float(found[LAYER][layer]) == pytest.approx(float(expected), abs=2e-6)
        for kind, (gate, *place) in kinds.items():
            expected = (loss(without(gate, layer, *place)) - whole) / num_predicted
            assert float(found[kind][(layer, *place)]) == pytest.approx(float(expected), abs=2e-6)
    assert found[LAYER][1] == 0 and float(found[LAYER].abs().max()) > 1e-3


def test_the_first_samples_of_the_text_are_read():
    model = AutoShearingModelForCausalLM.from_model(build("llama"))
    ids = torch.randint(3, 40, (7, 9), generator=torch.Generator().manual_seed(1))
    text = Calibration.from_batches([{"input_ids": ids, "labels": ids}], 2)
    first = Calibration([{"input_ids": ids[:5], "labels": ids[:5]}])
    found = score_units(model, "loss_rise:num_samples=5", text, [LAYER])[LAYER]
    torch.testing.assert_close(found, score_units(model, "loss_rise", first, [LAYER])[LAYER], rtol=1e-5, atol=1e-6)
    everything = score_units(model, "loss_rise:num_samples=0", text, [LAYER])[LAYER]
    torch.testing.assert_close(everything, score_units(model, "loss_rise", text, [LAYER])[LAYER])
    assert not torch.allclose(found, everything, atol=1e-5)


def test_layers_run_half_as_often():
    """Behind each closed layer only, and the head once for each."""
    model = AutoShearingModelForCausalLM.from_model(build("llama"))
    ids = torch.randint(3, 40, (1, 9), generator=torch.Generator().manual_seed(1))
    runs = []
    handles = [
        layer.register_forward_hook(lambda *_, n=n: runs.append(n)) for n, layer in enumerate(model.model.layers)
    ]
    score_units(model, "loss_rise", Calibration([{"input_ids": ids, "labels": ids}]), [LAYER])
    for handle in handles:
        handle.remove()
    replaced = 6 * 4  # forwards of the embedding and of five losses, whose layers hand on what they are given
    assert len(runs) - replaced == 4 + 3 + 2 + 1
