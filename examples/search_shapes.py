"""Find the shape of a budget whose model loses least, and cut the model to it.

    python examples/search_shapes.py --model path/to/llama --data_dir path/to/text --max_parameters 1_000_000_000 \\
        --output_dir pruned

`path/to/text` has a sub-folder or file per domain. The search trains nothing. Train the result with recover.py.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_shear import prune_one_shot
from hf_shear.data import Calibration, load_domains, pack_domains, split_domains
from hf_shear.search import ShapeBudget, search_shapes


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint of a supported family")
    parser.add_argument("--data_dir", required=True, help="text to rank units on, and to choose shapes by")
    parser.add_argument("--max_parameters", type=int, required=True, help="of the result")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_length", type=int, default=2048, help="tokens per sample (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="samples per batch (%(default)s)")
    parser.add_argument("--num_batches", type=int, default=16, help="batches of calibration text (%(default)s)")
    arguments = parser.parse_args(words)

    # Units are ranked on one part of the text, shapes are chosen by another.
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train, held_out = split_domains(load_domains(arguments.data_dir))
    calibration = Calibration.from_domains(
        pack_domains(train, tokenizer, max_length=arguments.max_length), arguments.batch_size, arguments.num_batches
    )
    judged = {
        str(name): samples.select(range(min(len(samples), 2 * arguments.batch_size)))
        for name, samples in pack_domains(held_out, tokenizer, max_length=arguments.max_length).items()
    }

    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = search_shapes(model, calibration, judged, ShapeBudget(max_parameters=arguments.max_parameters))
    for shape in found[:3]:
        print(f"+{shape.predicted_rise:.3f} nats per token predicted: {shape.sizes}")

    pruning = prune_one_shot(model, found[0].sizes, calibration)
    pruning.save(arguments.output_dir, tokenizer)
    print(f"{pruning.num_parameters:,} of {model.num_parameters():,} parameters are in {arguments.output_dir}.")


if __name__ == "__main__":
    main()
