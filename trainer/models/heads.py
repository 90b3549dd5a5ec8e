"""Heads: what stands on an encoder and answers a task's question."""

import keras
import numpy as np
from keras import ops

from trainer.models import layers


class MaskedLanguageModelHead(keras.layers.Layer):
    """Predicts tokens, with the word embeddings as output matrix (Devlin et al. 2018).

    Args:
        encoder: the `Encoder` whose word embeddings are shared.
        seed: integer for the initial weights.
    """

    def __init__(self, encoder, seed=0, name="masked_language_model", **kwargs):
        super().__init__(dtype=encoder.dtype_policy, name=name, **kwargs)
        config = encoder.config
        # The encoder is the model's; keeping it in a tuple stops Keras from tracking it a second time here.
        self._shared = (encoder.word_embeddings,)
        self.vocabulary_size = encoder.vocabulary_size
        self.hidden_size = config.hidden_size
        self.transform = keras.layers.Dense(
            config.hidden_size,
            kernel_initializer=layers.truncated_normal(
                config.initializer_range, seed, "masked_language_model/transform"
            ),
            dtype=self.dtype_policy,
            name="transform",
        )
        self.activation = layers.activation(config.activation)
        self.norm = keras.layers.LayerNormalization(epsilon=config.epsilon, dtype=self.dtype_policy, name="norm")

    def build(self, input_shape=None):
        shape = (None, None, self.hidden_size)
        self.transform.build(shape)
        self.norm.build(shape)
        self.output_bias = self.add_weight(name="output_bias", shape=(self._shared[0].input_dim,), initializer="zeros")
        self.built = True

    def call(self, hidden):
        """Returns float32 logits over the padded vocabulary, minus infinity in effect beyond the true one.

        Args:
            hidden: `[batch, positions, hidden]`, of the tokens to predict.

        Returns:
            `[batch, positions, padded_vocabulary]`.
        """
        table = self._shared[0]
        x = self.norm(self.activation(self.transform(hidden)))
        beyond = np.where(np.arange(table.input_dim) < self.vocabulary_size, 0, -1e9).astype("float32")
        bias = ops.cast(ops.convert_to_tensor(self.output_bias), "float32") + beyond
        return ops.cast(table.logits(x), "float32") + bias


class SentencePairHead(keras.layers.Layer):
    """Classifies a row by its first token: is the second segment the next (BERT), are the two in order (ALBERT).

    Args:
        encoder: the `Encoder` it stands on.
        num_classes: number of answers.
        seed: integer for the initial weights.
    """

    def __init__(self, encoder, num_classes=2, seed=0, name="sentence_pair", **kwargs):
        super().__init__(dtype=encoder.dtype_policy, name=name, **kwargs)
        config = encoder.config
        self.hidden_size = config.hidden_size

        def dense(units, name, **options):
            initializer = layers.truncated_normal(config.initializer_range, seed, f"sentence_pair/{name}")
            return keras.layers.Dense(
                units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name, **options
            )

        self.pooler = dense(config.hidden_size, "pooler", activation="tanh")
        self.classifier = dense(num_classes, "classifier")

    def build(self, input_shape=None):
        self.pooler.build((None, self.hidden_size))
        self.classifier.build((None, self.hidden_size))
        self.built = True

    def call(self, hidden):
        """Returns float32 logits `[batch, num_classes]` for the first token's hidden states `[batch, hidden]`."""
        return ops.cast(self.classifier(self.pooler(hidden)), "float32")
