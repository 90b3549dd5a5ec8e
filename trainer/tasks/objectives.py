"""What a classifier's scores mean: one class of several, any number of labels, or a number.

An objective knows the loss, what counts as right, which metrics of a whole data set are of use, and how an answer is
told. Labels are as `trainer.data.labelled_texts.label_numbers` makes them.
"""

import abc

import numpy as np
from keras import ops

from trainer.tasks import classification_metrics as metrics
from trainer.tasks.losses import correct, cross_entropy

_LIKELY = 0.5  # a label of several is taken to apply from this probability on


class Objective(abc.ABC):
    """How scores are learnt and understood.

    Args:
        class_names: tuple of the classes, in the order of the scores.
        class_weights: `[classes]` float32 array, what an example of each class counts in the loss; None for 1.

    Attributes:
        metric_name: what the mean of `marks` is called.
        num_outputs: scores of an example.
        label_columns: numbers that the labels of an example take up.
    """

    metric_name: str

    def __init__(self, class_names, class_weights=None):
        self.class_names = tuple(class_names)
        self.class_weights = class_weights
        self.num_outputs = len(self.class_names)
        self.label_columns = 1

    def example_weights(self, labels):
        """Returns `[batch]` float32: what each example counts in the loss, by its labels alone."""
        return ops.ones(ops.shape(labels)[:1], "float32")

    @abc.abstractmethod
    def example_losses(self, logits, labels):
        """Returns `[batch]` float32, not yet times `example_weights`.

        Args:
            logits: `[batch, num_outputs]` float32.
            labels: `[batch, ...]`.
        """

    @abc.abstractmethod
    def marks(self, logits, labels):
        """Returns `[batch]` float32, how right or wrong each example is; arguments as in `example_losses`."""

    @abc.abstractmethod
    def probabilities(self, logits):
        """Returns `[batch, num_outputs]` float32: probabilities, or whatever the scores stand for."""

    @abc.abstractmethod
    def data_set_metrics(self, logits, labels):
        """Returns `{metric name: float}` of a whole data set.

        Args:
            logits: `[examples, num_outputs]` NumPy array.
            labels: `[examples, label_columns]` NumPy array.
        """

    @abc.abstractmethod
    def answer(self, probabilities, top_k):
        """Returns what is said of a text: a dict that JSON can hold.

        Args:
            probabilities: `[num_outputs]` NumPy array.
            top_k: how many classes are told with their probabilities, the likeliest ones; None for all.
        """

    @abc.abstractmethod
    def shown_label(self, labels):
        """Returns the labels of one example as text."""

    def _likeliest(self, probabilities, top_k):
        """Returns `{class: probability}` of the likeliest classes, falling."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return {self.class_names[number]: float(probabilities[number]) for number in order}


class SingleLabel(Objective):
    """One class an example: softmax cross entropy; the accuracy is that of the class with the greatest score."""

    metric_name = "accuracy"

    def example_weights(self, labels):
        if self.class_weights is None:
            return super().example_weights(labels)
        return ops.take(ops.convert_to_tensor(self.class_weights), labels)

    def example_losses(self, logits, labels):
        return cross_entropy(logits, labels)

    def marks(self, logits, labels):
        return correct(logits, labels)

    def probabilities(self, logits):
        return ops.softmax(logits)

    def data_set_metrics(self, logits, labels):
        """F1 of the second of two classes, macro F1 over all, Matthews' correlation."""
        predicted, actual = logits.argmax(axis=1), labels[:, 0].astype(np.int64)
        classes = np.arange(self.num_outputs)
        result = {"f1": metrics.f1(predicted == 1, actual == 1)} if self.num_outputs == 2 else {}
        return result | {
            "f1_macro": metrics.macro_f1(predicted[:, None] == classes, actual[:, None] == classes),
            "matthews_correlation": metrics.matthews_correlation(predicted, actual, self.num_outputs),
        }

    def answer(self, probabilities, top_k):
        return {
            "label": self.class_names[probabilities.argmax()],
            "probabilities": self._likeliest(probabilities, top_k),
        }

    def shown_label(self, labels):
        return self.class_names[labels]


class MultiLabel(Objective):
    """Any number of labels an example: the mean over the labels of sigmoid cross entropies, weighted by `class_weights`.

    Accuracy is that of single labels, too: the share of them that is told rightly.
    """

    metric_name = "accuracy"

    def __init__(self, class_names, class_weights=None):
        super().__init__(class_names, class_weights)
        self.label_columns = self.num_outputs

    def example_losses(self, logits, labels):
        losses = ops.binary_crossentropy(ops.cast(labels, "float32"), logits, from_logits=True)
        if self.class_weights is None:
            return ops.mean(losses, axis=1)
        return ops.sum(losses * (self.class_weights / self.class_weights.sum()), axis=1)

    def marks(self, logits, labels):
        return ops.mean(ops.cast((logits >= 0) == ops.cast(labels, "bool"), "float32"), axis=1)

    def probabilities(self, logits):
        return ops.sigmoid(logits)

    def data_set_metrics(self, logits, labels):
        """F1 over all decisions (micro), mean over the labels (macro), and the share of examples without any mistake."""
        predicted, actual = logits >= 0, labels > 0
        return {
            "f1_micro": metrics.f1(predicted, actual),
            "f1_macro": metrics.macro_f1(predicted, actual),
            "exact_match": float((predicted == actual).all(axis=1).mean()),
        }

    def answer(self, probabilities, top_k):
        likely = [name for name, value in zip(self.class_names, probabilities, strict=True) if value >= _LIKELY]
        return {"labels": likely, "probabilities": self._likeliest(probabilities, top_k)}

    def shown_label(self, labels):
        return ", ".join(name for name, applies in zip(self.class_names, labels, strict=True) if applies) or "none"


class Regression(Objective):
    """A number an example: squared error."""

    metric_name = "mean_squared_error"

    def __init__(self, class_names=(), class_weights=None):
        super().__init__(class_names, class_weights)
        self.num_outputs = 1

    def example_losses(self, logits, labels):
        return ops.square(logits[:, 0] - labels)

    def marks(self, logits, labels):
        return self.example_losses(logits, labels)

    def probabilities(self, logits):
        return logits

    def data_set_metrics(self, logits, labels):
        """Pearson's and Spearman's correlation of predicted and actual numbers."""
        return {
            "pearson_correlation": metrics.pearson_correlation(logits[:, 0], labels[:, 0]),
            "spearman_correlation": metrics.spearman_correlation(logits[:, 0], labels[:, 0]),
        }

    def answer(self, probabilities, top_k):
        return {"value": float(probabilities[0])}

    def shown_label(self, labels):
        return f"{labels:.6g}"


OBJECTIVES = {"single_label": SingleLabel, "multi_label": MultiLabel, "regression": Regression}
