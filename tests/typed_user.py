"""What a user writes, for the type checker (test_types.py): each ``reveal_type`` must be the class that is meant."""

from typing_extensions import reveal_type

from hf_shear import (
    AutoShearingModelForCausalLM,
    DynamicBatchSampler,
    MaskSettings,
    ShearTrainer,
    ShearTrainingArguments,
    TargetShape,
)

target = TargetShape(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128
)
reveal_type(target)  # TargetShape
reveal_type(MaskSettings())  # MaskSettings
model = AutoShearingModelForCausalLM.from_pretrained("a/model", target_shape=target)
reveal_type(model)  # ShearingModel
trainer = ShearTrainer(model=model, args=ShearTrainingArguments(output_dir="out"))
reveal_type(trainer)  # ShearTrainer
reveal_type(DynamicBatchSampler)  # type[DynamicBatchSampler]
