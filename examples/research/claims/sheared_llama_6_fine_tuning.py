"""A sheared model as the start of fine-tuning, against the same shape trained from scratch on as many tokens.

python -m examples.research.claims.sheared_llama_6_fine_tuning --data_dir SEVEN_DOMAINS
"""

import sys
import tempfile

import torch
from transformers import AutoModelForSequenceClassification

from ..shared import mean_and_spread
from .claim_command import main
from .claim_results import Claim, SourceResults, compare, draw_means, markdown_table
from .study import Study

CLAIM = Claim(
    name="sheared_llama_6_fine_tuning",
    statement="Fine-tuned on a downstream task, a sheared model is at least as good as its shape from scratch",
    section="section 3.2",
    note="The task: from which domain is a short piece of text? Pieces of training documents teach, pieces of held-out "
    "documents test, as many of each domain, so that chance is one in the number of domains. Both models saw the same "
    "number of tokens before, each at the learning rate that claim 2 found for it; the classification head is new and "
    "its start is the same.",
)
ARMS = ("sheared", "scratch")


def runs(study: Study) -> None:
    for seed in study.seeds:
        for arm in ARMS:
            study.run({"arm": arm, "seed": seed}, lambda arm=arm, seed=seed: fine_tuned(study, arm, seed))


def fine_tuned(study: Study, arm: str, seed: int) -> dict:
    model, facts = pretrained(study, arm, seed)
    record = facts | study.judged(model)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        domains = list(study.data.train)
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(domains))
    classifier.config.pad_token_id = 0  # unused: all pieces are of one length
    train, test = (pieces(study, datasets) for datasets in (study.data.train, study.data.judged))
    return record | fit(classifier, train, test, study, seed)


def pretrained(study: Study, arm: str, seed: int):
    """The model, and facts of its training."""
    if arm == "scratch":
        model = study.scratch(study.target(), seed)
        return study.train(model, study.num_tokens, seed, learning_rate=study.scratch_learning_rate)
    model, learned = study.learn(study.target(), round(study.mask_share * study.num_tokens), seed)
    model, recovery = study.train(model, study.num_tokens - learned["tokens"], seed)
    return model, recovery | {"tokens": learned["tokens"] + recovery["tokens"]}


def pieces(study: Study, datasets) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [pieces, piece_length] and labels, as many of each domain."""
    rows, length = [], study.piece_length
    for dataset in datasets.values():
        ids = torch.tensor(dataset["input_ids"])
        rows.append(ids[:, : ids.shape[1] // length * length].reshape(-1, length))
    number = min(*(len(own) for own in rows), study.max_pieces)
    generator = torch.Generator().manual_seed(0)
    rows = [own[torch.randperm(len(own), generator=generator)[:number]] for own in rows]
    return torch.cat(rows), torch.arange(len(rows)).repeat_interleave(number)


def fit(classifier, train, test, study: Study, seed: int) -> dict:
    """Train the whole classifier; its accuracy on the held-out pieces after every tenth of the steps."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=study.fine_tuning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    curve, every = [], max(1, study.fine_tuning_steps // 10)
    for step in range(1, study.fine_tuning_steps + 1):
        chosen = torch.randint(len(train[1]), (study.fine_tuning_batch,), generator=generator)
        loss = classifier(input_ids=train[0][chosen], labels=train[1][chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            curve.append([step, accuracy(classifier, *test)])
    return {"accuracy": curve[-1][1], "error": 1 - curve[-1][1], "curve": curve, "num_test_pieces": len(test[1])}


@torch.no_grad()
def accuracy(classifier, ids: torch.Tensor, labels: torch.Tensor) -> float:
    right = [
        (classifier(input_ids=part).logits.argmax(-1) == own).sum()
        for part, own in zip(ids.split(256), labels.split(256), strict=True)
    ]
    return (sum(right) / len(labels)).item()


def checks(source: SourceResults) -> list:
    own, rival = source.values("error", arm="sheared"), source.values("error", arm="scratch")
    return [compare("share of wrong answers, sheared below scratch", own, rival)]


def table(source: SourceResults) -> str:
    rows = []
    for arm in ARMS:
        loss, found = source.values("mean", arm=arm), source.select(arm=arm)
        first = [run["curve"][0][1] for run in found]
        accuracy = [run["accuracy"] for run in found]
        rows.append(
            (arm, f"{found[0]['tokens']:,}", mean_and_spread(loss), mean_and_spread(first), mean_and_spread(accuracy))
        )
    step = source.select(arm=ARMS[0])[0]["curve"][0][0]
    headings = ("arm", "tokens before", "held-out loss before", f"accuracy after {step} steps", "accuracy at the end")
    return markdown_table(headings, rows)


def draw(source: SourceResults, axes) -> None:
    for arm in ARMS:
        curves = [run["curve"] for run in source.select(arm=arm)]
        steps = [step for step, _ in curves[0]]
        found = [[curve[place][1] for curve in curves] for place in range(len(steps))]
        draw_means(axes, steps, found, label=arm)
    axes.set_xlabel("steps of fine-tuning")
    axes.set_ylabel("accuracy on held-out documents (share)")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.modules[__name__])
