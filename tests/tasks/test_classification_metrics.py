"""Metrics equal those of scikit-learn and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from trainer.tasks import classification_metrics as ours

REFERENCE = sklearn.metrics


def random_classes(num_classes, seed, examples=200):
    """Predicted and actual classes that agree more often than by chance."""
    rng = np.random.default_rng(seed)
    actual = rng.choice(num_classes, examples, p=rng.dirichlet(np.ones(num_classes)))
    guesses = rng.integers(0, num_classes, examples)
    return np.where(rng.random(examples) < 0.6, actual, guesses), actual


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_classes(num_classes, seed):
    predicted, actual = random_classes(num_classes, seed)
    classes = list(range(num_classes))
    np.testing.assert_array_equal(
        ours.confusion_matrix(predicted, actual, num_classes),
        REFERENCE.confusion_matrix(actual, predicted, labels=classes),
    )
    assert ours.accuracy(predicted, actual) == pytest.approx(REFERENCE.accuracy_score(actual, predicted))
    assert ours.macro_f1(predicted[:, None] == classes, actual[:, None] == classes) == pytest.approx(
        REFERENCE.f1_score(actual, predicted, labels=classes, average="macro", zero_division=0)
    )
    assert ours.matthews_correlation(predicted, actual, num_classes) == pytest.approx(
        REFERENCE.matthews_corrcoef(actual, predicted)
    )
    if num_classes == 2:
        assert ours.f1(predicted == 1, actual == 1) == pytest.approx(REFERENCE.f1_score(actual, predicted))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_several_labels(seed):
    rng = np.random.default_rng(seed)
    actual = rng.random((150, 6)) < rng.random(6) * 0.5
    predicted = np.where(rng.random(actual.shape) < 0.7, actual, rng.random(actual.shape) < 0.3)
    predicted[:, 5] = actual[:, 5] = False  # a label that never applies
    for average, value in (("micro", ours.f1(predicted, actual)), ("macro", ours.macro_f1(predicted, actual))):
        assert value == pytest.approx(REFERENCE.f1_score(actual, predicted, average=average, zero_division=0))


@pytest.mark.parametrize("seed", range(3))
def test_correlations_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    actual = rng.integers(0, 6, 100).astype(np.float32)
    predicted = (actual + rng.normal(size=100)).astype(np.float32)
    predicted[20:40] = np.round(predicted[20:40])
    assert ours.pearson_correlation(predicted, actual) == pytest.approx(scipy.stats.pearsonr(predicted, actual)[0])
    assert ours.spearman_correlation(predicted, actual) == pytest.approx(scipy.stats.spearmanr(predicted, actual)[0])
    np.testing.assert_array_equal(ours.average_ranks(actual), scipy.stats.rankdata(actual))


def test_what_is_not_defined():
    zeros, mixed = np.zeros(4, int), np.array([0, 1, 0, 1])
    assert ours.f1(zeros > 0, zeros > 0) == 0.0
    assert ours.matthews_correlation(zeros, mixed, 2) == REFERENCE.matthews_corrcoef(mixed, zeros) == 0.0
    assert math.isnan(ours.pearson_correlation(zeros, mixed))
    assert math.isnan(ours.spearman_correlation(mixed, zeros))


def test_a_perfect_answer_is_one():
    actual = np.array([0, 2, 1, 1])
    assert ours.matthews_correlation(actual, actual, 3) == pytest.approx(1.0)
    assert ours.pearson_correlation(actual, 3 * actual - 1) == pytest.approx(1.0)
    assert ours.spearman_correlation(np.exp(actual), actual) == pytest.approx(1.0)
