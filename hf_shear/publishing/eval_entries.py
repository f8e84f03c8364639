"""Scores of tasks as the Hub reads them beside the model-index: `.eval_results/TASK.yaml`, one file for each task.

The Hub shows those of data sets that are registered there as benchmarks, and refuses a whole file for one entry that it
does not know. So a file holds one task, and only a task whose items, all of them, came from a data set on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .source_model import is_hub_id

FOLDER = ".eval_results"


def eval_result_files(evaluation: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Files by their names in the repository; none without tasks of the Hub's data.

    Args:
        evaluation: content of evaluation.json, whose ``pruned`` is the published model.
    """
    tasks = ((evaluation or {}).get("pruned") or {}).get("tasks") or {}
    files = {}
    for task, row in tasks.items():
        dataset = row.get("dataset")
        if not dataset or row["value"] is None or not is_hub_id(dataset["id"]):
            continue
        entry = EvalResultEntry(
            dataset_id=dataset["id"], task_id=dataset.get("config") or "default", value=row["value"],
            notes=f"{row['metric']} of lm-eval's task {task}, {dataset['num_fewshot']}-shot",
        )  # fmt: skip
        name = re.sub(r"[^A-Za-z0-9._-]", "_", task)
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        files[f"{FOLDER}/{name}.yaml"] = content.encode()
    return files
