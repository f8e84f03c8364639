"""Fixtures that several test modules share: shared data, tiny Llamas with weights that matter, their masked models."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads than one slow torch down

import pytest
import torch
import transformers
from masked_llama_helpers import PAPER, TARGET, scatter_masks
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear.masks import MaskPhase, MaskSettings
from hf_shear.modeling import ShearingLlamaConfig, ShearingLlamaForCausalLM
from hf_shear.shapes import TargetShape

# Their assertions explain themselves like those in test modules.
pytest.register_assert_rewrite("mask_helpers", "slicing_helpers")

# Sizes that a wrong index, divisor or default does not survive: no two alike, and head_dim 4 where transformers would
# compute 18 / 9 = 2. A target of hidden 12 and 4 heads would be computed as 3.
TINY_SIZES = {
    "vocab_size": 40,
    "hidden_size": 18,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 22,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


LONGEST = (
    "test_distributed",
    "test_types",
    "test_shear_example",
    "test_gathering",
    "test_pretend_device",
    "test_families",
)
"""Files of most seconds. They come first, so that of two workers none is left with one of them at the end."""


def pytest_configure(config):
    transformers.utils.logging.disable_progress_bar()
    config.option.loadscopereorder = False  # xdist starts with the files of most tests, which are not the longest


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the reference values and models that are not part of the repository."""
    folder = os.environ.get("HF_SHEAR_TEST_DATA")
    if not folder:
        pytest.skip("HF_SHEAR_TEST_DATA is not set: it names the folder with reference values and models")
    if not Path(folder).is_dir():
        pytest.skip(f"HF_SHEAR_TEST_DATA names {folder!r}, which is not a folder")
    return Path(folder)


def _build_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    config = LlamaConfig(**{**TINY_SIZES, **changes})
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
    return model


def _add_masks(source: LlamaForCausalLM, target_shape: dict, settings=None) -> ShearingLlamaForCausalLM:
    target = TargetShape.from_source(source.config, **target_shape)
    config = ShearingLlamaConfig.from_source(source.config, target, settings or MaskSettings())
    model = ShearingLlamaForCausalLM(config)
    masks = {f"masks.{name}": tensor for name, tensor in model.masks.state_dict().items()}
    model.load_state_dict({**source.state_dict(), **masks})
    return model.eval()


@pytest.fixture(scope="session")
def build_llama():
    """``build_llama(seed=0, **config_changes)``: a tiny Llama whose every weight, norm and bias is far from trivial.

    Stock initialisation (std 0.02, biases 0, norms 1) would hide most mistakes below any tolerance.
    """
    return _build_llama


@pytest.fixture(scope="session")
def add_masks():
    """``add_masks(source, target_shape, settings=None)``: the masked model of a plain one, in memory."""
    return _add_masks


@pytest.fixture(scope="module")
def source(build_llama):
    """A tiny Llama with biases everywhere."""
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


@pytest.fixture(scope="session")
def token_ids() -> torch.Tensor:
    """[2, 11] token ids below 40, none of them special."""
    return torch.randint(3, 40, (2, 11), generator=torch.Generator().manual_seed(7))
