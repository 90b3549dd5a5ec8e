"""Heads: what stands on an encoder and answers a task's question."""

import dataclasses

import keras
import numpy as np
from keras import ops

from trainer.models.architecture import EncoderConfig
from trainer.models.layers import Dropout, activation, dense, normalization
from trainer.models.pooling import masked_max, masked_mean

POOLINGS = ("cls", "mean", "max")


@keras.saving.register_keras_serializable("bert_trainer")
class MaskedLanguageModelHead(keras.layers.Layer):
    """Predicts tokens, with the word embeddings as output matrix (Devlin et al. 2018).

    Args:
        embeddings: the encoder's `Embeddings`, whose table is shared.
        hidden_size: size of the hidden states it reads.
        seed: integer for the initial weights.
    """

    def __init__(self, embeddings, hidden_size, seed=0, name="masked_language_model", **kwargs):
        super().__init__(dtype=embeddings.dtype_policy, name=name, **kwargs)
        config = self.config = embeddings.config
        self.seed, embeddings.is_shared = seed, True
        # The table is the encoder's; keeping it in a tuple stops Keras from tracking it a second time here.
        self._shared = (embeddings.word_embeddings, embeddings)
        self.vocabulary_size, self.hidden_size = embeddings.vocabulary_size, hidden_size
        self.supports_masking = True
        policy = self.dtype_policy
        self.transform = self.activation = self.norm = None
        if config.prediction_transform:
            self.transform = dense(config, config.token_size, seed, "masked_language_model", "transform", policy)
            self.activation = activation(config.activation)
            plain = dataclasses.replace(config, **_UNCONDITIONAL)
            self.norm = normalization(plain, seed, "masked_language_model", "norm", policy)

    def build(self, input_shape=None):
        table = self._shared[0]
        if self.transform is not None:
            self.transform.build((None, None, self.hidden_size))
            self.norm.build((None, None, table.output_dim))
        elif table.output_dim != self.hidden_size:
            raise ValueError(
                f"without prediction_transform hidden states ({self.hidden_size}) must have the size of the embeddings "
                f"({table.output_dim})"
            )
        self.output_bias = None
        if self.config.prediction_bias:
            self.output_bias = self.add_weight(name="output_bias", shape=(table.input_dim,), initializer="zeros")
        self.built = True

    def call(self, hidden):
        """Returns float32 logits over the padded vocabulary, minus infinity in effect beyond the true one.

        Args:
            hidden: `[batch, positions, hidden]`, of the tokens to predict.

        Returns:
            `[batch, positions, padded_vocabulary]`.
        """
        table = self._shared[0]
        if not table.built:
            raise ValueError(
                "the embeddings of this head are those of no encoder: load or copy it together with its encoder"
            )
        if self.transform is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        bias = np.where(np.arange(table.input_dim) < self.vocabulary_size, 0, -1e9).astype("float32")
        if self.output_bias is not None:
            bias = ops.cast(ops.convert_to_tensor(self.output_bias), "float32") + bias
        return ops.cast(table.logits(hidden), "float32") + bias

    def get_config(self):
        fields = {"hidden_size": self.hidden_size, "seed": self.seed}
        fields["embeddings"] = self._shared[1].config_when_shared()
        # Of the embeddings, whose dtype is this layer's.
        return {name: value for name, value in super().get_config().items() if name != "dtype"} | fields

    @classmethod
    def from_config(cls, config):
        """Returns the head that `get_config` described."""
        return cls(**config | {"embeddings": keras.saving.deserialize_keras_object(config["embeddings"])})


_UNCONDITIONAL = {"condition_size": None, "condition_hidden_size": None}


@keras.saving.register_keras_serializable("bert_trainer")
class Pooler(keras.layers.Layer):
    """One vector for a row: of its first token, or the mean or maximum over its tokens.

    Args:
        config: `EncoderConfig` of the encoder it stands on.
        pooling: `cls`, `mean` or `max`.
        transform: whether a dense layer with the architecture's `pooler_activation` follows.
        seed: integer for the initial weights.
    """

    def __init__(self, config, pooling="cls", transform=True, seed=0, name="pooler", **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pooling, self.transform, self.seed = pooling, transform, seed
        self.dense = None
        if transform:
            options = {"activation": activation(config.pooler_activation), "use_bias": True}
            # The name is part of what decides the initial weights.
            self.dense = dense(
                config, config.hidden_size, seed, "sentence_pair", "pooler", self.dtype_policy, **options
            )
        self.supports_masking = True

    def build(self, input_shape=None):
        if self.dense is not None:
            self.dense.build((None, self.config.hidden_size))
        self.built = True

    def call(self, hidden, mask=None):
        """Pools.

        Args:
            hidden: `[batch, length, hidden]`; only the first token's is read with `cls`.
            mask: `[batch, length]` booleans, true for tokens; None for all. Of no use with `cls`.

        Returns:
            `[batch, hidden]`.
        """
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (masked_mean if self.pooling == "mean" else masked_max)(hidden, mask)
        return pooled if self.dense is None else self.dense(pooled)

    def compute_mask(self, inputs, mask=None):
        """Returns None: a pooled vector is never padding."""
        return

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "pooling": self.pooling, "seed": self.seed}
        return super().get_config() | fields | {"transform": self.transform}


@keras.saving.register_keras_serializable("bert_trainer")
class ClassifierHead(keras.layers.Layer):
    """Scores for a pooled vector.

    Args:
        config: `EncoderConfig` of the encoder below.
        num_outputs: number of scores.
        dropout: rate on what it reads.
        purpose: name that tells its initial weights and its dropout from those of others.
        seed: integer for the initial weights.
    """

    def __init__(self, config, num_outputs, dropout=0.0, purpose="classifier", seed=0, name="classifier", **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        self.num_outputs, self.purpose, self.seed = num_outputs, purpose, seed
        self.dropout = Dropout(dropout, f"{purpose}/pooled", dtype=self.dtype_policy, name="dropout")
        self.scores = dense(config, num_outputs, seed, purpose, "classifier", self.dtype_policy, use_bias=True)

    def build(self, input_shape=None):
        self.scores.build((None, self.config.hidden_size))
        self.built = True

    def call(self, pooled, keys=None):
        """Returns float32 logits `[batch, num_outputs]` for `[batch, hidden]`; drops out only with keys."""
        return ops.cast(self.scores(self.dropout(pooled, keys=keys)), "float32")

    def get_config(self):
        fields = {"config": dataclasses.asdict(self.config), "num_outputs": self.num_outputs, "seed": self.seed}
        return super().get_config() | fields | {"purpose": self.purpose, "dropout": self.dropout.rate}


@keras.saving.register_keras_serializable("bert_trainer")
class ReplacedTokenHead(keras.layers.Layer):
    """Tells of each token whether it was replaced (Clark et al. 2020, arXiv 2003.10555).

    Args:
        config: `EncoderConfig` of the discriminator.
        seed: integer for the initial weights.
    """

    def __init__(self, config, seed=0, name="replaced_token_detection", **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config = EncoderConfig.of(config)
        self.seed = seed
        self.supports_masking = True
        policy = self.dtype_policy
        self.dense = dense(config, config.hidden_size, seed, name, "dense", policy)
        self.activation = activation(config.activation)
        self.score = dense(config, 1, seed, name, "score", policy, use_bias=True)

    def build(self, input_shape=None):
        self.dense.build((None, None, self.config.hidden_size))
        self.score.build((None, None, self.config.hidden_size))
        self.built = True

    def call(self, hidden):
        """Returns float32 logits `[batch, length]` for `[batch, length, hidden]`: above 0 where it believes so."""
        return ops.cast(self.score(self.activation(self.dense(hidden)))[..., 0], "float32")

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config), "seed": self.seed}
