"""Self-attention: who sees whom, how places enter, and the products themselves; in `keras.ops` only."""

import dataclasses

import keras
import numpy as np
from keras import ops

from trainer.models.architecture import EncoderConfig
from trainer.models.layers import Dropout, dense

# The attention logit (always float32) of what may not be seen: exp() of it is zero, and a row in which nothing may be
# seen, padding, gives a uniform, finite answer instead of NaN.
_MASKED = -1e9


def visible_tokens(document_ids, confine, attention="bidirectional", segment_ids=None, window=None):
    """Says which tokens may be attended to.

    Args:
        document_ids: `[batch, length]` integers, 0 where padded, another number for each document of a packed row.
        confine: whether a token sees only tokens of its own document.
        attention: `bidirectional`, `causal` or `unilm`, see `EncoderConfig`.
        segment_ids: `[batch, length]` integers, needed for `unilm` alone.
        window: how far a token sees to either side; None for any distance.

    Returns:
        `[batch, 1, length or 1, length]` booleans. (Not a number to add: Keras would cast that to the compute dtype of
        every layer it passes, in which it may overflow.)
    """
    visible = (document_ids != 0)[:, None, :]
    if confine:
        visible = ops.logical_and(visible, document_ids[:, :, None] == document_ids[:, None, :])
    if attention == "unilm":
        # A token sees what has no more segment borders before it than itself: all of segment 0, and earlier ones after.
        order = ops.cumsum(ops.cast(segment_ids, "int32"), axis=1)
        visible = ops.logical_and(visible, order[:, None, :] <= order[:, :, None])
    if attention == "causal" or window is not None:
        distance = _distances(document_ids)[None]
        if attention == "causal":
            visible = ops.logical_and(visible, distance <= 0)
        if window is not None:
            visible = ops.logical_and(visible, ops.abs(distance) <= window)
    return visible[:, None]


def length_of(x):
    """Returns the size of the second axis, an integer where it is known."""
    return x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]


def _distances(x):
    """Returns `[length, length]` int32, how far to the right the second token stands of the first."""
    places = ops.arange(length_of(x), dtype="int32")
    return places[None, :] - places[:, None]


def document_positions(document_ids):
    """Returns each token's position in its own document.

    Args:
        document_ids: `[batch, length]` integers; equal numbers stand together.

    Returns:
        `[batch, length]` int32, counting from 0 at each change of document.
    """
    earlier = (_distances(document_ids) < 0)[None]
    same = ops.logical_and(document_ids[:, :, None] == document_ids[:, None, :], earlier)
    return ops.sum(ops.cast(same, "int32"), axis=2)


def rotary_angles(length, head_size, base):
    """Returns the angles by which pairs of numbers turn at each place.

    Args:
        length: number of places.
        head_size: even size of an attention head.
        base: of the wavelengths; pair i turns by `place * base ** (-2 i / head_size)`.

    Returns:
        `[length, head_size / 2]` float64 NumPy array.
    """
    return np.arange(length, dtype=np.float64)[:, None] * _rotary_frequencies(head_size, base)


def _rotary_frequencies(head_size, base):
    return base ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)


def _rotary_tables(length, head_size, base):
    """Returns cosine and sine of `rotary_angles`, float32 tensors; `length` may be a scalar tensor."""
    if isinstance(length, int):
        angles = rotary_angles(length, head_size, base)
        return tuple(ops.convert_to_tensor(function(angles).astype(np.float32)) for function in (np.cos, np.sin))
    places = ops.arange(length, dtype="float32")
    angles = places[:, None] * _rotary_frequencies(head_size, base).astype(np.float32)
    return ops.cos(angles), ops.sin(angles)


def turn(x, cosine, sine):
    """Turns pairs of numbers; number i of the first half of a head and number i of the second are a pair.

    Args:
        x: `[batch, tokens, heads, head_size]`.
        cosine, sine: `[tokens or batch, tokens, head_size / 2]` of `rotary_angles`, broadcast over heads.

    Returns:
        as `x`.
    """
    first, second = ops.split(x, 2, axis=-1)
    cosine, sine = (ops.expand_dims(ops.cast(table, x.dtype), -2) for table in (cosine, sine))
    return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def sinusoidal_vectors(count, size):
    """Returns `[count, size]` float32: sine at even places, cosine at odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = rotary_angles(count, size + size % 2, 10000.0)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(count, -1)
    return table[:, :size].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Places:
    """What attention knows of the places of tokens; fields are None where the architecture does not use them.

    Attributes:
        cosine, sine: `[length, head_size / 2]` float32 of rotary positions; `[batch, queries, head_size / 2]` for
            queries that were gathered.
        relative: `[length, length, head_size]` float32, the vector of the distance from the first token to the second.
    """

    cosine: object = None
    sine: object = None
    relative: object = None

    @classmethod
    def of(cls, config, length, layer):
        """Returns the places of a row.

        Args:
            config: `EncoderConfig`.
            length: tokens in the row, an integer or scalar tensor.
            layer: number of the layer; local ones may have another rotary base.
        """
        if config.positions == "rotary":
            return cls(*_rotary_tables(length, config.head_size, config.rotary_base_of(layer)))
        if config.positions == "relative":
            most = config.max_relative_distance
            table = ops.convert_to_tensor(sinusoidal_vectors(2 * most + 1, config.head_size))
            places = ops.arange(length, dtype="int32")
            distances = ops.clip(places[None, :] - places[:, None], -most, most) + most
            return cls(relative=ops.take(table, distances, axis=0))
        return cls()

    def at(self, positions):
        """Returns the places of some tokens of each example as queries, for `positions` `[batch, queries]`."""

        def rows(table):
            return None if table is None else ops.take(table, positions, axis=0)

        return Places(rows(self.cosine), rows(self.sine), rows(self.relative))


@keras.saving.register_keras_serializable("bert_trainer")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention; where all tokens attend, queries, keys and values come from one matrix product.

    Args:
        config: `EncoderConfig`.
        layer: number of the layer.
        seed: integer for the initializers.
    """

    def __init__(self, config, layer=0, seed=0, name="attention", **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        self.layer, self.seed = layer, seed
        policy, purpose = self.dtype_policy, f"layer_{layer}/attention"
        self.query_key_value = dense(config, 3 * config.hidden_size, seed, purpose, "query_key_value", policy)
        self.output_projection = dense(config, config.hidden_size, seed, purpose, "output", policy)
        self.dropout = Dropout(config.attention_dropout, f"{purpose}/probabilities", dtype=policy, name="dropout")

    def build(self, input_shape):
        self.query_key_value.build(input_shape)
        self.output_projection.build(input_shape)
        self.built = True

    def _heads(self, projected, number):
        """Divides `[batch, tokens, number * hidden]` into `number` tensors `[batch, tokens, heads, head_size]`."""
        tokens = ops.shape(projected)[1]
        divided = ops.reshape(projected, (-1, tokens, number, self.config.num_heads, self.config.head_size))
        return [divided[:, :, i] for i in range(number)]

    def _project_some(self, queries, x):
        """Projects queries of some tokens, keys and values of all."""
        kernel = ops.cast(ops.convert_to_tensor(self.query_key_value.kernel), x.dtype)
        size = self.config.hidden_size
        query, key_value = ops.matmul(queries, kernel[:, :size]), ops.matmul(x, kernel[:, size:])
        if self.config.use_bias:
            bias = ops.cast(ops.convert_to_tensor(self.query_key_value.bias), x.dtype)
            query, key_value = query + bias[:size], key_value + bias[size:]
        (query,) = self._heads(query, 1)
        return query, *self._heads(key_value, 2)

    def call(self, x, visible, places=None, queries=None, positions=None, attention_bias=None, keys=None):
        """Attends.

        Args:
            x: `[batch, length, hidden]`.
            visible: `[batch, 1, queries or 1, length]` booleans, see `visible_tokens`.
            places: `Places` of the row; None where the architecture has none in attention.
            queries: `[batch, queries, hidden]`, the tokens that attend; None for all of `x`.
            positions: `[batch, queries]` integers: where `queries` stand in `x`.
            attention_bias: `[batch, heads or 1, queries or 1, length]` float32 to be added to the logits, or None.
            keys: `Keys` of the examples, or None for no dropout.

        Returns:
            `[batch, queries, hidden]`.
        """
        config, places = self.config, places or Places()
        if queries is None:
            query, key, value = self._heads(self.query_key_value(x), 3)
            query_places = places
        else:
            query, key, value = self._project_some(queries, x)
            query_places = places.at(positions)
        num_queries = ops.shape(query)[1]
        if places.cosine is not None:
            query, key = turn(query, query_places.cosine, query_places.sine), turn(key, places.cosine, places.sine)
        query = ops.transpose(query * config.head_size**-0.5, (0, 2, 1, 3))
        key = ops.transpose(key, (0, 2, 3, 1))
        value = ops.transpose(value, (0, 2, 1, 3))
        logits = ops.matmul(query, key)
        if places.relative is not None:
            relative = ops.cast(query_places.relative, x.dtype)
            of_rows = "bhqd,bqkd->bhqk" if queries is not None else "bhqd,qkd->bhqk"
            logits = logits + ops.einsum(of_rows, query, relative)
        logits = ops.cast(logits, "float32")
        if attention_bias is not None:
            logits = ops.maximum(logits + attention_bias, _MASKED)  # a bias may be minus infinity
        logits = ops.where(visible, logits, _MASKED)
        probabilities = ops.cast(ops.softmax(logits, axis=-1), x.dtype)
        probabilities = self.dropout(probabilities, keys=keys)
        mixed = ops.matmul(probabilities, value)
        if places.relative is not None:
            of_rows = "bhqk,bqkd->bhqd" if queries is not None else "bhqk,qkd->bhqd"
            mixed = mixed + ops.einsum(of_rows, probabilities, relative)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return self.output_projection(ops.reshape(mixed, (-1, num_queries, config.hidden_size)))

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "layer": self.layer, "seed": self.seed}
        return super().get_config() | fields
