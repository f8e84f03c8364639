"""Every stage on a device that is none: its tensors lie in the host's memory, and it refuses to mix with the CPU's.

PyTorch lets Python write a backend (``torch.utils.backend_registration``). This one hands each operator to the CPU, on the
same memory, unless a tensor of the CPU is among its arguments. It lasts as long as the process, so that this file is also a
script. A CPU tensor of no dimensions is let through, as by CUDA; kernels, streams and half precision are the CPU's.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from torch.utils import backend_registration as backend
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.dlpack import from_dlpack, to_dlpack
from training_helpers import OPEN_MASKS, TARGET, held_out_domains, make_args, masked_model, plain_model, train_domains

from hf_shear import Calibration, PruneConfig, ShearTrainer, prune_one_shot
from hf_shear.calibration import Moments
from hf_shear.slicing import slice_model
from hf_shear.training.domain_evaluation import evaluate_domains

NAME = "pretend"
is_ours = lambda value: isinstance(value, torch.Tensor) and value.device.type == NAME  # noqa: E731
CPU, EXTENSION = 1, 12  # kDLCPU and kDLExtDev of DLPack
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")  # the host, for the device
STEPS, FEWER = 5, 2  # of a training
READS = {"mask_learning": 1, "recovery": 1, "distillation": 2}  # by the host in a training step, torch's own among them
host_reads = 0


def on(tensor, kind):
    """The same memory as a tensor of another kind of device."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = to_dlpack(tensor)  # of a DLTensor: address (8 bytes), kind of device, ...
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = kind
    return from_dlpack(capsule)


def run_on_host(operator, *args, **kwargs):
    """Any operator that has a tensor of the device among its arguments, or is to make one."""
    global host_reads
    host_reads += operator.overloadpacket.__name__ in WAITS
    values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if any(value.dim() and not is_ours(value) for value in values):
        raise RuntimeError(f"{operator} got a tensor of the CPU beside those of {NAME!r}.")
    known = {}

    def down(value):
        if is_ours(value):
            host = on(value, CPU)
            known[id(host)] = value, host
            return host
        return torch.device("cpu") if isinstance(value, torch.device) else value

    args, kwargs, given = tree_map(down, args), tree_map(down, kwargs), kwargs
    for out in (argument.name for argument in operator._schema.arguments if argument.is_out):
        if given[out].numel() == 0:  # the operator may make it larger, which borrowed memory cannot be
            kwargs[out] = torch.empty(0, dtype=given[out].dtype)
            known[id(kwargs[out])] = given[out], None

    def up(value):
        if not isinstance(value, torch.Tensor):
            return value
        ours, host = known.get(id(value), (None, value))
        if ours is None:
            return on(value, EXTENSION)
        if host is None:
            ours.data = on(value, EXTENSION)
        return ours

    return tree_map(up, operator(*args, **kwargs))


def copy_from(source, to, non_blocking=False):
    """Copies are what may cross."""
    global host_reads
    host_reads += is_ours(source) and not is_ours(to)
    source, target = (on(one, CPU) if is_ours(one) else one for one in (source, to))
    target.copy_(source)
    return to


def deepcopy(tensor, memo, plain=torch.Tensor.__deepcopy__):
    """Python cannot give the device an allocator, which torch asks for a copy of a storage."""
    return memo.setdefault(id(tensor), tensor.detach().clone()) if is_ours(tensor) else plain(tensor, memo)


class Generator(torch.Generator):
    """Python cannot give the device generators: they are the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)


def register():
    """Make the device, and Accelerate use it. It stays as long as what is returned."""
    module = backend._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    backend._setup_privateuseone_for_python_backend(NAME, module)
    everything, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(run_on_host, "PrivateUse1")
    some.impl("_copy_from", copy_from, "PrivateUse1")
    torch.Generator, torch.Tensor.__deepcopy__ = Generator, deepcopy
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:0"
    return [everything, some]


def plant(model, planted):
    """The fault: a tensor that is made on the CPU."""
    if planted:
        model.model.norm.register_forward_hook(lambda module, inputs, output: output + torch.zeros(output.shape[-1]))
    return model


def losses(model, device):
    assert model.device.type == device
    return list(evaluate_domains(model, held_out_domains(), 8)[0].values())


def still(seed=0):
    return plain_model(seed, attention_dropout=0.0).eval()


def train(model, device, planted, steps, teacher=None, **changes):
    plant(teacher or model, planted)
    with tempfile.TemporaryDirectory() as folder:
        args = make_args(folder, logging_strategy="no", max_steps=steps, use_cpu=device == "cpu", **changes)
        trainer = ShearTrainer(model, args, train_domains(), held_out_domains(), teacher=teacher)
        return [trainer.train().training_loss]


def mask_learning(device, planted=False, steps=STEPS):
    return train(masked_model(OPEN_MASKS, attention_dropout=0.0), device, planted, steps)


def recovery(device, planted=False, steps=STEPS):
    return train(still(), device, planted, steps)


def distillation(device, planted=False, steps=STEPS):
    return train(still(), device, planted, steps, still(1), distillation="forward_kl")


def pruning(device, planted=False):
    """By the default scores, layers among them, and fitted to the source; and to layers of different widths."""
    with pytest.MonkeyPatch.context() as patch:
        if planted:
            patch.setattr(Moments, "zeros", lambda size, device, zeros=Moments.zeros, **more: zeros(size, **more))
        text = Calibration.from_domains(train_domains(), batch_size=8, num_batches=2)
        default = losses(prune_one_shot(still().to(device), TARGET, text).model, device)
        adaptive = prune_one_shot(still().to(device), 0.9, text, PruneConfig("wanda_sp", allocation="adaptive"))
        return default + losses(adaptive.model, device)


def slicing(device, planted=False):
    masked = masked_model("relaxed_topk").to(device).eval()
    if planted:
        masked.model.layers[0].mlp.up_proj.cpu()
    return losses(slice_model(masked)[0], device)


PATHS = {path.__name__: path for path in (mask_learning, pruning, slicing, recovery, distillation)} | {
    "evaluation": lambda device, planted=False: losses(plant(still().to(device), planted), device)
}


@pytest.fixture(scope="module")
def found():
    """What every path gives, from a process that has the device."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PATHS)
def test_a_path_gives_what_it_gives_on_the_cpu_whose_tensors_are_noticed_and_reads_no_more_than_it_did(found, name):
    assert found[name]["values"] == pytest.approx(PATHS[name]("cpu"), abs=1e-4)
    assert "cpu" in found[name]["fault"].lower() and NAME in found[name]["fault"]
    assert found[name].get("reads", 0) <= READS.get(name, 0)


if __name__ == "__main__":
    _device, results = register(), {}
    for name, path in PATHS.items():
        before = host_reads
        results[name], reads = {"values": path(NAME), "fault": "none"}, host_reads - before
        if name in READS:  # the difference is free of what a start and an end read
            path(NAME, steps=FEWER)
            results[name]["reads"] = (2 * reads - (host_reads - before)) / (STEPS - FEWER)
        try:
            path(NAME, planted=True)
        except Exception as error:
            results[name]["fault"] = f"{type(error).__name__}: {error}"
    print(json.dumps(results), flush=True)
    os._exit(0)  # torch cannot unload in order what Python registered
