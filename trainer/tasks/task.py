"""What a task is: the contract between what is learnt and how the step learns it.

A task knows its data, its model and its losses; it knows nothing of strategies, replicas or accumulation. Every loss is
given as a *sum* over examples together with the *weight* it will be divided by, summed over the whole global batch by
the step. That is why a loss does not depend on how a batch was split.
"""

import abc
import dataclasses

from trainer.data.labelled_texts import read_lines, without_empty
from trainer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one microbatch contributes.

    Attributes:
        losses: `{loss name: scalar float32}`, sums over the examples, not yet divided by anything.
        metrics: `{metric name: scalar float32}`, sums too; reported over the weight of the loss it belongs to.
        outputs: `[microbatch, Task.output_columns]` float32, a row an example, for metrics that are no sums; None where
            the task has no such columns. Evaluation collects them; in training nothing is computed for them.
    """

    losses: dict
    metrics: dict
    outputs: object = None


class Task(abc.ABC):
    """One thing to learn.

    Attributes:
        loss_coefficients: `{loss name: float}`: the total loss is their weighted sum.
        metric_names: `{metric name: loss name}`: each metric and the loss whose weight divides it.
        tokens_per_example: tokens in a row, for rates.
        has_evaluation: whether there are held-out examples.
        data_rows: the `StoredRows` that are read, for explaining read errors.
        fingerprints: texts that change when the content of the data, or its shares, do.
        vocabulary_sha256: what tells the vocabulary from another.
        samples: texts that a finished run shows its predictions for.
        output_columns: numbers that an example contributes to `output_metrics`; 0 if there are no such metrics.
    """

    loss_coefficients: dict
    metric_names: dict
    tokens_per_example: int
    has_evaluation: bool
    data_rows: tuple
    fingerprints: tuple
    vocabulary_sha256: str
    samples: tuple
    output_columns: int = 0

    @abc.abstractmethod
    def description(self):
        """Returns the `trainer.weights.description.ModelDescription` of the model, which travels with its weights."""

    def save_description(self, folder):
        """Writes what must be known of the model besides its weights; whoever goes on with it, or uses it, reads it."""
        self.description().save(folder)

    @abc.abstractmethod
    def build_model(self, *, seed, dtype):
        """Makes the model, a built Keras layer; called inside the strategy's scope.

        Args:
            seed: integer for the initial weights.
            dtype: Keras dtype policy name.
        """

    @abc.abstractmethod
    def training_dataset(self, *, seed, start_step, global_batch, rows_per_element, host, num_hosts):
        """Returns an endless `tf.data.Dataset` of this host's examples in order, see `trainer.data.lanes`."""

    @abc.abstractmethod
    def evaluation_dataset(self, *, global_batch, rows_per_element, host, num_hosts):
        """Returns `(dataset, number of steps)` that holds every held-out example exactly once."""

    def input_advice(self, processor_share, num_hosts):
        """Returns why examples may come too slowly, and what to change.

        Args:
            processor_share: share of the processors' time that this process uses.
            num_hosts: hosts that read the data.
        """
        del num_hosts
        return f"the processors are {processor_share:.0%} busy. Use a machine with more cores"

    @abc.abstractmethod
    def prepare(self, examples, keys):
        """Turns examples into features: masks tokens, say. `keras.ops` only; compiled.

        Args:
            examples: dict of tensors `[batch, ...]` of the data set.
            keys: `Keys` of the examples.

        Returns:
            dict of tensors `[batch, ...]`.
        """

    @abc.abstractmethod
    def weights(self, features):
        """Returns `{loss name: scalar float32}`, known from the features alone: masked tokens, examples, ..."""

    @abc.abstractmethod
    def sums(self, model, features, keys, embedding_offset=None):
        """Runs the model on one microbatch.

        Args:
            model: what `build_model` returned.
            features: dict of tensors `[microbatch, ...]`.
            keys: `Keys` of the examples for dropout, or None to drop nothing.
            embedding_offset: `[microbatch, length, size of a word vector]` float32, added to the vectors of the
                feature `token_ids` where they are looked up; None for nothing.

        Returns:
            `Sums`.
        """

    def word_embeddings(self, model):
        """Returns the layer of a model that looks up word vectors: its table is `embeddings`, their size `output_dim`.

        Args:
            model: what `build_model` returned.
        """
        return model.encoder.embeddings.word_embeddings

    def output_metrics(self, outputs):
        """Returns `{metric name: float}`: metrics that are no sums over examples, such as F1 or a correlation.

        Args:
            outputs: `[examples, output_columns]` float32 NumPy array, what `Sums.outputs` were of all held-out examples
                in the order of the data, padding included: a column must tell it by its weight of 0.
        """
        del outputs
        return {}

    def report(self, metrics):
        """Returns metrics for people and files, made of averaged ones: adds perplexity, say.

        Args:
            metrics: dict of names to floats.
        """
        return metrics

    def texts_in_file(self, path, report):
        """Returns the list of texts that a file holds for `predict`: its lines, unless the task knows other files.

        Args:
            path: of a file that is there.
            report: callable that shows one line to a person.

        Raises:
            InputError: if it cannot be read.
        """
        return without_empty(read_lines(path), path, report)

    @abc.abstractmethod
    def predict(self, model, texts, top_k):
        """Answers for texts.

        Args:
            model: what `build_model` returned.
            texts: list of strings.
            top_k: number of answers where there are several; None for as many as a file of answers should hold.

        Returns:
            list of dicts that JSON can hold, one a text, each with `text`.
        """

    @abc.abstractmethod
    def show_predictions(self, answers, console):
        """Prints what `predict` returned for a person, on a `rich.console.Console`."""

    def prediction_table(self, answers):
        """Returns the rows of a table of what `predict` returned: lists of texts, as they are, the header first.

        Raises:
            InputError: if the answers of this task make no table.
        """
        raise InputError("the answers of this task make no table: give --output a name that ends in .jsonl, say")

    @abc.abstractmethod
    def serving_signatures(self, model):
        """Returns `{signature name: concrete TensorFlow function}` for a SavedModel."""

    def serving_assets(self):
        """Returns `{file name: bytes}` that travel with a SavedModel, such as the vocabulary."""
        return {}

    @abc.abstractmethod
    def describe_example(self, examples, index):
        """Returns one example of a batch as text for a person.

        Args:
            examples: dict of NumPy arrays `[batch, ...]`.
            index: which one.
        """

    @abc.abstractmethod
    def example_places(self, *, seed, first_example, num_examples):
        """Returns, for examples counted from the start of the run, texts that say where each is stored."""

    @abc.abstractmethod
    def describe_data(self, num_examples):
        """Returns `(name, text)` pairs that say what a run over so many examples sees of the data."""

    @abc.abstractmethod
    def training_flops(self):
        """Returns the floating-point operations of one example's training step."""

    @abc.abstractmethod
    def activation_bytes(self, compute_bytes):
        """Returns an estimate of the memory of one example's activations, for numbers of `compute_bytes` bytes."""
