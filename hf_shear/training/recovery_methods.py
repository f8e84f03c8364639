"""What recovery trains of a pruned model: all weights, adapters, or norms and biases.

A method is a class here and an entry of ``RECOVERY_METHODS``; nothing else compares its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from ..core import UsageError
from ..core.defaults import FULL
from .adapters import adapter_width, add_adapters, peft_config_from, quantisation, save_adapter_record, weights_digest
from .memory_setup import FrozenSetup

if TYPE_CHECKING:
    from .arguments import ShearTrainingArguments


class RecoveryMethod:
    """Continued pre-training of all weights (the paper), and what other methods do otherwise.

    Attributes:
        trained: what is trained, in words.
        trains_all: every weight is trained, as mask learning needs it.
        adapts: adapters of ``peft`` are trained beside frozen weights, which may be quantised; a checkpoint holds the
            adapters alone, and at the end they are merged into the weights they were trained on.
    """

    trained = "all weights"
    trains_all = True
    adapts = False

    def peft_config(self, args: ShearTrainingArguments, given: Any = None) -> Any:
        """The config object of ``peft`` to train with: ``given``, or else what ``args`` say; None without adapters."""
        return given

    def prepare(self, model: PreTrainedModel, peft_config: Any = None) -> nn.Module:
        """Freeze what the method does not train, and add what it trains.

        Args:
            model: a plain causal language model.
            peft_config: of the adapters.

        Returns:
            The model itself, or the ``PeftModel`` around it.

        Raises:
            ValueError: the method does not fit the model.
            ImportError: adapters without ``peft``.
        """
        return model

    def base_digest(self, model: PreTrainedModel) -> str | None:
        """The digest of the weights that adapters will stand on (``weights_digest``); None without adapters."""
        return None

    def save_record(self, folder: str, model: PreTrainedModel, base_digest: str | None) -> None:
        """Write what a checkpoint has to say beside what was trained."""

    def compared_on_resume(self, args: ShearTrainingArguments) -> dict[str, Any]:
        """JSON-ready values, by name, that a resumed run must share beside the arguments."""
        return {}

    def frozen_setup(self, model: PreTrainedModel) -> FrozenSetup | None:
        """What the memory of a training step depends on; None where nothing is frozen."""
        return None

    def saved_parameters(self, num_parameters: int, num_trained: int) -> int:
        """How many of a model's parameters a checkpoint holds."""
        return num_parameters


class Adapters(RecoveryMethod):
    """Adapters of ``peft``: LoRA of rank 16 on all linear layers by default."""

    trained = "adapters"
    trains_all = False
    adapts = True

    def peft_config(self, args: ShearTrainingArguments, given: Any = None) -> Any:
        return peft_config_from(args.peft_config) if given is None else given

    def prepare(self, model: PreTrainedModel, peft_config: Any = None) -> nn.Module:
        return add_adapters(model, peft_config)

    def base_digest(self, model: PreTrainedModel) -> str | None:
        return weights_digest(model)

    def save_record(self, folder: str, model: PreTrainedModel, base_digest: str | None) -> None:
        """Note the weights that the adapters belong to."""
        save_adapter_record(folder, base_digest, base_model=model.config.name_or_path)

    def compared_on_resume(self, args: ShearTrainingArguments) -> dict[str, Any]:
        return {"peft_config": peft_config_from(args.peft_config).to_dict()}

    def frozen_setup(self, model: PreTrainedModel) -> FrozenSetup:
        return FrozenSetup(num_trainable(model), True, adapter_width(model), quantisation(model.config))

    def saved_parameters(self, num_parameters: int, num_trained: int) -> int:
        return num_trained


class NormsAndBiases(RecoveryMethod):
    """Every parameter with one dimension, as in PERP (arXiv 2312.15230)."""

    trained = "norms and biases"
    trains_all = False

    def prepare(self, model: PreTrainedModel, peft_config: Any = None) -> nn.Module:
        for parameter in model.parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3's partitions are all flat
            parameter.requires_grad_(len(shape) == 1 and parameter.is_floating_point())
        if not num_trainable(model):
            raise UsageError("`recovery_method='norms_and_biases'` finds no norms or biases in this model.")
        return model

    def frozen_setup(self, model: PreTrainedModel) -> FrozenSetup:
        return FrozenSetup(num_trainable(model), quantize=quantisation(model.config))


LORA = "lora"
RECOVERY_METHODS: dict[str, RecoveryMethod] = {
    FULL: RecoveryMethod(),
    LORA: Adapters(),
    "norms_and_biases": NormsAndBiases(),
}


def recovery_method(name: str, peft_config: Any = None) -> RecoveryMethod:
    """The method of that name.

    Raises:
        ValueError: an unknown name, or a ``peft_config`` for a method without adapters.
    """
    if name not in RECOVERY_METHODS:
        raise UsageError(f"`recovery_method` must be one of {', '.join(RECOVERY_METHODS)}, but it is {name!r}.")
    method = RECOVERY_METHODS[name]
    if peft_config is not None and not method.adapts:
        raise UsageError(
            f"`peft_config` is given, but `recovery_method` is {name!r}. Set it to 'lora', or leave `peft_config` out."
        )
    return method


def num_trainable(model: nn.Module) -> int:
    """Number of parameters that training changes."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)  # whole under ZeRO-3, too
