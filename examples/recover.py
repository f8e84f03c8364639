"""Train a pruned model back to strength: all weights or LoRA, alone or taught by its source.

    accelerate launch examples/recover.py --pruned pruned --source path/to/llama --data_dir path/to/text \
        --output_dir recovery --num_tokens 5_000_000_000 --learning_rate 1e-4 --bf16

    --recovery_method lora          adapters, merged into a plain checkpoint at the end; needs `pip install peft`
    --distillation forward_kl       the source is the teacher

On several GPUs: accelerate launch --config_file examples/accelerate/zero3.yaml examples/recover.py ... The result, a plain
checkpoint, is in OUTPUT_DIR/recovered. All arguments of transformers.TrainingArguments are known, too.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from hf_shear import ShearTrainer, ShearTrainingArguments, evaluate_samples, merge_adapter, save_checkpoint
from hf_shear.data import load_domains, pack_domains, split_domains


@dataclass
class Arguments:
    pruned: str = field(metadata={"help": "A plain checkpoint: of prune.py, of learn_masks.py, of another library."})
    source: str = field(metadata={"help": "What it was cut from: its losses steer the domains; also the teacher."})
    data_dir: str = field(metadata={"help": "Text: a sub-folder or file per domain."})
    max_length: int = field(default=2048, metadata={"help": "Tokens per sample."})
    max_eval_samples: int = field(default=64, metadata={"help": "Held-out samples of a domain to evaluate on."})


def main(words=None):
    parser = HfArgumentParser((Arguments, ShearTrainingArguments), description=__doc__)
    arguments, args = parser.parse_args_into_dataclasses(words)
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    split = split_domains(load_domains(arguments.data_dir))  # by document: nothing leaks into what is held out
    train, held_out = (pack_domains(text, tokenizer, max_length=arguments.max_length) for text in split)
    held_out = {name: rows.select(range(min(len(rows), arguments.max_eval_samples))) for name, rows in held_out.items()}

    # Domains that are furthest from the source's loss get more of the training tokens.
    source = AutoModelForCausalLM.from_pretrained(arguments.source).to(args.device)
    found = evaluate_samples(source, held_out, args.eval_batch_size)
    args.reference_losses = {name: losses.mean for name, losses in found.items()}
    samples = {name: losses.sums for name, losses in found.items()}
    teacher = source if args.distillation != "none" else None
    model = AutoModelForCausalLM.from_pretrained(arguments.pruned, dtype=torch.float32)
    trainer = ShearTrainer(model, args, train, held_out, tokenizer, teacher=teacher, reference_samples=samples)
    trainer.train()

    recovered = trainer.accelerator.unwrap_model(trainer.model)
    if args.recovery.adapts:
        trainer.save_model(f"{args.output_dir}/adapter")
        recovered = merge_adapter(arguments.pruned, f"{args.output_dir}/adapter")
    save_checkpoint(recovered, f"{args.output_dir}/recovered", tokenizer, dtype=source.dtype)


if __name__ == "__main__":
    main()
