"""examples/docs/criteria.md says of every criterion what it declares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_families import build

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.criteria import CRITERIA
from hf_shear.data import Calibration
from hf_shear.masks.unit_kinds import UNIT_KINDS
from hf_shear.modeling import AutoShearingModelForCausalLM

PAGE = (Path(__file__).resolve().parent.parent / "examples" / "docs" / "criteria.md").read_text(encoding="utf-8")


def rows(header: str) -> list[list[str]]:
    """Cells of all tables that start with ``header``."""
    tables = [part.split("\n\n")[0].splitlines()[2:] for part in PAGE.split(f"\n{header}")[1:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for lines in tables for line in lines]


def test_the_table_says_what_criteria_declare():
    table = {row[0]: row[1:] for row in rows("| criterion | hidden | layer | KV group | query head | neuron |")}
    assert list(table) == list(CRITERIA)
    for name, cells in table.items():
        criterion = CRITERIA[name]
        declared = [kind in criterion.ranks for kind in UNIT_KINDS] + [criterion.presumes_compensation]
        assert cells[:6] == ["yes" if value else "-" for value in declared], name


def test_the_table_of_options_has_them_all_with_their_defaults():
    told = {(row[0], *row[1].split("=")) for row in rows("| criterion | option | meaning |")}
    found = {
        (name, key, str(default)) for name, criterion in CRITERIA.items() for key, default in criterion.defaults.items()
    }
    assert told == found


@pytest.mark.parametrize("name", CRITERIA)
def test_the_passes_are_those_of_the_table(build_llama, name):
    """Forward and backward passes over three batches, in layers that run."""
    passes = {row[0]: row[7] for row in rows("| criterion | hidden | layer | KV group | query head | neuron |")}[name]
    if passes == "see below":
        pytest.skip("its own benchmark counts them")
    if name == "expert_rise":
        model = AutoShearingModelForCausalLM.from_model(build("mixtral"), {"num_experts": 4})
    else:
        model = ShearingLlamaForCausalLM.from_model(build_llama(), {"intermediate_size": 11})
    counts = {"forward": 0, "backward": 0}

    def count(module, args, output):
        counts["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda _: counts.update(backward=counts["backward"] + 1))

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(count)
    ids = torch.randint(3, 40, (3, 2, 8), generator=torch.Generator().manual_seed(3))
    calibration = Calibration([{"input_ids": part, "labels": part} for part in ids])
    options = {"steps": 2, "masks_per_step": 3} if name == "policy_gradient" else {}
    CRITERIA[name](model, calibration, **options)
    expected = {
        "none": (0, 0),
        "forward": (4 * 3, 0),
        "forward, backward": (4 * 3, 4 * 3),
        "(L + 1) / 2 forwards": (10 * 3, 0),
        "E (L + 1) / 2 + 1 forwards": ((6 * 10 + 4) * 3, 0),
        "L + 2 forwards": (6 * 4 * 3, 0),
        "steps x masks_per_step forwards": (4 * 2 * 3, 0),
    }
    assert (counts["forward"], counts["backward"]) == expected[passes]
