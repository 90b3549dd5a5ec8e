"""Pooling of rows of different length: padding has no part in the mean, the maximum or the softmax.

Bojone's post on layers in layers and masks (kexue.fm/archives/6810) has the recipes; he adds -1e10 to what is masked, here
it is left out exactly.
"""

import keras
from keras import ops


def _column(x, mask):
    """Returns the mask `[batch, length]` as `[batch, length, 1]` booleans, true everywhere if there is none."""
    if mask is None:
        return ops.ones_like(x[..., :1], dtype="bool")
    return ops.cast(mask, "bool")[..., None]


def masked_mean(x, mask=None):
    """Returns the mean over tokens, `[batch, size]`, in float32 inside; zeros where a row has no token.

    Args:
        x: `[batch, length, size]`.
        mask: `[batch, length]` booleans, true for tokens; None for all.
    """
    there = _column(x, mask)
    total = ops.sum(ops.where(there, ops.cast(x, "float32"), 0.0), axis=1)
    count = ops.sum(ops.cast(there, "float32"), axis=1)
    return ops.cast(total / ops.maximum(count, 1.0), x.dtype)


def masked_max(x, mask=None):
    """Returns the maximum over tokens, `[batch, size]`; zeros where a row has no token. Arguments as `masked_mean`."""
    there = _column(x, mask)
    lowest = ops.full_like(x, -3e38 if keras.backend.standardize_dtype(x.dtype) != "float16" else -6e4)
    return ops.where(ops.any(there, axis=1), ops.max(ops.where(there, x, lowest), axis=1), ops.zeros_like(x[:, 0]))


def masked_softmax(x, mask=None):
    """Returns the softmax over tokens, float32; 0 for padding. Arguments as `masked_mean`."""
    there = _column(x, mask)
    logits = ops.where(there, ops.cast(x, "float32"), -1e9)
    exponentials = ops.where(there, ops.exp(logits - ops.max(logits, axis=1, keepdims=True)), 0.0)
    return exponentials / ops.maximum(ops.sum(exponentials, axis=1, keepdims=True), 1e-30)


class _Pooling(keras.layers.Layer):
    """A layer that takes the Keras mask of its input and gives one vector a row."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        """Returns None: a pooled vector is never padding."""
        return


@keras.saving.register_keras_serializable("bert_trainer")
class MaskedMeanPooling(_Pooling):
    """The mean over tokens; see `masked_mean`."""

    def call(self, x, mask=None):
        """Returns `[batch, size]` for `[batch, length, size]` and the mask that Keras carries along."""
        return masked_mean(x, mask)


@keras.saving.register_keras_serializable("bert_trainer")
class MaskedMaxPooling(_Pooling):
    """The maximum over tokens; see `masked_max`."""

    def call(self, x, mask=None):
        """Returns `[batch, size]` for `[batch, length, size]` and the mask that Keras carries along."""
        return masked_max(x, mask)


@keras.saving.register_keras_serializable("bert_trainer")
class AttentionPooling(_Pooling):
    """A weighted mean over tokens whose weights are the softmax of scores that a small network gives.

    As the layer in bojone's post: score = v tanh(W x), both without bias.

    Args:
        hidden_units: units of the small network; None for the size of the vectors.
        initializer: of its kernels.
    """

    def __init__(self, hidden_units=None, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.hidden_units = hidden_units
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        size = input_shape[-1]
        units = self.hidden_units or size

        def projection(count, name):
            return keras.layers.Dense(
                count, use_bias=False, kernel_initializer=self.initializer.clone(), dtype=self.dtype_policy, name=name
            )

        self.hidden, self.score = projection(units, "hidden"), projection(1, "score")
        self.hidden.build(input_shape)
        self.score.build((*input_shape[:-1], units))
        self.built = True

    def call(self, x, mask=None):
        """Returns `[batch, size]` for `[batch, length, size]` and the mask that Keras carries along."""
        weights = masked_softmax(self.score(ops.tanh(self.hidden(x))), mask)
        return ops.sum(ops.cast(weights, x.dtype) * x, axis=1)

    def get_config(self):
        fields = {"hidden_units": self.hidden_units, "initializer": keras.initializers.serialize(self.initializer)}
        return super().get_config() | fields
