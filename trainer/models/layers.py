"""The layers of a BERT encoder, in `keras.ops` only.

Randomness comes in as keys, one an example (`trainer.randomness`): a layer called without keys does not drop anything.
"""

import keras
import numpy as np
from keras import ops

from trainer import randomness

# The attention logit (always float32) of what may not be seen: exp() of it is zero, and a row in which nothing may be
# seen, padding, gives a uniform, finite answer instead of NaN.
_MASKED = -1e9


def truncated_normal(stddev, seed, name):
    """Returns BERT's initializer, its numbers a function of the run's seed and the variable's name alone.

    Args:
        stddev: standard deviation before truncation at two of them.
        seed: integer.
        name: path of the variable, so that two of the same shape differ.
    """
    mixed = (seed * 0x9E3779B1 + randomness.number_of(name)) & 0x7FFFFFFF
    return keras.initializers.TruncatedNormal(stddev=stddev, seed=mixed)


def activation(name):
    """Returns an activation by name: `gelu` (exact), `gelu_tanh` (the approximation), or any of Keras."""
    if name == "gelu":
        return lambda x: ops.gelu(x, approximate=False)
    if name == "gelu_tanh":
        return lambda x: ops.gelu(x, approximate=True)
    return keras.activations.get(name)


class Dropout(keras.layers.Layer):
    """Dropout whose mask is a function of each example's key and this layer's purpose.

    `keras.layers.Dropout` draws from a stateful generator: its mask differs between topologies, repeats on every
    replica, and changes when a layer is recomputed in the backward pass.

    Args:
        rate: probability of dropping an element, in [0, 1).
        purpose: name of the place in the model, which tells this layer's masks from those of any other.
    """

    def __init__(self, rate, purpose, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate must lie in [0, 1), got {rate}")
        self.rate = rate
        self.purpose = purpose
        self.built = True

    def call(self, x, keys=None):
        """Returns `x` with elements dropped and the rest scaled by 1 / (1 - rate); `x` itself without keys."""
        if keys is None or self.rate == 0:
            return x
        keys = randomness.fold_in(keys, self.purpose)
        keep = randomness.keep_mask(keys, tuple(x.shape[1:]), self.rate)
        return ops.where(keep, x * (1 / (1 - self.rate)), ops.zeros_like(x))

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "purpose": self.purpose}


class TokenEmbedding(keras.layers.Layer):
    """A table of vectors that is looked up by id on the way in and multiplied with on the way out.

    Args:
        input_dim: number of rows.
        output_dim: size of a vector.
        initializer: of the table.
    """

    def __init__(self, input_dim, output_dim, initializer, **kwargs):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.initializer = initializer

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.input_dim, self.output_dim), initializer=self.initializer
        )
        self.built = True

    def call(self, ids):
        """Returns `[..., output_dim]` in the compute dtype for integer ids `[...]`."""
        return ops.cast(ops.take(self.embeddings, ids, axis=0), self.compute_dtype)

    def logits(self, x):
        """Returns the product of `x` `[..., output_dim]` with every row of the table: `[..., input_dim]`."""
        table = ops.cast(ops.convert_to_tensor(self.embeddings), self.compute_dtype)
        return ops.matmul(x, ops.transpose(table))


def visible_tokens(document_ids, confine):
    """Says which tokens may be attended to: not padding, and with `confine` not those of other documents.

    Args:
        document_ids: `[batch, length]` integers, 0 where padded, another number for each document of a packed row.
        confine: whether a token sees only tokens of its own document.

    Returns:
        `[batch, 1, length or 1, length]` booleans. (Not a number to add: Keras would cast that to the compute dtype of
        every layer it passes, in which it may overflow.)
    """
    visible = (document_ids != 0)[:, None, :]
    if confine:
        visible = ops.logical_and(visible, document_ids[:, :, None] == document_ids[:, None, :])
    return visible[:, None]


def document_positions(document_ids):
    """Returns each token's position in its own document.

    Args:
        document_ids: `[batch, length]` integers; equal numbers stand together.

    Returns:
        `[batch, length]` int32, counting from 0 at each change of document.
    """
    length = document_ids.shape[1]
    earlier = np.tril(np.ones((length, length), bool), -1)
    same = ops.logical_and(document_ids[:, :, None] == document_ids[:, None, :], earlier[None])
    return ops.sum(ops.cast(same, "int32"), axis=2)


def gather_positions(hidden, positions):
    """Returns the vectors at some positions of each example.

    Args:
        hidden: `[batch, length, width]` of any dtype.
        positions: `[batch, positions]` integers.

    Returns:
        `[batch, positions, width]`.
    """
    length, width = hidden.shape[1:]
    first = ops.cast(ops.arange(ops.shape(hidden)[0]) * length, positions.dtype)
    return ops.take(ops.reshape(hidden, (-1, width)), first[:, None] + positions, axis=0)


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention; where all tokens attend, queries, keys and values come from one matrix product.

    Args:
        hidden_size: size of the hidden states.
        num_heads: number of heads; divides `hidden_size`.
        dropout: rate on the attention probabilities.
        stddev: of the initial kernels.
        seed: integer for the initializers.
        purpose: path of this layer in the model.
    """

    def __init__(self, hidden_size, num_heads, dropout, stddev, seed, purpose, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_size = hidden_size // num_heads
        self.query_key_value = keras.layers.Dense(
            3 * hidden_size,
            kernel_initializer=truncated_normal(stddev, seed, f"{purpose}/query_key_value"),
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.output_projection = keras.layers.Dense(
            hidden_size,
            kernel_initializer=truncated_normal(stddev, seed, f"{purpose}/output"),
            dtype=self.dtype_policy,
            name="output",
        )
        self.dropout = Dropout(dropout, f"{purpose}/probabilities", dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        self.query_key_value.build(input_shape)
        self.output_projection.build(input_shape)
        self.built = True

    def _heads(self, projected, number):
        """Divides `[batch, tokens, number * hidden]` into `number` tensors `[batch, tokens, heads, head_size]`."""
        tokens = ops.shape(projected)[1]
        divided = ops.reshape(projected, (-1, tokens, number, self.num_heads, self.head_size))
        return [divided[:, :, i] for i in range(number)]

    def _project_some(self, queries, x):
        """Projects queries of some tokens, keys and values of all."""
        kernel = ops.cast(ops.convert_to_tensor(self.query_key_value.kernel), x.dtype)
        bias = ops.cast(ops.convert_to_tensor(self.query_key_value.bias), x.dtype)
        size = self.hidden_size
        (query,) = self._heads(ops.matmul(queries, kernel[:, :size]) + bias[:size], 1)
        return query, *self._heads(ops.matmul(x, kernel[:, size:]) + bias[size:], 2)

    def call(self, x, visible, queries=None, keys=None):
        """Attends.

        Args:
            x: `[batch, length, hidden]`.
            visible: `[batch, 1, queries or 1, length]` booleans, see `visible_tokens`.
            queries: `[batch, queries, hidden]`, those of `x` that attend; None for all.
            keys: `Keys` of the examples, or None for no dropout.

        Returns:
            `[batch, queries, hidden]`.
        """
        if queries is None:
            query, key, value = self._heads(self.query_key_value(x), 3)
        else:
            query, key, value = self._project_some(queries, x)
        num_queries = ops.shape(query)[1]
        query = ops.transpose(query * self.head_size**-0.5, (0, 2, 1, 3))
        key = ops.transpose(key, (0, 2, 3, 1))
        value = ops.transpose(value, (0, 2, 1, 3))
        logits = ops.where(visible, ops.cast(ops.matmul(query, key), "float32"), _MASKED)
        probabilities = ops.cast(ops.softmax(logits, axis=-1), x.dtype)
        probabilities = self.dropout(probabilities, keys=keys)
        mixed = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))
        return self.output_projection(ops.reshape(mixed, (-1, num_queries, self.hidden_size)))


class TransformerLayer(keras.layers.Layer):
    """One layer of BERT: self-attention and feed-forward, each followed by dropout, residual sum and normalisation.

    Args:
        hidden_size: size of the hidden states.
        num_heads: number of attention heads.
        intermediate_size: width of the feed-forward part.
        activation_name: see `activation`.
        dropout: rate on both outputs.
        attention_dropout: rate on the attention probabilities.
        epsilon: of the normalisations.
        stddev: of the initial kernels.
        seed: integer for the initializers.
        purpose: path of this layer in the model.
    """

    def __init__(
        self,
        hidden_size,
        num_heads,
        intermediate_size,
        activation_name,
        dropout,
        attention_dropout,
        epsilon,
        stddev,
        seed,
        purpose,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.intermediate_size = intermediate_size
        policy = self.dtype_policy

        def dense(units, name):
            initializer = truncated_normal(stddev, seed, f"{purpose}/{name}")
            return keras.layers.Dense(units, kernel_initializer=initializer, dtype=policy, name=name)

        self.attention = SelfAttention(
            hidden_size,
            num_heads,
            attention_dropout,
            stddev,
            seed,
            f"{purpose}/attention",
            dtype=policy,
            name="attention",
        )
        self.attention_dropout = Dropout(dropout, f"{purpose}/attention_output", dtype=policy, name="attention_dropout")
        self.attention_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="attention_norm")
        self.intermediate = dense(intermediate_size, "intermediate")
        self.activation = activation(activation_name)
        self.output_projection = dense(hidden_size, "output")
        self.output_dropout = Dropout(dropout, f"{purpose}/output", dtype=policy, name="output_dropout")
        self.output_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="output_norm")

    def build(self, input_shape):
        self.attention.build(input_shape)
        self.attention_norm.build(input_shape)
        self.intermediate.build(input_shape)
        self.output_projection.build((*input_shape[:-1], self.intermediate_size))
        self.output_norm.build(input_shape)
        self.built = True

    def call(self, x, visible, positions=None, keys=None):
        """Transforms `x` `[batch, length, hidden]`.

        Args:
            x: `[batch, length, hidden]`.
            visible, keys: as in `SelfAttention`.
            positions: `[batch, positions]` integers, the tokens to transform; None for all.

        Returns:
            `[batch, length, hidden]`, or `[batch, positions, hidden]`.
        """
        queries = None if positions is None else gather_positions(x, positions)
        attended = self.attention_dropout(self.attention(x, visible, queries=queries, keys=keys), keys=keys)
        x = self.attention_norm((x if queries is None else queries) + attended)
        transformed = self.output_projection(self.activation(self.intermediate(x)))
        return self.output_norm(x + self.output_dropout(transformed, keys=keys))
