"""Starting from the weights of another run."""

import dataclasses

import numpy as np
import pytest
from small_runs import PIECES, SMALL_ENCODER, VOCABULARY_SIZE, small_run

from trainer.errors import InputError
from trainer.optimizers.recipes import sgd
from trainer.optimizers.schedules import ConstantSchedule
from trainer.optimizers.transformations import Lookahead
from trainer.training.checkpoints import CheckpointManager
from trainer.training.evaluation_weights import evaluation_weights
from trainer.training.initial_weights import load_initial_weights
from trainer.weights.description import ModelDescription

DESCRIPTION = ModelDescription(
    encoder=SMALL_ENCODER, vocabulary_size=VOCABULARY_SIZE, pieces=tuple(PIECES), lower_case=True
)


def assert_same(name, value, expected):
    """Asserts that two arrays are the same but for rows of padding, which no token has."""
    rows = slice(VOCABULARY_SIZE) if name.endswith(("word_embeddings/embeddings", "output_bias")) else slice(None)
    np.testing.assert_array_equal(value[rows], expected[rows], err_msg=name)


@pytest.fixture
def run_folder(tmp_path):
    """A run directory with one checkpoint, and the weights in it."""
    run = small_run(seed=5)
    DESCRIPTION.save(str(tmp_path))
    manager = CheckpointManager(str(tmp_path / "checkpoints"), run.state.checkpoint_variables())
    assert manager.save(7, wait=True)
    assert not manager.save(7, wait=True)
    return tmp_path, run.weights()


def test_weights_of_a_run_are_taken_and_nothing_else(run_folder):
    folder, weights = run_folder
    run = small_run(seed=6)
    report = load_initial_weights(str(folder), run.state, DESCRIPTION)
    assert report.missing == report.unused == () and len(report.loaded) == len(weights)
    assert "step 7" in report.summary()
    for name, value in run.weights().items():
        assert_same(name, value, weights[name])
    assert int(run.state.step) == 0


def test_parameters_that_are_to_be_reinitialized_keep_their_random_values(run_folder):
    folder, weights = run_folder
    run = small_run(seed=6, frozen=("embeddings/",))
    before = run.weights()
    load_initial_weights(str(folder), run.state, DESCRIPTION, ("LAYER_0/", "masked_language_model"))
    for name, value in run.weights().items():
        kept = "layer_0/" in name or "masked_language_model" in name
        assert_same(name, value, (before if kept else weights)[name])


def test_a_pattern_that_reinitializes_nothing_is_refused(run_folder):
    with pytest.raises(InputError, match=r"run\.reinitialize: no parameter has 'layer_7' in its name"):
        load_initial_weights(str(run_folder[0]), small_run().state, DESCRIPTION, ("layer_0", "layer_7"))


def test_damaged_weights_are_refused(run_folder):
    folder, _ = run_folder
    data = folder / "checkpoints" / "step_00000007" / "weights.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.*weights\.data"):
        load_initial_weights(str(folder / "checkpoints" / "step_00000007"), small_run().state, DESCRIPTION)


def test_weights_of_another_vocabulary_are_refused(run_folder):
    folder, _ = run_folder
    pieces = list(PIECES)
    pieces[7], pieces[9] = pieces[9], pieces[7]
    with pytest.raises(InputError, match=f"another vocabulary: id 7 is '{PIECES[9]}'"):
        load_initial_weights(str(folder), small_run().state, dataclasses.replace(DESCRIPTION, pieces=tuple(pieces)))


def test_weights_of_another_architecture_are_refused_though_their_shapes_fit(run_folder):
    folder, _ = run_folder
    encoder = dataclasses.replace(SMALL_ENCODER, num_heads=4)
    with pytest.raises(InputError, match=r"encoder\.num_heads is 4, in the weights 2"):
        load_initial_weights(str(folder), small_run().state, dataclasses.replace(DESCRIPTION, encoder=encoder))


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no weights"):
        load_initial_weights(str(tmp_path), small_run().state, DESCRIPTION)


def test_slow_weights_start_from_the_loaded_ones(run_folder):
    folder, weights = run_folder
    optimizer = sgd(learning_rate=ConstantSchedule(peak=0.1), transformations=(Lookahead(),))
    run = small_run(seed=6, optimizer=optimizer)
    load_initial_weights(str(folder), run.state, DESCRIPTION)
    for _ in range(2):  # before and after the first step
        with evaluation_weights(optimizer, run.state):
            for name, value in run.weights().items():
                assert_same(name, value, weights[name])
        run.train(1)
