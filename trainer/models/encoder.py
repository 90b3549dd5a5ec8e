"""The encoder: token ids in, hidden states out."""

import dataclasses
import functools

import keras
from keras import ops

from trainer.models import layers


def padded_vocabulary_size(vocabulary_size):
    """Returns the number of rows the embedding table really has: the next multiple of 128, which matrix units like."""
    return (vocabulary_size + 127) // 128 * 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The architecture of an encoder.

    Args:
        hidden_size: size of the hidden states; a multiple of `num_heads`.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        intermediate_size: width of the feed-forward part; None for four times `hidden_size`.
        activation: `gelu` (exact), `gelu_tanh`, or the name of a Keras activation.
        dropout: rate on embeddings and on the outputs of attention and feed-forward.
        attention_dropout: rate on attention probabilities.
        max_length: number of position embeddings, the longest row the model can read.
        type_vocabulary_size: number of segment types.
        epsilon: of the layer normalisations.
        initializer_range: standard deviation of the initial weights.
        confine_attention: whether, in packed rows, attention and positions stay inside each document.
        rematerialize: whether each layer's activations are recomputed in the backward pass instead of kept.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int | None = None
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    max_length: int = 512
    type_vocabulary_size: int = 2
    epsilon: float = 1e-12
    initializer_range: float = 0.02
    confine_attention: bool = True
    rematerialize: bool = False

    def __post_init__(self):
        for name in ("hidden_size", "num_layers", "num_heads", "max_length", "type_vocabulary_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"encoder.hidden_size {self.hidden_size} is not a multiple of encoder.num_heads {self.num_heads}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def feed_forward_size(self):
        """Width of the feed-forward part."""
        return self.intermediate_size or 4 * self.hidden_size


class Encoder(keras.layers.Layer):
    """BERT's encoder (Devlin et al. 2018, arXiv 1810.04805).

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids; the table is padded inside, see `padded_vocabulary_size`.
        seed: integer for the initial weights.
        dtype: Keras dtype policy: `float32`, `mixed_bfloat16` or `mixed_float16`.
    """

    def __init__(self, config, vocabulary_size, seed=0, dtype="float32", name="encoder", **kwargs):
        super().__init__(dtype=dtype, name=name, **kwargs)
        self.config = config
        self.vocabulary_size = vocabulary_size
        policy = self.dtype_policy
        stddev = config.initializer_range

        def table(rows, name):
            initializer = layers.truncated_normal(stddev, seed, name)
            return layers.TokenEmbedding(rows, config.hidden_size, initializer, dtype=policy, name=name)

        self.word_embeddings = table(padded_vocabulary_size(vocabulary_size), "word_embeddings")
        self.position_embeddings = table(config.max_length, "position_embeddings")
        self.type_embeddings = table(config.type_vocabulary_size, "type_embeddings")
        self.embedding_norm = keras.layers.LayerNormalization(
            epsilon=config.epsilon, dtype=policy, name="embedding_norm"
        )
        self.embedding_dropout = layers.Dropout(config.dropout, "embeddings", dtype=policy, name="embedding_dropout")
        self.transformer_layers = [
            layers.TransformerLayer(
                config.hidden_size,
                config.num_heads,
                config.feed_forward_size,
                config.activation,
                config.dropout,
                config.attention_dropout,
                config.epsilon,
                stddev,
                seed,
                f"layer_{i}",
                dtype=policy,
                name=f"layer_{i}",
            )
            for i in range(config.num_layers)
        ]
        # For learning rates that depend on it, see `trainer.optimizers.parameters`.
        for part in (self.word_embeddings, self.position_embeddings, self.type_embeddings, self.embedding_norm):
            part.depth = 0
        for i, layer in enumerate(self.transformer_layers):
            layer.depth = 1 + i

    def build(self, input_shape=None):
        hidden = (None, None, self.config.hidden_size)
        for part in (self.word_embeddings, self.position_embeddings, self.type_embeddings):
            part.build()
        self.embedding_norm.build(hidden)
        for layer in self.transformer_layers:
            layer.build(hidden)
        self.built = True

    def call(self, token_ids, segment_ids, document_ids, positions=None, keys=None):
        """Encodes rows.

        Of the last layer only what is asked for is computed: keys and values of all tokens, everything else of those at
        `positions`.

        Args:
            token_ids: `[batch, length]` integers.
            segment_ids: `[batch, length]` integers below `type_vocabulary_size`.
            document_ids: `[batch, length]` integers: 0 for padding, another number for each document of the row.
            positions: `[batch, positions]` integers: the tokens whose hidden states are wanted; None for all.
            keys: `Keys` of the examples, or None for no dropout.

        Returns:
            `[batch, length, hidden]` in the compute dtype, or `[batch, positions, hidden]` with `positions`.
        """
        config = self.config
        length = token_ids.shape[1]
        if length > config.max_length:
            raise ValueError(
                f"rows have {length} tokens but encoder.max_length is {config.max_length}: raise it, or prepare shorter rows"
            )
        if config.confine_attention:
            position_vectors = self.position_embeddings(layers.document_positions(document_ids))
        else:
            position_vectors = self.position_embeddings(ops.arange(length))[None]
        x = self.word_embeddings(token_ids) + position_vectors + self.type_embeddings(segment_ids)
        x = self.embedding_dropout(self.embedding_norm(x), keys=keys)
        visible = layers.visible_tokens(document_ids, config.confine_attention)
        *lower, last = self.transformer_layers
        for layer in lower:
            x = self._through(layer, x, visible, None, keys)
        if positions is not None and config.confine_attention:
            visible = layers.gather_positions(visible[:, 0], positions)[:, None]
        return self._through(last, x, visible, positions, keys)

    def _through(self, layer, x, visible, positions, keys):
        call = functools.partial(layer, visible=visible, positions=positions, keys=keys)
        return keras.remat(call)(x) if self.config.rematerialize else call(x)
