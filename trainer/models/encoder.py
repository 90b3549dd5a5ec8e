"""The encoder: token ids in, hidden states out."""

import dataclasses

import keras
import numpy as np
from keras import ops

from trainer import randomness
from trainer.models import layers
from trainer.models.architecture import EncoderConfig
from trainer.models.attention import Places, document_positions, length_of, visible_tokens
from trainer.models.transformer import TransformerLayer


def padded_vocabulary_size(vocabulary_size):
    """Returns the number of rows the embedding table really has: the next multiple of 128, which matrix units like."""
    return (vocabulary_size + 127) // 128 * 128


@keras.saving.register_keras_serializable("bert_trainer")
class Embeddings(keras.layers.Layer):
    """Sums the vectors of tokens, positions and segment types, and normalises.

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids; the table is padded inside, see `padded_vocabulary_size`.
        seed: integer for the initial weights.
    """

    def __init__(self, config, vocabulary_size, seed=0, name="embeddings", **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        self.vocabulary_size, self.seed = vocabulary_size, seed
        self.is_shared = False  # set by heads and other encoders that use the table, too
        policy = self.dtype_policy

        def table(rows, name):
            initializer = layers.truncated_normal(config.initializer_range, seed, name)
            return layers.TokenEmbedding(rows, config.token_size, initializer, dtype=policy, name=name)

        self.word_embeddings = table(padded_vocabulary_size(vocabulary_size), "word_embeddings")
        learned = config.positions == "learned"
        self.position_embeddings = table(config.max_length, "position_embeddings") if learned else None
        types = config.type_vocabulary_size
        self.type_embeddings = table(types, "type_embeddings") if types else None
        self.norm = layers.normalization(config, seed, "embeddings", "norm", policy)
        self.dropout = layers.Dropout(config.dropout, "embeddings", dtype=policy, name="dropout")

    def build(self, input_shape=None):
        for part in (self.word_embeddings, self.position_embeddings, self.type_embeddings):
            if part is not None:
                part.build()
        self.norm.build((None, None, self.config.token_size))
        self.built = True

    def _position_vectors(self, document_ids):
        """Returns the vectors of positions, `[1 or batch, length, token_size]`."""
        config, length = self.config, length_of(document_ids)
        places = document_positions(document_ids) if config.confine_attention else ops.arange(length)[None]
        alpha = config.hierarchical_alpha
        if alpha is None:
            return self.position_embeddings(places)
        table, rows = ops.convert_to_tensor(self.position_embeddings.embeddings), config.max_length
        outer = (table - alpha * table[:1]) / (1 - alpha)
        wanted = ops.arange(length)
        coarse, fine = ops.take(outer, wanted // rows, axis=0), ops.take(outer, wanted % rows, axis=0)
        # At the first places this is the learned vector, but for rounding.
        learned = ops.take(table, wanted % rows, axis=0)
        combined = ops.where((wanted < rows)[:, None], learned, alpha * coarse + (1 - alpha) * fine)
        return ops.cast(ops.take(combined, places, axis=0), self.compute_dtype)

    def call(self, token_ids, segment_ids, document_ids, condition=None, embedding_offset=None, keys=None):
        """Embeds; arguments as in `Encoder`. Returns `[batch, length, token_size]` in the compute dtype."""
        x = self.word_embeddings(token_ids)
        if embedding_offset is not None:
            x = x + ops.cast(embedding_offset, x.dtype)
        if self.position_embeddings is not None:
            x = x + self._position_vectors(document_ids)
            length = length_of(token_ids)
            if not isinstance(length, int):
                # Some devices look up what is beyond a table without an error: nobody shall take that for an answer.
                x = ops.where(length > self.config.longest_row, np.nan, x)
        if self.type_embeddings is not None:
            one = self.config.type_vocabulary_size == 1  # RoBERTa: all tokens are of it, whatever rows say
            x = x + self.type_embeddings(ops.zeros_like(segment_ids) if one else segment_ids)
        return self.dropout(layers.normalize(self.norm, x, condition), keys=keys)

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "seed": self.seed}
        return super().get_config() | fields | {"vocabulary_size": self.vocabulary_size}

    def config_when_shared(self):
        """Returns what others say of this layer in a saved model; Keras then makes one object of all who say the same."""
        return keras.saving.serialize_keras_object(self) | {"shared_object_id": id(self)}


@keras.saving.register_keras_serializable("bert_trainer")
class Encoder(keras.layers.Layer):
    """An encoder of the BERT family (Devlin et al. 2018, arXiv 1810.04805), see `EncoderConfig` for what it can be.

    In a Keras model of your own, `Encoder(config, vocabulary_size)(token_ids)` is enough: what is padding is told by
    `padding_id` (but for the first token), the result carries it on as a Keras mask, and `fit` drops out.

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids; the table is padded inside, see `padded_vocabulary_size`.
        seed: integer for the initial weights.
        dtype: Keras dtype policy: `float32`, `mixed_bfloat16` or `mixed_float16`.
        embeddings: the `Embeddings` of another encoder to share (ELECTRA's generator); None for its own.
    """

    def __init__(self, config, vocabulary_size, seed=0, dtype="float32", name="encoder", embeddings=None, **kwargs):
        super().__init__(dtype=dtype, name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        self.vocabulary_size, self.seed = vocabulary_size, seed
        policy = self.dtype_policy
        if embeddings is not None:
            embeddings.is_shared = True
        self.embeddings = embeddings or Embeddings(config, vocabulary_size, seed, dtype=policy)
        token_size = self.embeddings.config.token_size
        self.embedding_projection = None
        if token_size != config.hidden_size:
            self.embedding_projection = layers.dense(
                config, config.hidden_size, seed, "encoder", "embedding_projection", policy
            )
        count = 1 if config.share_layers else config.num_layers
        self.transformer_layers = [
            TransformerLayer(config, i, seed, dtype=policy, name=f"layer_{i}") for i in range(count)
        ]
        before = config.norm_placement == "before"
        self.final_norm = layers.normalization(config, seed, "encoder", "final_norm", policy) if before else None
        # Only `fit` of Keras uses it: the trainer gives keys, which are functions of the step.
        self.dropout_seed = keras.random.SeedGenerator(seed)
        # For learning rates that depend on it, see `trainer.optimizers.parameters`.
        for part in (self.embeddings, self.embedding_projection):
            if part is not None:
                part.depth = 0
        for i, layer in enumerate(self.transformer_layers):
            layer.depth = 1 + i
        if self.final_norm is not None:
            self.final_norm.depth = count

    def build(self, input_shape=None):
        hidden = (None, None, self.config.hidden_size)
        if not self.embeddings.built:
            self.embeddings.build()
        if self.embedding_projection is not None:
            self.embedding_projection.build((None, None, self.embeddings.config.token_size))
        for layer in self.transformer_layers:
            layer.build(hidden)
        if self.final_norm is not None:
            self.final_norm.build(hidden)
        self.built = True

    def compute_mask(self, token_ids, previous_mask=None):
        """Returns `[batch, length]` booleans: true for what is not padding; the first token never is."""
        first = ops.ones_like(token_ids[:, :1], dtype="bool")
        return ops.concatenate([first, ops.not_equal(token_ids[:, 1:], self.config.padding_id)], axis=1)

    def call(
        self,
        token_ids,
        segment_ids=None,
        document_ids=None,
        positions=None,
        condition=None,
        attention_bias=None,
        embedding_offset=None,
        keys=None,
        training=None,
    ):
        """Encodes rows.

        Of the last layer only what is asked for is computed: keys and values of all tokens, everything else of those at
        `positions`.

        Args:
            token_ids: `[batch, length]` integers.
            segment_ids: `[batch, length]` integers below `type_vocabulary_size`; None for zeros.
            document_ids: `[batch, length]` integers: 0 for padding, another number for each document of the row; None
                for one document of all that is not padding.
            positions: `[batch, positions]` integers: the tokens whose hidden states are wanted; None for all.
            condition: `[batch, condition_size]`, or one for each token `[batch, length, condition_size]`, for conditional
                normalisation.
            attention_bias: `[batch, length, length]`, or `[batch, heads or 1, length, length]`: booleans, true where the
                first token sees the second, or numbers to be added to the logits. What is invisible otherwise stays so.
            embedding_offset: `[batch, length, token_size]`, added to the vectors of the tokens.
            keys: `Keys` of the examples for dropout. Without them nothing is dropped, unless `training`.
            training: whether, without keys, dropout draws from a generator, as Keras does in `fit`.

        Returns:
            `[batch, length, hidden]` in the compute dtype, or `[batch, positions, hidden]` with `positions`. NaN where a row
            goes beyond learned positions and its length was not known when the program was compiled.

        Raises:
            ValueError: if rows are longer than `longest_row` of an architecture with learned positions.
        """
        config = self.config
        length = length_of(token_ids)
        if isinstance(length, int) and config.positions == "learned" and length > config.longest_row:
            raise ValueError(
                f"rows have {length} tokens but encoder.max_length is {config.max_length}: raise it, or prepare shorter rows"
            )
        if segment_ids is None:
            segment_ids = ops.zeros_like(token_ids)
        if document_ids is None:
            document_ids = ops.cast(self.compute_mask(token_ids), "int32")
        if keys is None and training:
            keys = self._drawn_keys(token_ids)
        if condition is not None and len(condition.shape) == 2:
            condition = condition[:, None]
        x = self.embeddings(
            token_ids, segment_ids, document_ids, condition=condition, embedding_offset=embedding_offset, keys=keys
        )
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        attention = _AttentionInputs(config, segment_ids, document_ids, attention_bias)
        for number in range(config.num_layers):
            at = positions if number == config.num_layers - 1 else None
            x = self._through(number, x, attention, at, condition, keys)
        if self.final_norm is not None:
            if positions is not None and condition is not None and condition.shape[1] != 1:
                condition = layers.gather_positions(condition, positions)
            x = layers.normalize(self.final_norm, x, condition)
        return x if positions is None else _all_tokens(x, positions)

    def _through(self, number, x, attention, positions, condition, keys):
        """Passes `x` through the layer with a number."""
        layer = self.transformer_layers[0 if self.config.share_layers else number]
        if self.config.share_layers and keys is not None and number:
            keys = randomness.fold_in(keys, number)  # one layer, but other masks at every depth
        visible, places, bias = attention.of_layer(number, positions)
        # Gradients of a recomputed function reach its arguments alone, not what it finds around it.
        learned = {"attention_bias": bias, "condition": condition}
        learned = {name: value for name, value in learned.items() if value is not None}

        def call(x, *values):
            given = dict(zip(learned, values, strict=True))
            return layer(x, visible=visible, places=places, positions=positions, keys=keys, **given)

        return (keras.remat(call) if self.config.rematerialize else call)(x, *learned.values())

    def _drawn_keys(self, token_ids):
        """Returns `Keys` from the generator, other ones in every call."""
        drawn = keras.random.randint((2, ops.shape(token_ids)[0]), 0, 2**31 - 1, dtype="int32", seed=self.dropout_seed)
        drawn = ops.cast(drawn, "uint32")
        return randomness.Keys(drawn[0], drawn[1])

    def compute_output_spec(self, token_ids, *_, positions=None, **__):
        """Returns the shape of what `call` returns, as Keras asks for it."""
        rows = token_ids if positions is None else positions
        spec = keras.KerasTensor((*rows.shape, self.config.hidden_size), self.compute_dtype)
        return spec if positions is None else _all_tokens(spec, positions)

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "seed": self.seed}
        if self.embeddings.is_shared:
            fields["embeddings"] = self.embeddings.config_when_shared()
        return super().get_config() | fields | {"vocabulary_size": self.vocabulary_size}

    @classmethod
    def from_config(cls, config):
        """Returns the encoder that `get_config` described."""
        if config.get("embeddings") is not None:
            config = config | {"embeddings": keras.saving.deserialize_keras_object(config["embeddings"])}
        return cls(**config)


def _all_tokens(x, positions):
    """Gives `x` a Keras mask of its own: the one that Keras would take is that of the whole row."""
    x._keras_mask = ops.ones_like(positions, dtype="bool")
    return x


class _AttentionInputs:
    """What the layers' attention goes by; each kind of layer, local and global, has its own, made once."""

    def __init__(self, config, segment_ids, document_ids, attention_bias):
        self.config, self.segment_ids, self.document_ids = config, segment_ids, document_ids
        self._made = {}
        self.allowed = self.bias = None
        if attention_bias is not None:
            if len(attention_bias.shape) == 3:
                attention_bias = attention_bias[:, None]
            if keras.backend.standardize_dtype(attention_bias.dtype) == "bool":
                self.allowed = attention_bias
            else:
                self.bias = ops.cast(attention_bias, "float32")

    def of_layer(self, number, positions):
        """Returns `visible`, `places` and `attention_bias` of `SelfAttention` for the layer with a number."""
        local = self.config.is_local(number)
        if local not in self._made:
            self._made[local] = self._make(number, local)
        visible, places = self._made[local]
        if positions is None:
            return visible, places, self.bias
        return _rows_at(visible, positions), places, _rows_at(self.bias, positions)

    def _make(self, number, local):
        config = self.config
        window = config.attention_window if local else None
        visible = visible_tokens(
            self.document_ids, config.confine_attention, config.attention, self.segment_ids, window
        )
        if self.allowed is not None:
            visible = ops.logical_and(visible, self.allowed)
        return visible, Places.of(config, length_of(self.document_ids), number)


def _rows_at(table, positions):
    """Returns `[batch, heads or 1, positions or 1, length]` of a table `[batch, heads or 1, length or 1, length]`."""
    if table is None or table.shape[2] == 1:
        return table
    if table.shape[1] == 1:
        return layers.gather_positions(table[:, 0], positions)[:, None]
    return ops.take_along_axis(table, positions[:, None, :, None], axis=2)
