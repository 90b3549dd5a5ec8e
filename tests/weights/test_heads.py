"""Heads that a run starts from were trained for what the run trains them for, as far as anybody knows."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf
from small_weights import CONFIG, PIECES, small_model, small_source, values_of, variables_of

from trainer.errors import InputError
from trainer.optimizers.parameters import parameters_of
from trainer.training.initial_weights import load_initial_weights
from trainer.weights.description import ModelDescription
from trainer.weights.loading import load_weights
from trainer.weights.writing import write_weights

HEADS = ("pooler", "classifier")
TRAINED_FOR = {"labels": ("no", "yes"), "objective": "single_label", "pooling": "cls"}


@pytest.fixture
def weights(tmp_path):
    """A function that writes a classifier as a checkpoint of ours, and returns its folder."""

    def write(config=CONFIG, heads=HEADS, **fields):
        write_weights(small_source(config, heads=heads, **fields), str(tmp_path / "in"), "checkpoint")
        return str(tmp_path / "in")

    return write


def load(path, heads=HEADS, config=CONFIG, reinitialize=(), **fields):
    """Loads weights as a run does into a model for which its task has a description."""
    description = ModelDescription(
        encoder=config, vocabulary_size=len(PIECES), pieces=PIECES, lower_case=True, **TRAINED_FOR | fields
    )
    model = small_model(config, heads=heads, labels=description.labels)
    before = values_of(model)
    weights = {variable.path: variable for variable in model.trainable_variables}
    state = types.SimpleNamespace(
        all_parameters=parameters_of(model), checkpoint_variables=lambda: {"weights": weights}
    )
    return load_initial_weights(path, state, description, reinitialize), before, values_of(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("yes", "no")}, "class_names is ('yes', 'no'), in the weights ('no', 'yes')"),
        ({"labels": ("a", "b", "c")}, "class_names is ('a', 'b', 'c'), in the weights ('no', 'yes')"),
        ({"objective": "multi_label"}, "objective is 'multi_label', in the weights 'single_label'"),
        ({"pooling": "mean"}, "pooling is 'mean', in the weights 'cls'"),
    ],
)
def test_a_classifier_for_something_else_is_refused_unless_it_begins_anew(weights, fields, message):
    path = weights(**TRAINED_FOR)
    with pytest.raises(InputError) as refused:
        load(path, **fields)
    assert message in str(refused.value) and "run.reinitialize = ['classifier/']" in str(refused.value)
    report, before, after = load(path, reinitialize=["classifier/"], **fields)
    assert not report.missing and not report.unused
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("classifier/")


@pytest.mark.parametrize(
    ("known", "fields"),
    [
        (TRAINED_FOR, {}),
        (TRAINED_FOR | {"labels": ("LABEL_0", "LABEL_1")}, {"labels": ("no", "yes")}),
        (
            {"labels": ("LABEL_0",), "objective": "regression", "pooling": "cls"},
            {"labels": (), "objective": "regression"},
        ),
        ({"labels": ("no", "yes")}, {"pooling": "mean"}),  # which the weights do not know
    ],
)
def test_what_nobody_knows_or_is_the_same_is_no_difference(weights, known, fields):
    report, _, after = load(weights(**known), **fields)
    assert not report.missing and "classifier/classifier/kernel" in report.loaded
    source = small_source(heads=HEADS, **known)
    np.testing.assert_array_equal(after["classifier/classifier/kernel"], source.read("classifier/classifier/kernel"))


def test_a_pooler_of_another_activation_is_refused_unless_it_begins_anew(weights):
    path = weights(dataclasses.replace(CONFIG, pooler_activation="relu"), ("pooler",))
    with pytest.raises(InputError) as refused:
        load(path, ("pooler",))
    assert "encoder.pooler_activation is 'tanh', in the weights 'relu'" in str(refused.value)
    assert "run.reinitialize = ['pooler/']" in str(refused.value)
    load(path, ("pooler",), reinitialize=["pooler/"])
    load(path, ("masked_language_model",))  # the encoder alone is the same


@pytest.mark.parametrize("option", ["prediction_bias", "prediction_transform"])
def test_what_a_model_leaves_of_its_own_head_is_refused_unless_allowed(option):
    source = small_source()
    config = dataclasses.replace(CONFIG, **{option: False})
    model = small_model(config)
    with pytest.raises(InputError, match=r"masked_language_model/\w+.* belongs to nothing in this model") as refused:
        load_weights(source, variables_of(model))
    assert "allow_unused_weights" in str(refused.value) and "reinitialize" not in str(refused.value)
    assert load_weights(source, variables_of(model), allow_unused=["^masked_language_model/"]).unused
    report = load_weights(source, variables_of(small_model(heads=())))  # of heads that the model lacks it is said
    assert {name.partition("/")[0] for name in report.unused} == {"masked_language_model", "pooler", "sentence_pair"}


def test_another_shape_of_a_head_says_how_to_begin_anew(weights):
    with pytest.raises(InputError) as refused:
        load(weights(**TRAINED_FOR | {"labels": ("LABEL_0", "LABEL_1")}), labels=("a", "b", "c"))
    assert "classifier/classifier/kernel has shape (16, 2) in the weights and (16, 3)" in str(refused.value)
    assert "run.reinitialize = ['classifier/']" in str(refused.value) and "allow_" not in str(refused.value)


def test_another_shape_in_the_encoder_has_no_such_way_out():
    variables = variables_of(small_model()) | {"encoder/embeddings/norm/beta": tf.Variable(tf.zeros([17]))}
    with pytest.raises(InputError) as refused:
        load_weights(small_source(), variables)
    assert "norm/beta has shape (16,)" in str(refused.value)
    assert "reinitialize" not in str(refused.value) and "allow_" not in str(refused.value)
