"""One of two processes that score the units of the same model on parts of the same samples.

    RANK=0 WORLD_SIZE=2 ... python tests/criteria_run.py FOLDER CRITERION ...

Reads FOLDER/samples.pt, writes FOLDER/scores <rank>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import _build_llama

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.criteria import resolve_criterion
from hf_shear.data import Calibration
from hf_shear.pruning import score_units

PARTS = (4, 2)  # samples of each process


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    samples = torch.load(folder / "samples.pt")
    mine = {name: tensor.split(PARTS)[dist.get_rank()] for name, tensor in samples.items()}
    model = ShearingLlamaForCausalLM.from_model(_build_llama(attention_bias=True, mlp_bias=True), {})
    calibration = Calibration.from_batches([mine], 2)
    found = {name: score_units(model, name, calibration, resolve_criterion(name).ranks) for name in names}
    torch.save(found, folder / f"scores {dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
