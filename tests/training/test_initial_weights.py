"""Starting from the weights of another run."""

import numpy as np
import pytest
from small_runs import small_run

from trainer.errors import InputError
from trainer.optimizers.recipes import sgd
from trainer.optimizers.schedules import ConstantSchedule
from trainer.optimizers.transformations import Lookahead
from trainer.training.checkpoints import CheckpointManager
from trainer.training.evaluation_weights import evaluation_weights
from trainer.training.initial_weights import load_initial_weights


@pytest.fixture
def run_folder(tmp_path):
    """A run directory with one checkpoint, and the weights in it."""
    run = small_run(seed=5)
    metadata = {"vocabulary": "vocabulary"}
    manager = CheckpointManager(
        str(tmp_path / "checkpoints"), run.state.checkpoint_variables(), metadata=lambda: metadata
    )
    assert manager.save(7, wait=True)
    assert not manager.save(7, wait=True)
    return tmp_path, run.weights()


def test_weights_of_a_run_are_taken_and_nothing_else(run_folder):
    folder, weights = run_folder
    run = small_run(seed=6)
    assert load_initial_weights(str(folder), run.state, "vocabulary") == 7
    for name, value in run.weights().items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    assert int(run.state.step) == 0


def test_damaged_weights_are_refused(run_folder):
    folder, _ = run_folder
    data = folder / "checkpoints" / "step_00000007" / "weights.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.*weights\.data"):
        load_initial_weights(str(folder / "checkpoints" / "step_00000007"), small_run().state, "vocabulary")


def test_weights_of_another_vocabulary_are_refused(run_folder):
    folder, _ = run_folder
    with pytest.raises(InputError, match="another vocabulary"):
        load_initial_weights(str(folder), small_run().state, "another")


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_initial_weights(str(tmp_path), small_run().state, "vocabulary")


def test_slow_weights_start_from_the_loaded_ones(run_folder):
    folder, weights = run_folder
    optimizer = sgd(learning_rate=ConstantSchedule(peak=0.1), transformations=(Lookahead(),))
    run = small_run(seed=6, optimizer=optimizer)
    load_initial_weights(str(folder), run.state, "vocabulary")
    for _ in range(2):  # before and after the first step
        with evaluation_weights(optimizer, run.state):
            for name, value in run.weights().items():
                np.testing.assert_array_equal(value, weights[name], err_msg=name)
        run.train(1)
