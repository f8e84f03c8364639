"""Learn which units a model can spare, by masks that train together with its weights, and cut it.

    accelerate launch examples/learn_masks.py --model path/to/llama --data_dir path/to/text --output_dir masks \
        --intermediate_size 5504 --num_tokens 400_000_000 --learning_rate 1e-4

The pruned model, a plain checkpoint, is in OUTPUT_DIR/pruned; recover.py trains it on. examples/shear.py does both with one
command, with a report. All arguments of transformers.TrainingArguments are known, too.
"""

from dataclasses import dataclass, field

from transformers import AutoTokenizer, HfArgumentParser

from hf_shear import (
    AutoShearingModelForCausalLM,
    ShearTrainer,
    ShearTrainingArguments,
    provenance_record,
    save_checkpoint,
    slice_model,
)
from hf_shear.data import load_domains, pack_domains, split_domains

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A checkpoint of a supported family."})
    data_dir: str = field(metadata={"help": "Text: a sub-folder or file per domain."})
    hidden_size: int | None = field(default=None, metadata={"help": "Of the result, as the four sizes below."})
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    max_length: int = field(default=2048, metadata={"help": "Tokens per sample."})


def main(words=None):
    parser = HfArgumentParser((Arguments, ShearTrainingArguments), description=__doc__)
    arguments, args = parser.parse_args_into_dataclasses(words)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    split = split_domains(load_domains(arguments.data_dir))  # by document: nothing leaks into what is held out
    train, held_out = (pack_domains(text, tokenizer, max_length=arguments.max_length) for text in split)

    target = {size: getattr(arguments, size) for size in SIZES if getattr(arguments, size) is not None}
    model = AutoShearingModelForCausalLM.from_pretrained(arguments.model, target_shape=target)
    trainer = ShearTrainer(model, args, train, held_out, tokenizer)
    trainer.train()

    pruned, kept = slice_model(trainer.accelerator.unwrap_model(trainer.model))  # a stock model of the target's shape
    save_checkpoint(pruned, f"{args.output_dir}/pruned", tokenizer, provenance_record(model, kept))


if __name__ == "__main__":
    main()
