"""What a user writes, for the type checker (test_types.py): each ``reveal_type`` must be the type behind it."""

from transformers import AutoTokenizer, LlamaConfig
from typing_extensions import reveal_type

from hf_shear import (
    AutoShearingModelForCausalLM,
    Calibration,
    MaskSettings,
    PruneConfig,
    ShearingLlamaForCausalLM,
    ShearTrainer,
    ShearTrainingArguments,
    TargetShape,
    load_domains,
    pack_domains,
    prune_one_shot,
    save_checkpoint,
    slice_model,
    split_domains,
)
from hf_shear.modeling import ShearingQwen3MoeForCausalLM

reveal_type(ShearingLlamaForCausalLM)  # type[ShearingLlamaForCausalLM]
reveal_type(TargetShape.from_source(LlamaConfig(), intermediate_size=192))  # TargetShape
reveal_type(MaskSettings())  # MaskSettings

tokenizer = AutoTokenizer.from_pretrained("a/model")
reveal_type(load_domains("text"))  # DatasetDict
train, held_out = (pack_domains(text, tokenizer, max_length=128) for text in split_domains(load_domains("text")))
reveal_type(train)  # DatasetDict

model = AutoShearingModelForCausalLM.from_pretrained("a/model", target_shape={"intermediate_size": 192})
reveal_type(model)  # ShearingModel
reveal_type(ShearingQwen3MoeForCausalLM.from_pretrained("a/mixture"))  # ShearingQwen3MoeForCausalLM
args = ShearTrainingArguments("out", num_tokens=10_240)
trainer = ShearTrainer(model, args, train, held_out, tokenizer)
reveal_type(trainer)  # ShearTrainer
reveal_type(slice_model(model))  # tuple[PreTrainedModel, KeptUnits]

config = PruneConfig("taylor", compensation="least_squares")
reveal_type(config)  # PruneConfig
pruning = prune_one_shot(model, {"intermediate_size": 192}, Calibration([]), config)
reveal_type(pruning.model)  # PreTrainedModel
reveal_type(save_checkpoint(pruning.model, "pruned", tokenizer))  # Path
