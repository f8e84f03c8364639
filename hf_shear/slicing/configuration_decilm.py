"""Configuration of a Llama whose layers differ (model_type nemotron-nas); needs transformers alone.

It lies beside such a checkpoint for engines that ask transformers for the config (``trust_remote_code=True``).
"""

from transformers import LlamaConfig


class Block(dict):
    """A dict whose entries are attributes as well: engines read ``block.attention.no_op``."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(LlamaConfig):
    """A Llama config with ``block_configs``: per layer, what its attention and its MLP are."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [
            Block({part: Block(settings) for part, settings in block.items()}) for block in block_configs
        ]
