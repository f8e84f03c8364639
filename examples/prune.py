"""Prune a pretrained model at once, without training.

    python examples/prune.py --model path/to/llama --data_dir path/to/text --intermediate_size 5504 --output_dir pruned

`path/to/text` has a sub-folder or file per domain. The result is a plain checkpoint, which
`AutoModelForCausalLM.from_pretrained("pruned")` loads anywhere. Train it on with recover.py.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.data import Calibration, load_domains, pack_domains, split_domains

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint of a supported family")
    parser.add_argument("--data_dir", required=True, help="text to score the units on")
    parser.add_argument("--output_dir", required=True)
    for size in SIZES:
        parser.add_argument(f"--{size}", type=int, help="of the result; default: the model's own")
    parser.add_argument("--criterion", help="taylor, flap, magnitude, ...; default: the LLM Surgeon's costs")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens per sample (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="samples per batch (%(default)s)")
    parser.add_argument("--num_batches", type=int, default=16, help="batches of calibration text (%(default)s)")
    arguments = parser.parse_args(words)

    # Calibration text: batches that draw from all domains alike. What is held out here is left to judge by.
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train, _ = split_domains(load_domains(arguments.data_dir))
    samples = pack_domains(train, tokenizer, max_length=arguments.max_length)
    calibration = Calibration.from_domains(samples, arguments.batch_size, arguments.num_batches)

    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    target = {size: getattr(arguments, size) for size in SIZES if getattr(arguments, size) is not None}
    config = PruneConfig(criterion=arguments.criterion) if arguments.criterion else PruneConfig()
    pruning = prune_one_shot(model, target, calibration, config)
    pruning.save(arguments.output_dir, tokenizer)
    print(f"{pruning.num_parameters:,} of {model.num_parameters():,} parameters are in {arguments.output_dir}.")


if __name__ == "__main__":
    main()
