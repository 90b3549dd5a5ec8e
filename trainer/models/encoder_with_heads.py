"""A whole model as people of other Keras programs want it: an encoder with whatever heads its weights came with."""

import dataclasses

import keras

from trainer.models.architecture import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.heads import ClassifierHead, MaskedLanguageModelHead, Pooler, ReplacedTokenHead

HEADS = ("masked_language_model", "pooler", "sentence_pair", "classifier", "replaced_token_detection")


@keras.saving.register_keras_serializable("bert_trainer")
class EncoderWithHeads(keras.Model):
    """An encoder and heads; a `.keras` file of it needs nothing else to be loaded but an import of this module.

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids.
        heads: names of `HEADS`; `sentence_pair` and `classifier` read the pooled vector.
        labels: names of the classes of the classifier.
        pooling: see `Pooler`.
        objective: what the classifier was trained for; kept for whoever reads it.
        pieces: pieces of the vocabulary in the order of their ids; kept for whoever reads them.
        lower_case: whether texts are lower-cased; kept for whoever reads it.
    """

    def __init__(
        self,
        config,
        vocabulary_size,
        heads=(),
        labels=(),
        pooling="cls",
        objective=None,
        pieces=None,
        lower_case=None,
        name="bert",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if unknown := set(heads) - set(HEADS):
            raise ValueError(f"heads are of {', '.join(HEADS)}; unknown: {', '.join(sorted(unknown))}")
        self.config = config = EncoderConfig.of(config)
        self.vocabulary_size, self.heads, self.labels = vocabulary_size, tuple(heads), tuple(labels)
        self.pooling, self.objective, self.lower_case = pooling, objective, lower_case
        self.pieces = None if pieces is None else tuple(pieces)
        policy = self.dtype_policy
        self.encoder = Encoder(config, vocabulary_size, dtype=policy)
        self.masked_language_model = self.pooler = self.sentence_pair = None
        self.classifier = self.replaced_token_detection = None
        if "masked_language_model" in heads:
            self.masked_language_model = MaskedLanguageModelHead(self.encoder.embeddings, config.hidden_size)
        if "pooler" in heads:
            self.pooler = Pooler(config, pooling, dtype=policy)
        elif pooling != "cls" or {"sentence_pair", "classifier"} & set(heads):
            self.pooler = Pooler(config, pooling, transform=False, dtype=policy)
        if "sentence_pair" in heads:
            self.sentence_pair = ClassifierHead(config, 2, dtype=policy, name="sentence_pair")
        if "classifier" in heads:
            self.classifier = ClassifierHead(config, max(1, len(self.labels)), dtype=policy)
        if "replaced_token_detection" in heads:
            self.replaced_token_detection = ReplacedTokenHead(config, dtype=policy)

    def build(self, input_shape=None):
        self.encoder.build()
        for name in HEADS:
            head = getattr(self, name)
            if head is not None:
                head.build()
        self.built = True

    def call(self, inputs, training=None):
        """Runs the encoder and all heads.

        Args:
            inputs: token ids `[batch, length]`, or a dict of `token_ids` and, where it is not all zeros, `segment_ids`.
            training: whether to drop out.

        Returns:
            dict of `hidden` `[batch, length, hidden]` and, as far as there are heads: `token_logits` `[batch, length,
            vocabulary]`, `pooled` `[batch, hidden]`, `pair_logits` `[batch, 2]`, `logits` `[batch, classes]`,
            `replaced_logits` `[batch, length]`.
        """
        if not isinstance(inputs, dict):
            inputs = {"token_ids": inputs}
        token_ids = inputs["token_ids"]
        hidden = self.encoder(token_ids, segment_ids=inputs.get("segment_ids"), training=training)
        result = {"hidden": hidden}
        if self.masked_language_model is not None:
            result["token_logits"] = self.masked_language_model(hidden)[..., : self.vocabulary_size]
        if self.pooler is not None:
            result["pooled"] = self.pooler(hidden, self.encoder.compute_mask(token_ids))
        if self.sentence_pair is not None:
            result["pair_logits"] = self.sentence_pair(result["pooled"])
        if self.classifier is not None:
            result["logits"] = self.classifier(result["pooled"])
        if self.replaced_token_detection is not None:
            result["replaced_logits"] = self.replaced_token_detection(hidden)
        return result

    def get_config(self):
        names = ("vocabulary_size", "heads", "labels", "pooling", "objective", "pieces", "lower_case")
        fields = {name: getattr(self, name) for name in names} | {"config": dataclasses.asdict(self.config)}
        return super().get_config() | fields
