"""Classification of texts, or pairs of texts: one class, several labels, or a number (regression)."""

import dataclasses
import json
from typing import Literal

import keras
import numpy as np
from keras import ops

from trainer import storage
from trainer.data.classification_data import SPLITS, ClassificationData, OpenedTexts
from trainer.data.tokenizer_file import FileVocabulary, open_vocabulary, vocabulary_file
from trainer.data.vocabulary import make_vocabulary
from trainer.errors import InputError
from trainer.models import costs
from trainer.models.architecture import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.heads import ClassifierHead, Pooler
from trainer.tasks import classify_texts
from trainer.tasks.objectives import OBJECTIVES, Objective
from trainer.tasks.task import Sums, Task
from trainer.weights.description import ModelDescription
from trainer.weights.pretrained import (
    description_for,
    encoder_for,
    own_description,
    tokenizer_fields,
    vocabulary_of,
)

_WEIGHTS_NAME = "class_weights.json"  # beside `model.json`; `balanced` ones are known from the training data alone


class ClassificationModel(keras.layers.Layer):
    """An encoder, one vector of its answer, and scores of that.

    Args:
        config: `EncoderConfig`.
        vocabulary_size: number of token ids.
        num_outputs: number of scores.
        pooling: `cls`, `mean` or `max`, see `Pooler`.
        pooler: whether the vector goes through a dense layer with tanh, as in BERT.
        dropout: rate on the vector.
        seed: integer for the initial weights.
        dtype: Keras dtype policy name.
    """

    def __init__(
        self,
        config,
        vocabulary_size,
        num_outputs,
        *,
        pooling="cls",
        pooler=True,
        dropout=0.1,
        seed=0,
        dtype="float32",
        name="classification",
    ):
        super().__init__(dtype=dtype, name=name)
        self.encoder = Encoder(config, vocabulary_size, seed=seed, dtype=dtype)
        self.pooler = Pooler(config, pooling, transform=pooler, seed=seed, dtype=dtype)
        self.classifier = ClassifierHead(config, num_outputs, dropout=dropout, seed=seed, dtype=dtype)

    def build(self, input_shape=None):
        for part in (self.encoder, self.pooler, self.classifier):
            part.build()
        self.built = True

    def call(self, token_ids, segment_ids, document_ids, keys=None, embedding_offset=None):
        """Returns float32 logits `[batch, num_outputs]`; arguments as of `Encoder`."""
        # The last layer computes what is asked for alone; a served model, which takes rows of any length, computes all.
        first_alone = self.pooler.pooling == "cls" and token_ids.shape[1] is not None
        positions = ops.zeros_like(token_ids[:, :1]) if first_alone else None
        hidden = self.encoder(
            token_ids,
            segment_ids,
            document_ids,
            positions=positions,
            embedding_offset=embedding_offset,
            keys=keys,
        )
        mask = None if first_alone else document_ids != 0
        return self.classifier(self.pooler(hidden, mask=mask), keys=keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """The classification task, before its data is opened.

    Args:
        data: `ClassificationData`.
        encoder: `EncoderConfig`, or what `pretrained_encoder` made.
        objective: `single_label` (one class an example), `multi_label` (any number of labels) or `regression`.
        pooling: what of the encoder's answer is classified: the first token's vector (`cls`), or the `mean` or `max`
            over all tokens.
        pooler: whether that vector goes through a dense layer with tanh, as in BERT.
        dropout: rate on the vector before it is classified.
        class_weights: what an example of each class counts in the loss: `{class: number}`, those not named counting 1; a
            list in the order of the classes; or `balanced`, in inverse proportion to how often the class is in the
            training data. With `multi_label` what each label counts. None for all the same.
        samples: texts that a finished run shows its answers to; pairs with a tab between.
    """

    data: ClassificationData
    encoder: EncoderConfig
    objective: Literal["single_label", "multi_label", "regression"] = "single_label"
    pooling: Literal["cls", "mean", "max"] = "cls"
    pooler: bool = True
    dropout: float = 0.1
    class_weights: object = None
    samples: tuple = ()

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"classification.objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"classification.dropout must lie in [0, 1), got {self.dropout}")

    def open(self, run_directory, *, is_chief=True, report=print, examples=True):
        """Reads the data, see `ClassificationData.open`; returns the `Classification` task.

        Args:
            run_directory: the `RunDirectory`.
            is_chief: of no use: every process reads the files, which are small.
            report: callable that shows one line to a person.
            examples: True for all of them; `held_out` or False for a trained model that is evaluated, or only answers: its
                classes and vocabulary are then its own, and no other files are needed.

        Raises:
            InputError: also if rows may be longer than the encoder can read, or `class_weights` does not fit the classes.
        """
        del is_chief
        trained = None if examples is True else own_description(run_directory)
        description = description_for(self.encoder, run_directory)
        encoder = encoder_for(self.encoder, description)
        longest = encoder.longest_row
        if encoder.positions == "learned" and self.data.max_length > longest:
            raise InputError(
                f"classification_data.max_length is {self.data.max_length}, but the encoder reads {longest} tokens at most: "
                "lower it, or raise encoder.max_length"
            )
        config = dataclasses.replace(self, encoder=encoder)
        if trained is not None:
            data, weights = self._open_trained(trained, run_directory, examples, report)
        else:
            vocabulary, lower_case, size = self._vocabulary(description)
            data = self.data.open(self.objective, vocabulary, lower_case, report, size)
            weights = find_class_weights(self.class_weights, self.objective, data.class_names, data.labels["train"])
        return Classification(config, data, OBJECTIVES[self.objective](data.class_names, weights))

    def _open_trained(self, trained, run_directory, examples, report):
        """Returns `OpenedTexts` and class weights for evaluating a trained model, or for answering by it.

        Args:
            trained: its `ModelDescription`.
            run_directory, examples, report: see `open`.
        """
        self._check_trained(trained, run_directory)
        data = self.data.open(
            self.objective,
            self._own_vocabulary(trained),
            trained.lower_case,
            report,
            trained.vocabulary_size,
            splits=SPLITS[1:] if examples else (),
            trained_classes=trained.labels,
        )
        return data, self._own_class_weights(trained.labels, run_directory) if examples else None

    def _vocabulary(self, description):
        """Returns the `Vocabulary`, whether texts are lower-cased for it, and the number of token ids of the model."""
        lower_case = self.data.lower_case
        if lower_case is None:
            lower_case = True if description is None or description.lower_case is None else description.lower_case
        if self.data.vocabulary is not None:
            vocabulary = open_vocabulary(self.data.vocabulary)
            if not isinstance(vocabulary, FileVocabulary):
                vocabulary = make_vocabulary(vocabulary.pieces)  # as the run will read it from its own vocab.txt
        elif description is None:
            raise InputError(
                "classification_data.vocabulary is missing: give a vocab.txt, or take encoder and vocabulary from weights "
                "by classification.encoder = @pretrained_encoder()"
            )
        else:
            vocabulary = vocabulary_of(description)
        # Models that were not ours may have more ids than their tokenizer.
        return vocabulary, lower_case, max(len(vocabulary), 0 if description is None else description.vocabulary_size)

    def _own_vocabulary(self, trained):
        """Returns the `Vocabulary` that a trained model keeps, or that of the settings if there is none."""
        try:
            return vocabulary_of(trained)
        except InputError:
            if self.data.vocabulary is None:
                raise
            return open_vocabulary(self.data.vocabulary)

    def _check_trained(self, trained, run_directory):
        """Refuses a configuration by which the scores of a trained model mean something else."""
        named = self.data.class_names
        for name, ours, its in (
            ("classification.objective", self.objective, trained.objective),
            ("classification.pooling", self.pooling, trained.pooling),
            ("classification_data.class_names", named and tuple(map(str, named)), named and trained.labels),
        ):
            if ours != its:
                raise InputError(f"{name} is {ours!r}, but the model in {run_directory.path} was trained with {its!r}")

    def _own_class_weights(self, class_names, run_directory):
        """Returns the class weights that a trained model is evaluated with, see `find_class_weights`."""
        given, path = self.class_weights, storage.join(run_directory.path, _WEIGHTS_NAME)
        if given == "balanced":
            if not storage.exists(path):
                raise InputError(
                    f"class_weights are 'balanced', but there is no {path} that says what they were in training: give "
                    "numbers, or None for a loss that counts all examples alike"
                )
            given = storage.read_json(path)
        return find_class_weights(given, self.objective, class_names, None)


def find_class_weights(given, objective, class_names, labels):
    """Returns the weights of classes, scaled so that the least is 1: only their ratios matter, see `Classification.sums`.

    Args:
        given: `ClassificationConfig.class_weights`.
        objective: name of the objective.
        class_names: tuple of names.
        labels: the training labels, see `label_numbers`; of use for `balanced` alone.

    Returns:
        `[classes]` float32 array, or None.

    Raises:
        InputError: if a name is no class, or a number is missing, not positive or too much.
    """
    if given is None:
        return None
    if objective == "regression":
        raise InputError("class_weights are given, but the objective is regression, which has no classes")
    if isinstance(given, dict):
        named = {str(name): weight for name, weight in given.items()}
        unknown = [name for name in named if name not in class_names]
        if unknown:
            raise InputError(
                f"class_weights names {unknown[0]!r}, which is no class; there are {', '.join(class_names)}"
            )
        weights = [named.get(name, 1.0) for name in class_names]
    elif given == "balanced":
        if objective == "multi_label":
            raise InputError("class_weights 'balanced' is for one class an example; give numbers for multi_label")
        counts = np.bincount(labels, minlength=len(class_names))
        weights = (len(labels) / np.maximum(counts, 1)).tolist()
    elif isinstance(given, list | tuple):
        weights = list(given)
        if len(weights) != len(class_names):
            raise InputError(
                f"class_weights has {len(weights)} numbers, but there are {len(class_names)} classes: "
                f"{', '.join(class_names)}"
            )
    else:
        raise InputError(f"class_weights must be 'balanced', a list or {{class: number}}, got {given!r}")
    for name, weight in zip(class_names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise InputError(f"class_weights: the weight of {name!r} must be a number above 0, got {weight!r}")
    return np.array(weights, np.float32) / np.float32(min(weights))


@dataclasses.dataclass(frozen=True, eq=False)
class Classification(Task):
    """The classification task.

    Args:
        config: `ClassificationConfig` with an `EncoderConfig`.
        data: `OpenedTexts`: rows, labels, vocabulary, order.
        objective: `Objective`.
    """

    config: ClassificationConfig
    data: OpenedTexts
    objective: Objective

    @property
    def loss_coefficients(self):
        """One loss. Where classes have weights, examples are counted besides, for what is averaged without weights."""
        counted = {} if self.objective.class_weights is None else {"examples": 0.0}
        return {"classification": 1.0} | counted

    @property
    def metric_names(self):
        """Names of the metrics, each with the loss whose weight divides it."""
        weighted = self.objective.class_weights is not None
        return {self.objective.metric_name: "examples" if weighted else "classification"}

    @property
    def output_columns(self):
        """Scores, labels, and 1 for an example or 0 for padding."""
        return self.objective.num_outputs + self.objective.label_columns + 1

    @property
    def tokens_per_example(self):
        """Tokens in a training row."""
        return self.data.sequence_length

    @property
    def has_evaluation(self):
        """Whether there are held-out examples."""
        return "held_out" in self.data.texts

    @property
    def data_rows(self):
        """Nothing: rows in memory cannot fail to be read."""
        return ()

    @property
    def fingerprints(self):
        """A text a split that changes when its content does."""
        return self.data.fingerprints

    @property
    def vocabulary_sha256(self):
        """SHA-256 of the vocabulary file."""
        return self.data.pieces.sha256

    @property
    def samples(self):
        """Texts that a finished run shows its answers to."""
        return tuple(self.config.samples)

    def description(self):
        return ModelDescription(
            encoder=self.config.encoder,
            vocabulary_size=self.data.vocabulary_size,
            lower_case=self.data.lower_case,
            **tokenizer_fields(self.data.pieces),
            labels=self.objective.class_names,
            objective=self.config.objective,
            pooling=self.config.pooling,
        )

    def save_description(self, folder):
        """Writes `model.json` and what lies beside it, and `class_weights.json` where classes have weights."""
        super().save_description(folder)
        if self.objective.class_weights is not None:
            weights = dict(zip(self.objective.class_names, self.objective.class_weights.tolist(), strict=True))
            storage.write_json(storage.join(folder, _WEIGHTS_NAME), weights)

    def build_model(self, *, seed, dtype):
        model = ClassificationModel(
            self.config.encoder,
            self.data.vocabulary_size,
            self.objective.num_outputs,
            pooling=self.config.pooling,
            pooler=self.config.pooler,
            dropout=self.config.dropout,
            seed=seed,
            dtype=dtype,
        )
        model.build()
        return model

    def training_dataset(self, **options):
        return self.data.training_dataset(**options)

    def evaluation_dataset(self, **options):
        return self.data.evaluation_dataset(**options)

    def prepare(self, examples, keys):
        del keys
        features = {name: examples[name] for name in ("token_ids", "document_ids", "labels")}
        features["segment_ids"] = self.segments(examples["segment_ids"])
        weights = ops.cast(examples.get("example_weight", ops.ones_like(examples["token_ids"][:, 0])), "float32")
        features["example_weights"] = weights
        features["loss_weights"] = weights * self.objective.example_weights(examples["labels"])
        return features

    def segments(self, segment_ids):
        """Returns segment ids as far as the encoder tells segments apart: RoBERTa, say, has one type alone."""
        return ops.minimum(segment_ids, max(self.config.encoder.type_vocabulary_size - 1, 0))

    def weights(self, features):
        weights = {"classification": ops.sum(features["loss_weights"])}
        if "examples" in self.loss_coefficients:
            weights["examples"] = ops.sum(features["example_weights"])
        return weights

    def sums(self, model, features, keys, embedding_offset=None):
        """See `Task.sums`: the loss is the mean over examples, each counting what its class weighs."""
        labels, weights = features["labels"], features["example_weights"]
        logits = model(
            features["token_ids"],
            features["segment_ids"],
            features["document_ids"],
            keys=keys,
            embedding_offset=embedding_offset,
        )
        losses = dict.fromkeys(self.loss_coefficients, ops.zeros([], "float32"))
        losses["classification"] = ops.sum(self.objective.example_losses(logits, labels) * features["loss_weights"])
        metrics = {self.objective.metric_name: ops.sum(self.objective.marks(logits, labels) * weights)}
        columns = [logits, ops.reshape(ops.cast(labels, "float32"), (-1, self.objective.label_columns))]
        return Sums(losses, metrics, outputs=ops.concatenate([*columns, weights[:, None]], axis=1))

    def output_metrics(self, outputs):
        """Returns what `Objective.data_set_metrics` says of all examples."""
        outputs = outputs[outputs[:, -1] > 0]
        number = self.objective.num_outputs
        return self.objective.data_set_metrics(outputs[:, :number], outputs[:, number:-1])

    def texts_in_file(self, path, report):
        """Returns the texts of a file in the format of the training data, labelled or not, or else its lines."""
        return classify_texts.texts_in_file(self.data, path, report)

    def predict(self, model, texts, top_k):
        """Classifies texts, see `trainer.tasks.classify_texts`."""
        return classify_texts.classify(self, model, texts, top_k)

    def show_predictions(self, answers, console):
        """Prints each text, and under it its classes with their probabilities, or its value."""
        classify_texts.show_answers(answers, console)

    def prediction_table(self, answers):
        """Returns the rows of a table of answers, the header first."""
        return classify_texts.answer_table(self, answers)

    def serving_signatures(self, model):
        """Returns `serving_default` (probabilities, or the value) and `encode` (hidden states)."""
        return classify_texts.serving_signatures(self, model)

    def serving_assets(self):
        """Returns the vocabulary file, and what the scores mean."""
        labels = {
            "objective": self.config.objective,
            "class_names": list(self.objective.class_names),
            "max_length": self.data.settings.max_length,
            "lower_case": self.data.lower_case,
            "pairs": self.data.pairs,
        }
        text = json.dumps(labels, indent=2, ensure_ascii=False) + "\n"
        return vocabulary_file(self.data.pieces) | {"labels.json": text.encode("utf-8")}

    def describe_example(self, examples, index):
        """Returns the tokens of a row without padding, and its label."""
        ids = examples["token_ids"][index]
        tokens = self.data.pieces.text(ids[examples["document_ids"][index] != 0])
        return f"{self.objective.shown_label(examples['labels'][index])}: {tokens}"

    def example_places(self, **options):
        """Returns the file and line of each example."""
        return self.data.example_places(**options)

    def describe_data(self, num_examples):
        """Returns examples, tokens, labels and epochs."""
        return self.data.describe(num_examples)

    def training_flops(self):
        encoder = self.config.encoder
        layers, _ = costs.forward_flops(encoder, **self._row())
        pooler = encoder.hidden_size if self.config.pooler else 0
        head = 2 * encoder.hidden_size * (pooler + self.objective.num_outputs)
        return (4 if encoder.rematerialize else 3) * layers + 3 * head

    def activation_bytes(self, compute_bytes):
        return costs.activation_bytes(self.config.encoder, compute_bytes=compute_bytes, **self._row())

    def _row(self):
        """What the costs of the encoder depend on; no token is predicted, so the head is not that of pretraining."""
        length = self.data.sequence_length
        return {"length": length, "predictions": 1 if self.config.pooling == "cls" else length, "vocabulary_size": 0}
