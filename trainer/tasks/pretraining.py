"""Pretraining: masked language modelling, with next-sentence or sentence-order prediction where the rows are pairs."""

import dataclasses
import math

import keras
from keras import ops

from trainer.data.lane_order import example_locations
from trainer.data.masking import MaskingConfig, mask_tokens
from trainer.data.pretraining_data import OpenedData, PretrainingData
from trainer.data.vocabulary import file_content
from trainer.errors import InputError
from trainer.models import costs
from trainer.models.architecture import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.heads import ClassifierHead, MaskedLanguageModelHead, Pooler
from trainer.tasks.fill_mask import fill_masks, serving_signatures, show_answers
from trainer.tasks.losses import correct, cross_entropy
from trainer.tasks.task import Sums, Task
from trainer.weights.description import ModelDescription
from trainer.weights.pretrained import description_for, encoder_for


class PretrainingModel(keras.layers.Layer):
    """An encoder with the masked-language-model head and, for pairs, the sentence-pair head.

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids.
        pairs: whether rows are pairs of segments with a label.
        seed: integer for the initial weights.
        dtype: Keras dtype policy name.
    """

    def __init__(self, config, vocabulary_size, *, pairs, seed=0, dtype="float32", name="pretraining"):
        super().__init__(dtype=dtype, name=name)
        self.encoder = Encoder(config, vocabulary_size, seed=seed, dtype=dtype)
        self.token_head = MaskedLanguageModelHead(self.encoder.embeddings, config.hidden_size, seed=seed)
        self.pooler = self.pair_head = None
        if pairs:
            self.pooler = Pooler(config, seed=seed, dtype=dtype)
            self.pair_head = ClassifierHead(
                config, 2, purpose="sentence_pair", seed=seed, dtype=dtype, name="sentence_pair"
            )

    def build(self, input_shape=None):
        self.encoder.build()
        self.token_head.build()
        if self.pair_head is not None:
            self.pooler.build()
            self.pair_head.build()
        self.built = True

    def call(self, token_ids, segment_ids, document_ids, positions, embedding_offset=None, keys=None):
        """Returns token logits `[batch, slots, padded_vocabulary]` and pair logits `[batch, 2]` or None, in float32."""
        options = {"embedding_offset": embedding_offset, "keys": keys}
        if self.pair_head is None:
            hidden = self.encoder(token_ids, segment_ids, document_ids, positions=positions, **options)
            return self.token_head(hidden), None
        wanted = ops.pad(positions, ((0, 0), (1, 0)))  # the first token, too
        hidden = self.encoder(token_ids, segment_ids, document_ids, positions=wanted, **options)
        return self.token_head(hidden[:, 1:]), self.pair_head(self.pooler(hidden))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The pretraining task, before its data is opened.

    Args:
        data: `PretrainingData`.
        encoder: `EncoderConfig`, or `trainer.weights.pretrained.PretrainedEncoder`.
        masking: `MaskingConfig`, for rows that do not come masked.
        samples: texts with `[MASK]` in them that a finished run shows its answers to.
    """

    data: PretrainingData
    encoder: EncoderConfig
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    samples: tuple = ()

    def open(self, run_directory, *, examples=True, **options):
        """Opens the data, see `PretrainingData.open`; returns the `Pretraining` task.

        Args:
            run_directory: the `RunDirectory`.
            examples: of no use: the vocabulary lies with the data.
            options: see `PretrainingData.open`.

        Raises:
            InputError: also if rows are longer than the encoder can read.
        """
        del examples
        data = self.data.open(run_directory, **options)
        encoder = encoder_for(self.encoder, description_for(self.encoder, run_directory))
        if encoder.positions == "learned" and data.sequence_length > encoder.longest_row:
            raise InputError(
                f"rows have {data.sequence_length} tokens but encoder.max_length is {encoder.max_length}: "
                "raise it, or prepare shorter rows"
            )
        return dataclasses.replace(self, encoder=encoder).task(data)

    def task(self, data):
        """Returns the task on opened data."""
        return Pretraining(data, self.encoder, self.masking, tuple(self.samples))


@dataclasses.dataclass(frozen=True)
class Pretraining(Task):
    """The pretraining task.

    Args:
        data: `OpenedData`: rows, vocabulary, order.
        encoder: `EncoderConfig`.
        masking: `MaskingConfig`, for rows that do not come masked.
        samples: texts with `[MASK]` in them that a finished run shows its answers to.
    """

    data: OpenedData
    encoder: EncoderConfig
    masking: MaskingConfig
    samples: tuple = ()

    @property
    def loss_coefficients(self):
        """Both losses count as they are, as in BERT."""
        return {"masked_language_model": 1.0} | ({"sentence_pair": 1.0} if self.data.pairs else {})

    @property
    def metric_names(self):
        """Names of the metrics, each with the loss whose weight divides it."""
        names = {"masked_language_model_loss": "masked_language_model", "accuracy": "masked_language_model"}
        if self.data.pairs:
            names |= {"sentence_pair_loss": "sentence_pair", "sentence_pair_accuracy": "sentence_pair"}
        return names

    @property
    def tokens_per_example(self):
        """Tokens in a row."""
        return self.data.sequence_length

    @property
    def has_evaluation(self):
        """Whether there are held-out rows."""
        return bool(self.data.held_out)

    @property
    def data_rows(self):
        """The `StoredRows` that are read."""
        return self.data.stored_rows

    @property
    def fingerprints(self):
        """One text a corpus that changes when its content or its share does."""
        return self.data.fingerprints

    @property
    def vocabulary_sha256(self):
        """SHA-256 of the vocabulary file."""
        return self.data.pieces.sha256

    def description(self):
        return ModelDescription(
            encoder=self.encoder,
            vocabulary_size=self.data.vocabulary_size,
            pieces=self.data.pieces.pieces,
            lower_case=self.data.lower_case,
        )

    def build_model(self, *, seed, dtype):
        model = PretrainingModel(self.encoder, self.data.vocabulary_size, pairs=self.data.pairs, seed=seed, dtype=dtype)
        model.build()
        return model

    def training_dataset(self, **options):
        return self.data.training_dataset(**options)

    def evaluation_dataset(self, **options):
        return self.data.evaluation_dataset(**options)

    def input_advice(self, processor_share, num_hosts):
        return self.data.input_advice(processor_share, num_hosts)

    def prepare(self, examples, keys):
        features = {name: examples[name] for name in ("segment_ids", "document_ids")}
        example_weight = examples.get("example_weight")
        if "masked_positions" in examples:
            features |= {
                "token_ids": examples["token_ids"],
                "positions": examples["masked_positions"],
                "labels": examples["masked_ids"],
                "token_weights": examples["masked_weights"],
            }
        else:
            masked = mask_tokens(self.masking, keys, examples["token_ids"], self.data.token_kinds)
            features |= {
                "token_ids": masked.token_ids,
                "positions": masked.positions,
                "labels": masked.labels,
                "token_weights": masked.weights,
            }
        if example_weight is not None:
            features["token_weights"] = features["token_weights"] * example_weight[:, None]
        if self.data.pairs:
            labels = examples["pair_labels"]
            weights = ops.cast(labels >= 0, "float32")
            features["pair_labels"] = ops.maximum(labels, 0)
            features["pair_weights"] = weights if example_weight is None else weights * example_weight
        return features

    def weights(self, features):
        weights = {"masked_language_model": ops.sum(features["token_weights"])}
        if self.data.pairs:
            weights["sentence_pair"] = ops.sum(features["pair_weights"])
        return weights

    def sums(self, model, features, keys, embedding_offset=None):
        token_logits, pair_logits = model(
            features["token_ids"],
            features["segment_ids"],
            features["document_ids"],
            features["positions"],
            embedding_offset=embedding_offset,
            keys=keys,
        )
        labels, weights = features["labels"], features["token_weights"]
        token_loss = ops.sum(cross_entropy(token_logits, labels) * weights)
        losses = {"masked_language_model": token_loss}
        metrics = {
            "masked_language_model_loss": token_loss,
            "accuracy": ops.sum(correct(token_logits, labels) * weights),
        }
        if pair_logits is not None:
            labels, weights = features["pair_labels"], features["pair_weights"]
            losses["sentence_pair"] = ops.sum(cross_entropy(pair_logits, labels) * weights)
            metrics["sentence_pair_loss"] = losses["sentence_pair"]
            metrics["sentence_pair_accuracy"] = ops.sum(correct(pair_logits, labels) * weights)
        return Sums(losses, metrics)

    def report(self, metrics):
        """Adds `perplexity`, the exponential of the masked-language-model loss."""
        loss = metrics["masked_language_model_loss"]
        return metrics | {"perplexity": math.exp(loss) if loss < 700 else math.inf}

    def predict(self, model, texts, top_k):
        """Fills the masks in texts, see `trainer.tasks.fill_mask`."""
        return fill_masks(self.data, model, texts, top_k)

    def show_predictions(self, answers, console):
        """Prints each text, and under it the answers for each mask with their probabilities."""
        show_answers(answers, console)

    def serving_signatures(self, model):
        """Returns `encode` (hidden states) and `serving_default` (token logits at given positions)."""
        return serving_signatures(self.data, model)

    def serving_assets(self):
        """Returns the vocabulary file."""
        return {"vocab.txt": file_content(self.data.pieces.pieces)}

    def describe_example(self, examples, index):
        """Returns the tokens of a row without padding."""
        ids = examples["token_ids"][index]
        return self.data.pieces.text(ids[ids != 0])

    def example_places(self, **options):
        """Returns the shard and row of each example, see `trainer.data.lanes.example_locations`."""
        plan = self.data.plan
        found = example_locations(plan, **options)
        return [
            f"{plan.rows.paths[shard].rsplit('/', 1)[-1]} row {row}"
            for shard, row in zip(found.shard, found.row, strict=True)
        ]

    def describe_data(self, num_examples):
        """Returns rows, share, remainder and epochs of each corpus."""
        return [
            (f"corpus {share.label}", f"{text}, {share.epochs(num_examples):.2f} epochs in all")
            for share, text in zip(self.data.plan.shares, self.data.plan.describe(), strict=True)
        ]

    def training_flops(self):
        return costs.training_flops(self.encoder, **self._row())

    def activation_bytes(self, compute_bytes):
        return costs.activation_bytes(self.encoder, compute_bytes=compute_bytes, **self._row())

    def _row(self):
        length = self.data.sequence_length
        return {
            "length": length,
            "predictions": self.data.predictions_per_row or self.masking.num_slots(length),
            "vocabulary_size": self.data.vocabulary_size,
        }
