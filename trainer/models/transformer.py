"""The transformer layer: self-attention and feed-forward, with dropout, residual sums and normalisations."""

import dataclasses

import keras
from keras import ops

from trainer.models.architecture import EncoderConfig
from trainer.models.attention import SelfAttention
from trainer.models.layers import Dropout, activation, dense, gather_positions, normalization, normalize


@keras.saving.register_keras_serializable("bert_trainer")
class TransformerLayer(keras.layers.Layer):
    """One layer of an encoder.

    With `norm_placement` `after`, as in BERT: x = norm(x + attention(x)), then x = norm(x + feed_forward(x)).
    With `before`: x = x + attention(norm(x)), then x = x + feed_forward(norm(x)); the first layer does without the former.

    Args:
        config: `EncoderConfig`.
        layer: its number, from 0.
        seed: integer for the initializers.
    """

    def __init__(self, config, layer=0, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.config = config = EncoderConfig.of(config)
        self.layer, self.seed = layer, seed
        policy, purpose = self.dtype_policy, f"layer_{layer}"
        self.norms_before = config.norm_placement == "before"
        self.attention = SelfAttention(config, layer, seed, dtype=policy)
        self.attention_dropout = Dropout(
            config.dropout, f"{purpose}/attention_output", dtype=policy, name="attention_dropout"
        )
        skips = self.norms_before and layer == 0
        self.attention_norm = None if skips else normalization(config, seed, purpose, "attention_norm", policy)
        units = config.feed_forward_size * (2 if config.gated else 1)
        self.intermediate = dense(config, units, seed, purpose, "intermediate", policy)
        self.activation = activation(config.activation)
        self.output_projection = dense(config, config.hidden_size, seed, purpose, "output", policy)
        self.output_dropout = Dropout(config.dropout, f"{purpose}/output", dtype=policy, name="output_dropout")
        self.output_norm = normalization(config, seed, purpose, "output_norm", policy)

    def build(self, input_shape):
        self.attention.build(input_shape)
        if self.attention_norm is not None:
            self.attention_norm.build(input_shape)
        self.intermediate.build(input_shape)
        self.output_projection.build((*input_shape[:-1], self.config.feed_forward_size))
        self.output_norm.build(input_shape)
        self.built = True

    def _feed_forward(self, x, keys):
        x = self.intermediate(x)
        if self.config.gated:
            x, gate = ops.split(x, 2, axis=-1)
            x = self.activation(x) * gate
        else:
            x = self.activation(x)
        return self.output_dropout(self.output_projection(x), keys=keys)

    def call(self, x, visible, places=None, positions=None, attention_bias=None, condition=None, keys=None):
        """Transforms.

        Args:
            x: `[batch, length, hidden]`.
            visible, places, attention_bias, keys: as in `SelfAttention`.
            positions: `[batch, positions]` integers, the tokens to transform; None for all.
            condition: `[batch, 1 or length, condition_size]`, or None without conditional normalisation.

        Returns:
            `[batch, length, hidden]`, or `[batch, positions, hidden]`.
        """
        residual, condition_here, queries = x, condition, None
        if positions is not None:
            # Gathered once, and normalised again rather than gathered again: of two gathers, one before and one after a
            # normalisation, XLA makes gradients on the CPU at which it aborts ("Check failed: ... scatter").
            residual = queries = gather_positions(x, positions)
            if condition is not None and condition.shape[1] != 1:
                condition_here = gather_positions(condition, positions)
        if self.norms_before and self.attention_norm is not None:
            x = normalize(self.attention_norm, x, condition)
            if positions is not None:
                queries = normalize(self.attention_norm, residual, condition_here)
        given = {"places": places, "queries": queries, "positions": positions, "attention_bias": attention_bias}
        attended = self.attention(x, visible, **given, keys=keys)
        x = residual + self.attention_dropout(attended, keys=keys)
        if self.norms_before:
            return x + self._feed_forward(normalize(self.output_norm, x, condition_here), keys)
        x = normalize(self.attention_norm, x, condition_here)
        return normalize(self.output_norm, x + self._feed_forward(x, keys), condition_here)

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "layer": self.layer, "seed": self.seed}
        return super().get_config() | fields
