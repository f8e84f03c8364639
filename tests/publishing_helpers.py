"""A run's folder as a finished run leaves it, in a second: tiny models and results with numbers that are all different."""

from __future__ import annotations

import json
from pathlib import Path

from training_helpers import letter_tokenizer, plain_model

from hf_shear.core import model_record
from hf_shear.shapes import ModelShape, count_parameters
from hf_shear.slicing import save_checkpoint

SECRET_PATH = "/home/somebody/secret-place/my-llama"
SMALL = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


def record(model, losses: dict[str, float], eval_tokens: int = 4096) -> dict:
    shape = ModelShape.from_config(model.config)
    return model_record(shape.to_dict(), count_parameters(model.config), losses, eval_tokens)


def domain_losses(start: float) -> dict[str, float]:
    return {"books": start + 0.00012345, "code": start + 0.17012345}  # more digits than a table shows


def make_results(source, small) -> dict:
    sizes = ModelShape.from_config(small.config).sizes()
    return {
        "source": record(source, domain_losses(2.113)),
        "pruned": record(small, domain_losses(3.337)),
        "recovered": record(small, domain_losses(2.419)) | {"learning_rate": 0.0017},
        "target_shape": sizes,
        "masks": {"expected_shape": sizes, "kept_below_half": dict.fromkeys(sizes, 0)},
        "tokens": {"mask_learning": 20480, "recovery": 348160, "evaluation": 9001, "calibration": 32768},
        "seconds": {name: 1.5 for name in ("mask_learning", "recovery", "evaluation", "export", "baselines")}
        | {"total": 723.4},
        "baselines": {
            "taylor": record(small, domain_losses(2.391)) | {"tokens": 368640, "learning_rate": 0.0023},
            "scratch": record(small, domain_losses(4.613)) | {"tokens": 368640, "learning_rate": 0.0041},
        },
        "versions": {"python": "3.11.7", "hf_shear": "0.1.0"},
        "seed": 42,
        "command": f"accelerate launch examples/shear.py --model_name_or_path {SECRET_PATH} --hidden_size 12",
        "passes": {"recovery": {"books": 0.637, "code": 1.29}},
        "history": [
            {"stage": "mask_learning", "num_tokens": 20480, "mixture_weights": {"books": 0.443, "code": 0.557}},
            {"stage": "recovery", "num_tokens": 348160, "mixture_weights": {"books": 0.361, "code": 0.639}},
        ],
    }


def make_provenance(source, **changes) -> dict:
    return {
        "source": {
            "name_or_path": SECRET_PATH,
            "revision": None,
            "shape": ModelShape.from_config(source.config).to_dict(),
        },
        "mask_settings": {"method": "relaxed_topk"},
        "recovery": 348160,
    } | changes


def make_evaluation(results: dict) -> dict:
    def model(name: str, loss: float, accuracy: float) -> dict:
        own = {"loss": loss, "loss_interval": [loss - 0.01, loss + 0.01], "perplexity": 8.77, "bits_per_byte": 0.914}
        return {
            "name": f"run/{'recovered' if name == 'pruned' else name}",
            "num_parameters": results[name if name == "source" else "recovered"]["num_parameters"],
            "weight_bytes": 51234,
            "kv_cache_bytes_per_token": 384,
            "perplexity": {"protocol": {"max_length": 256, "stride": 128}, "domains": {"books": own}},
            "tasks": {"piqa": {"metric": "acc", "value": accuracy, "standard_error": 0.011, "num_items": 1838}},
        }

    speeds = {"prefill_tokens_per_second": 1234.5, "decode_tokens_per_second": 67.8}
    ratio = {"median": 1.83, "low": 1.71, "high": 1.94}
    return {
        "source": model("source", 2.222, 0.613),
        "pruned": model("pruned", 2.555, 0.587),
        "speed": {
            "device": "cpu", "dtype": "float32", "batch_size": 3, "prompt_length": 511, "new_tokens": 65, "rounds": 7,
            "source": speeds, "pruned": {name: 2 * value for name, value in speeds.items()},
            "prefill_ratio": ratio, "decode_ratio": ratio,
        },
    }  # fmt: skip


def make_run(folder: Path, shards: bool = False) -> Path:
    """results.json, evaluation.json, report.html, and the checkpoints ``recovered`` and ``pruned``."""
    source, small = plain_model(), plain_model(seed=1, **SMALL)
    results = make_results(source, small)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = make_provenance(source)
    save_checkpoint(small, folder / "recovered", letter_tokenizer(), provenance)
    del provenance["recovery"]
    save_checkpoint(plain_model(seed=2, **SMALL), folder / "pruned", letter_tokenizer(), provenance)
    if shards:
        small.save_pretrained(folder / "recovered", max_shard_size="4KB")
        (folder / "recovered" / "model.safetensors").unlink(missing_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "evaluation.json").write_text(json.dumps(make_evaluation(results)))
    (folder / "report.html").write_text(f"<html><p>Run in {folder.resolve()}, of {SECRET_PATH}</p></html>")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
