"""From text by domain to packed samples: to train on, to steer domain weights by, to judge by."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..data import Calibration, check_max_length, enough_documents, pack_domains, split_domains
from ..training import STEERING_SAMPLES
from .pipeline_arguments import check_judged_tokens

logger = logging.getLogger(__name__)

SPLIT_SEED = 0  # one split for every run and seed, so that their held-out losses compare


@dataclass(frozen=True)
class DomainData:
    """Packed samples per domain.

    Attributes:
        train: to train on.
        held_out: that no training sees (calibration may), the judged ones and those that follow.
        judged: the first samples of each held-out domain; every model of a run is evaluated on these.
        steering: that are neither trained on nor judged; domain weights follow the losses on these, and calibration text is
            drawn from them.
    """

    train: Mapping[Any, Dataset]
    held_out: Mapping[Any, Dataset]
    judged: dict[str, Dataset]
    steering: dict[str, Dataset]

    @property
    def domains(self) -> list[str]:
        """Names of the domains."""
        return list(self.train)

    def first_steering(self, num_samples: int) -> dict[str, Dataset]:
        """The first samples of each domain to steer by."""
        return {name: dataset.select(range(min(num_samples, len(dataset)))) for name, dataset in self.steering.items()}

    def calibration(self, batch_size: int, num_batches: int, seed: int) -> Calibration:
        """A draw of calibration text: samples that steer, which are no training text, where a domain has enough of them.

        Text that the source was trained on shows what it has learned by heart: on the embedded model, trained on the same
        text, the layers that losses on training text rank last are others than those on text that it never saw
        (model_cards/tried.md).

        Args:
            batch_size, num_batches, seed: as in ``Calibration.from_domains``.
        """
        share = batch_size * num_batches / len(self.train)
        short = [name for name in self.train if len(self.steering[str(name)]) < share]
        if short:
            logger.warning(
                "These domains have too little held-out text beside what is judged to calibrate on, so that calibration"
                f" reads their training text: {short}. To silence this, raise `held_out_fraction`, or calibrate on less."
            )
        drawn_from = {name: own if name in short else self.steering[str(name)] for name, own in self.train.items()}
        return Calibration.from_domains(drawn_from, batch_size, num_batches, seed)


MOST_JUDGED, FEWEST_JUDGED = 8_192, 2_048  # tokens of a domain, where nobody says how many
ALL_JUDGED = 16_384  # of all domains together, between these two


def judged_tokens(eval_tokens: int | None, max_length: int, num_domains: int) -> int:
    """Held-out tokens of each domain that models are judged by, where ``eval_tokens`` does not say it.

    The text alone decides it, so that the losses of a source are equal in every command that reads the same text.

    Args:
        eval_tokens: what the user asked for; None: nothing.
        max_length: tokens of a sample; one is judged in any case.
        num_domains: of text.
    """
    if eval_tokens is not None:
        return eval_tokens
    return max(min(ALL_JUDGED // num_domains, MOST_JUDGED), FEWEST_JUDGED, max_length)


def prepare_domain_data(
    domains: Mapping[Any, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    *,
    max_length: int,
    held_out_fraction: float,
    eval_tokens: int,
    block_diagonal: bool = False,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
    most_samples: int | None = None,
) -> DomainData:
    """Split by document, tokenise, pack; then set apart what is judged, and of the rest what steers domain weights.

    Both are the same in every run and for every seed. Steering samples are the held-out ones after those that are
    judged. Of a domain with fewer than 16 such samples the last training samples steer too, and are no longer trained
    on: as many as are missing, a tenth of them at most, and one in any case.

    Args:
        domains: text per domain (``load_domains``).
        tokenizer, config: of the source. A text that gives an id beyond the model's vocabulary is refused.
        max_length: tokens per sample; at most the model's positions.
        held_out_fraction: share of each domain's documents that no training sees.
        eval_tokens: held-out tokens per domain to judge by; a domain with fewer gives all it has, with a warning.
        block_diagonal: no attention across documents.
        num_proc: processes that tokenise.
        parse_special_tokens: let control tokens that are written in the text be such tokens.
        most_samples: of each domain, beside the judged ones, that anybody will read; None: all are read, to train on. No
            more text is tokenised than gives as many.
    """
    check_max_length(max_length, config.max_position_embeddings)
    check_judged_tokens(eval_tokens, max_length)
    options: dict[str, Any] = {"block_diagonal": block_diagonal, "num_proc": num_proc}
    options |= {"parse_special_tokens": parse_special_tokens, "vocab_size": config.vocab_size}
    train_text, held_out_text = split_domains(domains, held_out_fraction, seed=SPLIT_SEED)
    if most_samples is not None:
        most = eval_tokens + most_samples * max_length
        for part in (train_text, held_out_text):
            for name, documents in part.items():
                part[name] = enough_documents(documents, tokenizer, most, parse_special_tokens=parse_special_tokens)
    train = pack_domains(train_text, tokenizer, max_length, **options)
    held_out = pack_domains(held_out_text, tokenizer, max_length, **options)
    wanted = eval_tokens // max_length
    short = {name: len(dataset) * max_length for name, dataset in held_out.items() if len(dataset) < wanted}
    if short:
        warnings.warn(
            f"These domains have fewer held-out tokens than `eval_tokens` ({eval_tokens:,}) and are judged by what they"
            f" have: {short}. Their losses are less certain. Lower `eval_tokens` to silence this.",
            UserWarning,
            stacklevel=2,
        )
    judged = {str(name): dataset.select(range(min(wanted, len(dataset)))) for name, dataset in held_out.items()}
    train, steering = _set_apart(train, held_out, wanted)
    return DomainData(train, held_out, judged, steering)


def _set_apart(train: Mapping[Any, Dataset], held_out: Mapping[Any, Dataset], num_judged: int):
    """What is left to train on, and what steers."""
    left, steering, taken, judging = {}, {}, {}, []
    for name, dataset in held_out.items():
        own, num_rest = train[name], max(len(dataset) - num_judged, 0)
        missing = min(STEERING_SAMPLES - num_rest, max(len(own) // 10, 1 - num_rest), len(own) - 1)
        parts = [dataset.select(range(num_judged, len(dataset)))] if num_rest else []
        if missing > 0:
            last = len(own) - missing
            parts.append(own.select(range(last, len(own))))
            own, taken[str(name)] = own.select(range(last)), {"held out": num_rest, "of training": missing}
        if not parts:  # a single sample to train on
            parts.append(dataset)
            judging.append(str(name))
        left[name], steering[str(name)] = own, concatenate_datasets(parts)
    if taken:
        logger.warning(
            f"These domains have fewer than {STEERING_SAMPLES} held-out samples beyond those that are judged"
            f" (`eval_tokens`), so that their last training samples are held out too, to steer domain weights by: {taken}."
        )
    if judging:
        logger.warning(
            f"The domains {judging} have one training sample and no held-out one beyond those that are judged"
            " (`eval_tokens`): domain weights are steered by the judged ones, whose losses are then no fair judge of"
            " dynamic batches. Lower `eval_tokens`, or add text."
        )
    return DatasetDict(left), steering
