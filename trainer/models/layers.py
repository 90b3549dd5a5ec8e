"""The smallest layers of an encoder, in `keras.ops` only.

Randomness comes in as keys, one an example (`trainer.randomness`): a layer called without keys does not drop anything.
"""

import keras
from keras import ops

from trainer import randomness


def truncated_normal(stddev, seed, name):
    """Returns BERT's initializer, its numbers a function of the run's seed and the variable's name alone.

    Args:
        stddev: standard deviation before truncation at two of them.
        seed: integer.
        name: path of the variable, so that two of the same shape differ.
    """
    return keras.initializers.TruncatedNormal(stddev=stddev, seed=_seed_of(seed, name))


def _seed_of(seed, name):
    """Mixes the run's seed with a variable's path."""
    return (seed * 0x9E3779B1 + randomness.number_of(name)) & 0x7FFFFFFF


def dense(config, units, seed, purpose, name, policy, **options):
    """Returns a projection with BERT's initializer.

    Args:
        config: `EncoderConfig`: standard deviation, and whether there is a bias.
        units: size of what comes out.
        seed: integer for the initializer.
        purpose: path of the layer that holds it.
        name: its name there.
        policy: Keras dtype policy.
        options: further arguments of `keras.layers.Dense`.
    """
    initializer = truncated_normal(config.initializer_range, seed, f"{purpose}/{name}")
    options = {"use_bias": config.use_bias} | options
    return keras.layers.Dense(units, kernel_initializer=initializer, dtype=policy, name=name, **options)


def activation(name):
    """Returns an activation by name: `gelu` (exact), `gelu_tanh` (the approximation), or any of Keras."""
    if name == "gelu":
        return lambda x: ops.gelu(x, approximate=False)
    if name == "gelu_tanh":
        return lambda x: ops.gelu(x, approximate=True)
    return keras.activations.get(name)


@keras.saving.register_keras_serializable("bert_trainer")
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
        keep = randomness.keep_mask(keys, tuple(ops.shape(x)[1:]), self.rate)
        return ops.where(keep, x * (1 / (1 - self.rate)), ops.zeros_like(x))

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "purpose": self.purpose}


@keras.saving.register_keras_serializable("bert_trainer")
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
        self.initializer = keras.initializers.get(initializer)

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

    def get_config(self):
        fields = {"input_dim": self.input_dim, "output_dim": self.output_dim}
        return super().get_config() | fields | {"initializer": keras.initializers.serialize(self.initializer)}


@keras.saving.register_keras_serializable("bert_trainer")
class Normalization(keras.layers.Layer):
    """A normalisation of each vector whose scale and bias may be left out, or depend on a condition.

    `layer` subtracts the mean and divides by the standard deviation (Ba et al. 2016, arXiv 1607.06450), `rms` divides by
    the root of the mean square (Zhang and Sennrich 2019, arXiv 1910.07467). With a condition, scale and bias are sums of
    a learned vector and a projection of the condition that starts at zero (Su 2020, kexue.fm/archives/7124). Statistics
    are computed in float32.

    Args:
        kind: `layer` or `rms`.
        epsilon: added to the variance or mean square.
        scale: whether there is a scale.
        bias: whether there is a bias; never with `rms`.
        condition_size: size of the condition; None for none.
        condition_hidden_size: units of a layer without bias between the condition and the projections; None for none.
        condition_initializer: of that layer's kernel.
    """

    is_normalization = True  # for the roles of parameters, see `trainer.optimizers.parameters`

    def __init__(
        self,
        kind="layer",
        epsilon=1e-12,
        scale=True,
        bias=True,
        condition_size=None,
        condition_hidden_size=None,
        condition_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kind not in ("layer", "rms"):
            raise ValueError(f"the kind of a normalisation is 'layer' or 'rms', not {kind!r}")
        self.kind, self.epsilon, self.scale, self.bias = kind, epsilon, scale, bias and kind == "layer"
        self.condition_size, self.condition_hidden_size = condition_size, condition_hidden_size
        self.condition_initializer = keras.initializers.get(condition_initializer)

    def build(self, input_shape):
        size = input_shape[-1]
        self.gamma = self.add_weight(name="gamma", shape=(size,), initializer="ones") if self.scale else None
        self.beta = self.add_weight(name="beta", shape=(size,), initializer="zeros") if self.bias else None
        self.condition_layer = self.gamma_projection = self.beta_projection = None
        if self.condition_size is not None:
            self._build_condition(size)
        self.built = True

    def _build_condition(self, size):
        def projection(units, inputs, name, initializer="zeros"):
            layer = keras.layers.Dense(
                units, use_bias=False, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
            )
            layer.build((None, inputs))
            return layer

        inputs = self.condition_size
        if self.condition_hidden_size is not None:
            self.condition_layer = projection(
                self.condition_hidden_size, inputs, "condition", self.condition_initializer
            )
            inputs = self.condition_hidden_size
        if self.scale:
            self.gamma_projection = projection(size, inputs, "gamma_projection")
        if self.bias:
            self.beta_projection = projection(size, inputs, "beta_projection")

    def call(self, x, condition=None):
        """Normalises.

        Args:
            x: `[batch, tokens, size]`.
            condition: `[batch, 1 or tokens, condition_size]`, needed with a `condition_size`.
        """
        if self.condition_size is not None and condition is None:
            raise ValueError("a conditional normalisation needs its condition")
        y = ops.cast(x, "float32")
        if self.kind == "layer":
            y = y - ops.mean(y, axis=-1, keepdims=True)
        y = y * ops.rsqrt(ops.mean(ops.square(y), axis=-1, keepdims=True) + self.epsilon)
        if self.condition_layer is not None:
            condition = self.condition_layer(condition)
        for vector, projection, combine in (
            (self.gamma, self.gamma_projection, ops.multiply),
            (self.beta, self.beta_projection, ops.add),
        ):
            if vector is not None:
                vector = ops.cast(ops.convert_to_tensor(vector), "float32")
                if projection is not None:
                    vector = vector + ops.cast(projection(condition), "float32")
                y = combine(y, vector)
        return ops.cast(y, self.compute_dtype)

    def get_config(self):
        names = ("kind", "epsilon", "scale", "bias", "condition_size", "condition_hidden_size")
        fields = {name: getattr(self, name) for name in names}
        fields["condition_initializer"] = keras.initializers.serialize(self.condition_initializer)
        return super().get_config() | fields


def normalization(config, seed, purpose, name, policy):
    """Returns the normalisation that an architecture has; Keras's own where that will do.

    Args:
        config: `EncoderConfig`.
        seed: integer for the initializer of what lies between condition and scales.
        purpose: path of the layer that holds it.
        name: its name there.
        policy: Keras dtype policy.
    """
    if config.normalization == "layer" and config.condition_size is None:
        return keras.layers.LayerNormalization(
            epsilon=config.epsilon, center=config.norm_bias, scale=config.norm_scale, dtype=policy, name=name
        )
    return Normalization(
        config.normalization,
        config.epsilon,
        config.norm_scale,
        config.norm_bias,
        config.condition_size,
        config.condition_hidden_size,
        keras.initializers.GlorotUniform(seed=_seed_of(seed, f"{purpose}/{name}/condition")),
        dtype=policy,
        name=name,
    )


def normalize(layer, x, condition):
    """Applies what `normalization` returned: with the condition if it takes one."""
    return layer(x, condition) if getattr(layer, "condition_size", None) is not None else layer(x)


def gather_positions(hidden, positions):
    """Returns the vectors at some positions of each example.

    Args:
        hidden: `[batch, length, width]` of any dtype.
        positions: `[batch, positions]` integers.

    Returns:
        `[batch, positions, width]`.
    """
    length, width = ops.shape(hidden)[1:]
    first = ops.cast(ops.arange(ops.shape(hidden)[0]) * length, positions.dtype)
    return ops.take(ops.reshape(hidden, (-1, width)), first[:, None] + positions, axis=0)
