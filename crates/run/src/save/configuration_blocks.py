"""Config of a Llama whose layers differ, as vLLM's `DeciLMForCausalLM` reads it: each entry of `block_configs` is an object."""

from transformers import MistralConfig


class Block(dict):
    """A JSON object whose fields are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_block(value):
    return Block({key: as_block(inner) for key, inner in value.items()}) if isinstance(value, dict) else value


class BlocksConfig(MistralConfig):
    """A Mistral's config, since it takes any number of heads of any width."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **fields):
        super().__init__(**fields)
        self.block_configs = [as_block(block) for block in block_configs or []]
