"""Compare a pruned or recovered model with its source: size, loss per domain with intervals, speed.

    python examples/evaluate_checkpoints.py path/to/llama recovered --data_dir path/to/text

Documents that the other examples held out are read, on which nothing here was trained. For tasks such as HellaSwag:
`hf-shear evaluate --tasks`.
"""

import argparse

from hf_shear.core import write_results
from hf_shear.data import load_domains, split_domains
from hf_shear.evaluation import PerplexityProtocol, SpeedProtocol, compare_checkpoints, evaluation_table


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a plain checkpoint")
    parser.add_argument("pruned", help="the one to compare with it")
    parser.add_argument("--data_dir", required=True, help="text: a sub-folder or file per domain")
    parser.add_argument("--max_documents", type=int, default=64, help="of each domain (%(default)s)")
    parser.add_argument("--prompt_length", type=int, default=256, help="tokens, when speed is timed (%(default)s)")
    parser.add_argument("--new_tokens", type=int, default=64, help="to generate after them (%(default)s)")
    parser.add_argument("--output", default="evaluation.json", help="(%(default)s)")
    arguments = parser.parse_args(words)

    _, held_out = split_domains(load_domains(arguments.data_dir))
    record = compare_checkpoints(
        arguments.source,
        arguments.pruned,
        domains=held_out,
        perplexity=PerplexityProtocol(max_documents=arguments.max_documents, documents="held out"),
        speed=SpeedProtocol(prompt_length=arguments.prompt_length, new_tokens=arguments.new_tokens),
    )
    print(evaluation_table(record))
    write_results(arguments.output, record)


if __name__ == "__main__":
    main()
