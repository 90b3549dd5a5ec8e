"""ELECTRA: a small generator fills masks, and a discriminator tells which tokens it replaced (Clark et al. 2020).

"Pre-training Text Encoders as Discriminators Rather Than Generators", arXiv 2003.10555. Generator and
discriminator share their embeddings, and the discriminator's loss counts fifty times.
"""

import dataclasses

import keras
import tensorflow as tf
from keras import ops

from trainer import randomness
from trainer.models import costs
from trainer.models.architecture import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.heads import MaskedLanguageModelHead, ReplacedTokenHead
from trainer.tasks.fill_mask import encode_signature, fill_masks, row_specifications
from trainer.tasks.losses import correct, cross_entropy
from trainer.tasks.pretraining import Pretraining, PretrainingConfig
from trainer.tasks.task import Sums

_GENERATOR, _DISCRIMINATOR = "masked_language_model", "replaced_token_detection"


class Generator(keras.layers.Layer):
    """The encoder that fills masks, and its head, on the discriminator's embeddings.

    Args:
        config: `EncoderConfig` of the generator.
        embeddings: the discriminator's `Embeddings`.
        seed: integer for the initial weights.
    """

    def __init__(self, config, embeddings, seed=0, name="generator", **kwargs):
        super().__init__(name=name, **kwargs)
        policy = self.dtype_policy
        # Another seed: layers of the discriminator have the same names.
        self.encoder = Encoder(config, embeddings.vocabulary_size, seed + 1, policy, embeddings=embeddings)
        self.token_head = MaskedLanguageModelHead(embeddings, config.hidden_size, seed=seed + 1)

    def build(self, input_shape=None):
        self.encoder.build()
        self.token_head.build()
        self.built = True

    def call(self, token_ids, segment_ids, document_ids, positions, embedding_offset=None, keys=None):
        """Returns token logits `[batch, slots, padded_vocabulary]` in float32."""
        if keys is not None:
            keys = randomness.fold_in(keys, "generator")
        hidden = self.encoder(
            token_ids, segment_ids, document_ids, positions=positions, embedding_offset=embedding_offset, keys=keys
        )
        return self.token_head(hidden)


class ElectraModel(keras.layers.Layer):
    """Generator and discriminator.

    Args:
        config: `EncoderConfig` of the discriminator, which is what remains after pretraining.
        generator_config: `EncoderConfig` of the generator.
        vocabulary_size: number of token ids.
        seed: integer for the initial weights.
        dtype: Keras dtype policy name.
    """

    def __init__(self, config, generator_config, vocabulary_size, *, seed=0, dtype="float32", name="electra"):
        super().__init__(dtype=dtype, name=name)
        self.encoder = Encoder(config, vocabulary_size, seed=seed, dtype=dtype)
        self.generator = Generator(generator_config, self.encoder.embeddings, seed=seed, dtype=dtype)
        self.replaced_token_head = ReplacedTokenHead(config, seed=seed, dtype=dtype)

    def build(self, input_shape=None):
        self.encoder.build()
        self.generator.build()
        self.replaced_token_head.build()
        self.built = True

    def call(self, token_ids, segment_ids, document_ids, embedding_offset=None, keys=None):
        """Returns for each token the float32 logit `[batch, length]` that it was replaced."""
        hidden = self.encoder(token_ids, segment_ids, document_ids, embedding_offset=embedding_offset, keys=keys)
        return self.replaced_token_head(hidden)


def sampled(logits, keys):
    """Draws from softmax distributions by adding Gumbel noise.

    Args:
        logits: `[batch, slots, classes]` float32.
        keys: `Keys` of the examples.

    Returns:
        `[batch, slots]` int32.
    """
    slots, classes = logits.shape[1:]
    uniform = ops.reshape(randomness.random_uniform(keys, slots * classes), (-1, slots, classes))
    # Half a step away from 0 and 1, where the noise would be infinite.
    noise = -ops.log(-ops.log(uniform * (1 - 2.0**-23) + 2.0**-25))
    return ops.cast(ops.argmax(logits + noise, axis=-1), "int32")


def replace_tokens(token_ids, positions, replacements, used):
    """Puts tokens at some positions of each row.

    Args:
        token_ids: `[batch, length]` integers.
        positions: `[batch, slots]` integers, those that are used all different.
        replacements: `[batch, slots]` integers.
        used: `[batch, slots]` booleans.

    Returns:
        `[batch, length]` int32.
    """
    here = ops.logical_and(positions[:, :, None] == ops.arange(token_ids.shape[1])[None, None], used[:, :, None])
    put = ops.sum(ops.where(here, replacements[:, :, None], 0), axis=1)
    return ops.where(ops.any(here, axis=1), put, ops.cast(token_ids, "int32"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig(PretrainingConfig):
    """ELECTRA's pretraining task, before its data is opened; `encoder` is the discriminator's.

    Args:
        generator: `EncoderConfig` of the generator; its embeddings are the discriminator's.
        discriminator_weight: by which the discriminator's loss is multiplied.
    """

    generator: EncoderConfig
    discriminator_weight: float = 50.0

    def __post_init__(self):
        if isinstance(self.encoder, EncoderConfig) and self.generator.token_size != self.encoder.token_size:
            raise ValueError(
                f"generator and discriminator share their embeddings: embedding_size must be the same, got "
                f"{self.generator.token_size} and {self.encoder.token_size}"
            )

    def task(self, data):
        """See `PretrainingConfig.task`."""
        return Electra(data, self.encoder, self.masking, tuple(self.samples), self.generator, self.discriminator_weight)


@dataclasses.dataclass(frozen=True)
class Electra(Pretraining):
    """ELECTRA's pretraining task.

    Args:
        data, encoder, masking, samples: as in `Pretraining`; `encoder` is the discriminator's.
        generator: `EncoderConfig` of the generator.
        discriminator_weight: by which the discriminator's loss is multiplied.
    """

    generator: EncoderConfig = None
    discriminator_weight: float = 50.0

    @property
    def loss_coefficients(self):
        """The generator's loss, and the discriminator's many times."""
        return {_GENERATOR: 1.0, _DISCRIMINATOR: self.discriminator_weight}

    @property
    def metric_names(self):
        """Names of the metrics, each with the loss whose weight divides it."""
        return {
            "masked_language_model_loss": _GENERATOR,
            "accuracy": _GENERATOR,
            "replaced_share": _GENERATOR,
            "found_share": _GENERATOR,
            "replaced_token_loss": _DISCRIMINATOR,
            "replaced_token_accuracy": _DISCRIMINATOR,
        }

    def build_model(self, *, seed, dtype):
        model = ElectraModel(self.encoder, self.generator, self.data.vocabulary_size, seed=seed, dtype=dtype)
        model.build()
        return model

    def prepare(self, examples, keys):
        """Masks as pretraining does, and gives each example the key by which replacements are drawn."""
        features = super().prepare(examples, keys)
        keys = randomness.fold_in(keys, "replacements")
        inside = ops.cast(examples["document_ids"] != 0, "float32")
        if "example_weight" in examples:
            inside = inside * examples["example_weight"][:, None]
        original = replace_tokens(
            features["token_ids"], features["positions"], features["labels"], features["token_weights"] > 0
        )
        return features | {
            "original_ids": original,
            "replaced_weights": inside,
            "draw_start": keys.start,
            "draw_increment": keys.increment,
        }

    def weights(self, features):
        return {
            _GENERATOR: ops.sum(features["token_weights"]),
            _DISCRIMINATOR: ops.sum(features["replaced_weights"]),
        }

    def sums(self, model, features, keys, embedding_offset=None):
        labels, weights = features["labels"], features["token_weights"]
        inputs = (features["segment_ids"], features["document_ids"])
        options = {"embedding_offset": embedding_offset, "keys": keys}
        logits = model.generator(features["token_ids"], *inputs, features["positions"], **options)
        token_loss = ops.sum(cross_entropy(logits, labels) * weights)
        draw_keys = randomness.Keys(features["draw_start"], features["draw_increment"])
        drawn = sampled(ops.stop_gradient(logits), draw_keys)
        corrupted = replace_tokens(features["original_ids"], features["positions"], drawn, weights > 0)
        replaced = ops.cast(corrupted != features["original_ids"], "float32")
        replaced_logits = model(corrupted, *inputs, **options)
        inside = features["replaced_weights"]
        replaced_loss = ops.sum(ops.binary_crossentropy(replaced, replaced_logits, from_logits=True) * inside)
        guessed = ops.cast(replaced_logits > 0, "float32")
        metrics = {
            "masked_language_model_loss": token_loss,
            "accuracy": ops.sum(correct(logits, labels) * weights),
            "replaced_share": ops.sum(replaced * inside),
            "found_share": ops.sum(guessed * replaced * inside),
            "replaced_token_loss": replaced_loss,
            "replaced_token_accuracy": ops.sum(ops.cast(guessed == replaced, "float32") * inside),
        }
        return Sums({_GENERATOR: token_loss, _DISCRIMINATOR: replaced_loss}, metrics)

    def report(self, metrics):
        """Makes `found_share` the share of the replaced tokens that the discriminator found."""
        metrics = super().report(metrics)
        replaced = metrics["replaced_share"]
        return metrics | {"found_share": metrics["found_share"] / replaced if replaced else 0.0}

    def predict(self, model, texts, top_k):
        """Fills the masks in texts with the generator, see `trainer.tasks.fill_mask`."""
        return fill_masks(self.data, lambda *inputs: (model.generator(*inputs), None), texts, top_k)

    def serving_signatures(self, model):
        """Returns `encode` (the discriminator's hidden states) and `serving_default` (what was replaced)."""

        @tf.function(input_signature=row_specifications(self.data))
        def detect(token_ids, segment_ids):
            documents = tf.cast(model.encoder.compute_mask(token_ids), tf.int32)
            return {"replaced_probabilities": tf.sigmoid(model(token_ids, segment_ids, documents))}

        return {"serving_default": detect.get_concrete_function(), "encode": encode_signature(self.data, model)}

    def training_flops(self):
        row, encoder = self._row(), self.encoder
        layers, _ = costs.forward_flops(encoder, **(row | {"predictions": row["length"]}))
        head = 2 * row["length"] * encoder.hidden_size * (encoder.hidden_size + 1)
        discriminator = (4 if encoder.rematerialize else 3) * layers + 3 * head
        return costs.training_flops(self.generator, **row) + discriminator

    def activation_bytes(self, compute_bytes):
        row = self._row()
        generator = costs.activation_bytes(self.generator, compute_bytes=compute_bytes, **row)
        row |= {"predictions": row["length"], "vocabulary_size": 0}
        return generator + costs.activation_bytes(self.encoder, compute_bytes=compute_bytes, **row)
