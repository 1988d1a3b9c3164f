"""Defines the sample model's sizes and the settings of its training, as data."""

from dataclasses import dataclass

from transformers import LlamaConfig


@dataclass(frozen=True)
class Recipe:
    """Sizes of the model and settings of the training; the defaults make the checkpoint that is shipped."""

    vocabulary: int = 4096
    """Tokens, the two special ones included."""
    hidden: int = 256
    """Width of the residual stream; this and the next are multiples of 64, the block of the 4-bit formats."""
    intermediate: int = 448
    """Width inside the MLP."""
    layers: int = 8
    heads: int = 8
    """Query heads."""
    kv_heads: int = 2
    """Key/value heads; four query heads share one."""
    max_positions: int = 1024
    length: int = 256
    """Tokens in a training sequence."""
    batch: int = 8
    """Sequences in one step."""
    steps: int = 2000
    warmup: int = 100
    """Steps of linear warm-up; a cosine down to a tenth of the rate follows."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    """On the matrices alone, not on the norms' weights."""
    statement_share: float = 0.4
    """Share of the training tokens that come from generated statements."""
    seed: int = 0

    def config(self, begin: int, end: int) -> LlamaConfig:
        """The architecture, for a tokenizer with these special token ids."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=True,
            bos_token_id=begin,
            eos_token_id=end,
        )
