"""Metrics of predicted classes and numbers over a whole data set, in NumPy.

Averages over batches would be wrong for these: they are functions of all examples together. Where a metric is not
defined (0/0: no example of a class, a constant) it is 0, as in scikit-learn, but for correlations of constants, which are
NaN there and here.
"""

import numpy as np


def accuracy(predicted, actual):
    """Returns the share of equal entries of two arrays of one shape."""
    return float(np.mean(np.asarray(predicted) == np.asarray(actual)))


def confusion_matrix(predicted, actual, num_classes):
    """Returns `[classes, classes]` counts: how many examples of the row's class were taken for the column's.

    Args:
        predicted, actual: `[examples]` integers below `num_classes`.
        num_classes: number of classes.
    """
    cells = np.asarray(actual, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def f1(predicted, actual):
    """Returns F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; 0 without any positive.

    Args:
        predicted, actual: booleans of one shape, true for the positive class. Of several labels an example
            (`[examples, labels]`) this is micro-averaged F1.
    """
    predicted, actual = np.asarray(predicted, bool), np.asarray(actual, bool)
    positives = int(predicted.sum()) + int(actual.sum())
    return float(2 * (predicted & actual).sum() / positives) if positives else 0.0


def macro_f1(predicted, actual):
    """Returns the mean over labels of F1.

    Args:
        predicted, actual: `[examples, labels]` booleans; for one class an example, the one-hot code of it.
    """
    predicted, actual = np.asarray(predicted, bool), np.asarray(actual, bool)
    return float(np.mean([f1(predicted[:, label], actual[:, label]) for label in range(actual.shape[1])]))


def matthews_correlation(predicted, actual, num_classes):
    """Returns Matthews' correlation coefficient, also of more than two classes (Gorodkin 2004, equation 8).

    Args:
        predicted, actual: `[examples]` integers below `num_classes`.
        num_classes: number of classes.

    Returns:
        a float in [-1, 1]; 0 where all predictions, or all examples, are of one class.
    """
    counts = confusion_matrix(predicted, actual, num_classes).astype(np.float64)
    right, examples = np.trace(counts), counts.sum()
    per_actual, per_predicted = counts.sum(axis=1), counts.sum(axis=0)
    covariance = right * examples - per_actual @ per_predicted
    spread = (examples**2 - per_predicted @ per_predicted) * (examples**2 - per_actual @ per_actual)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson_correlation(predicted, actual):
    """Returns Pearson's correlation coefficient of two arrays `[examples]`; NaN if one of them is constant."""
    predicted, actual = (np.asarray(values, np.float64) for values in (predicted, actual))
    predicted, actual = predicted - predicted.mean(), actual - actual.mean()
    spread = np.sqrt((predicted @ predicted) * (actual @ actual))
    return float(np.clip(predicted @ actual / spread, -1.0, 1.0)) if spread > 0 else float("nan")


def spearman_correlation(predicted, actual):
    """Returns Spearman's rank correlation of two arrays `[examples]`: Pearson's of the ranks, equals sharing their mean."""
    return pearson_correlation(average_ranks(predicted), average_ranks(actual))


def average_ranks(values):
    """Returns the ranks of `[examples]` numbers, from 1; equal numbers have the mean of the ranks they take up."""
    _, group, sizes = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]
