"""Models that are whole on every process, also where DeepSpeed ZeRO-3 would build them in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed as integration


@contextmanager
def whole_models() -> Iterator[None]:
    """Load models whole within: parts can run only in an engine, which calibration and evaluation do not need.

    Such a model has to fit one device, in the dtype it is loaded in, without gradients or optimizer.
    """
    if not integration.is_deepspeed_zero3_enabled():
        yield
        return
    config = integration._hf_deepspeed_config_weak_ref()  # what `from_pretrained` looks at; there is no public getter
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration.set_hf_deepspeed_config(config)
