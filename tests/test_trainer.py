"""What may be asked of ShearTrainer: how long it runs, what it needs and refuses, what it saves and records."""

from __future__ import annotations

import pytest
from training_helpers import (
    DOMAINS,
    LENGTH,
    differences,
    held_out_domains,
    letter_tokenizer,
    make_args,
    make_trainer,
    masked_model,
    plain_model,
    train_domains,
    trained,
    weights_of,
)
from transformers import AutoConfig, LlamaForCausalLM, TrainerCallback

from hf_shear import ShearingLlamaForCausalLM, ShearTrainer


def test_num_tokens_sets_the_steps(tmp_path):
    args = make_args(tmp_path, max_steps=-1, num_tokens=3 * 8 * LENGTH + 1, gradient_accumulation_steps=2)
    trainer = make_trainer(plain_model(), args)
    trainer.train()
    assert trainer.state.global_step == args.max_steps == 4
    assert trainer.tokens_seen() == 4 * 8 * LENGTH
    assert trainer.state.epoch == 1.0
    assert trainer.stage_record("recovery")["tokens"] == 4 * 8 * LENGTH


def test_tokens_and_steps_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="`num_tokens=100` is 2 steps, but `max_steps` is 7. Give one of the two"):
        make_trainer(plain_model(), make_args(tmp_path, max_steps=7, num_tokens=100))
    args = make_args(tmp_path, max_steps=-1, num_tokens=100)
    assert make_trainer(plain_model(), args).args.max_steps == make_trainer(plain_model(), args).args.max_steps == 2


def test_masks_that_were_not_settled_are_warned_of(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = make_trainer(masked_model(), make_args(tmp_path), callbacks=[Stop()])
    with pytest.warns(UserWarning, match="Mask learning stopped at step 3 of 8, before its masks were settled"):
        trainer.train()


@pytest.mark.parametrize("make_model", [plain_model, masked_model])
def test_a_padding_token_that_the_model_does_not_have_stays_out_of_its_config(tmp_path, make_model):
    model, tokenizer = make_model(), letter_tokenizer()
    missing = model.config.vocab_size - len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<{number}>" for number in range(missing)]})
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == model.config.vocab_size
    args = make_args(tmp_path, max_steps=2, warmup_steps=0)
    trainer = ShearTrainer(model, args, train_domains(), held_out_domains(), processing_class=tokenizer)
    trainer.train()
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (None, None)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoConfig.from_pretrained(tmp_path / "saved").pad_token_id is None


def test_predictions_are_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="`evaluate` gives the loss of each domain"):
        make_trainer(plain_model(), make_args(tmp_path)).predict(held_out_domains())


def test_training_needs_data_and_an_end(tmp_path):
    endless = make_trainer(plain_model(), make_args(tmp_path, max_steps=-1))
    with pytest.raises(ValueError, match="draws batches without end, so it needs `num_tokens` .or `max_steps`."):
        endless.train()
    args = make_args(tmp_path)
    without = ShearTrainer(plain_model(), args, eval_dataset=held_out_domains())
    assert without.evaluate()["eval_tokens"] == 3 * 4 * (LENGTH - 1)
    with pytest.raises(ValueError, match="`train_dataset` is needed to train: a data set, or a dict"):
        without.train()


def test_training_works_with_gradient_checkpointing(tmp_path):
    changes = {"max_steps": 3}
    expected = trained(tmp_path, masked_model("relaxed_topk"), **changes)
    found = trained(tmp_path, masked_model("relaxed_topk"), activation_checkpointing=True, **changes)
    assert [record["loss"] for record in found.records] == [record["loss"] for record in expected.records]
    assert differences(found.model, weights_of(expected.model)) == (0.0, 0.0)


def test_the_saved_masked_checkpoint_and_the_plain_one_load_alone(tmp_path):
    trained(tmp_path / "masks", masked_model(), max_steps=1, save_strategy="steps", save_steps=1)
    assert ShearingLlamaForCausalLM.from_pretrained(tmp_path / "masks" / "checkpoint-1").masks.log_alpha
    trained(tmp_path / "plain", plain_model(), max_steps=1, save_strategy="steps", save_steps=1)
    LlamaForCausalLM.from_pretrained(tmp_path / "plain" / "checkpoint-1")


def test_a_run_without_evaluations_has_a_record_of_none(tmp_path):
    references = dict.fromkeys(DOMAINS, 3.0)
    trainer = trained(tmp_path, plain_model(), max_steps=1, eval_strategy="no", reference_losses=references)
    assert trainer.stage_record("recovery")["eval_samples"] == 0
