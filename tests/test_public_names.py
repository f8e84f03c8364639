"""Names that users import are frozen: a change here is a change of the interface."""

import hf_shear

PUBLIC = {
    "AutoShearingModelForCausalLM",
    "DynamicBatchSampler",
    "MaskSettings",
    "PruneConfig",
    "ShearTrainer",
    "ShearTrainingArguments",
    "ShearingLlamaConfig",
    "ShearingLlamaForCausalLM",
    "ShearingMistralForCausalLM",
    "ShearingQwen2ForCausalLM",
    "ShearingQwen3ForCausalLM",
    "TargetShape",
    "prune_one_shot",
    "slice_model",
}


def test_public_names():
    assert set(hf_shear.__all__) == PUBLIC
    assert all(hasattr(hf_shear, name) for name in PUBLIC)
