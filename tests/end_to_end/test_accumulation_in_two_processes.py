"""GradientAccumulation under MultiWorkerMirroredStrategy: weights, checkpoints, executed reductions, fit."""

import contextlib
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from large_batches import (
    OPTIMIZERS,
    SIZES,
    THE_SEVEN,
    Loop,
    assert_same,
    data,
    example_weights,
    large_batches,
    make_model,
    split,
    weights_of,
)
from trainer_process import ROOT, Process

from launch.local import reserve_ports
from trainer.optimizers.accumulation import GradientAccumulation

pytestmark = pytest.mark.slow  # starts two processes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that two processes have written."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = str(pathlib.Path(__file__).with_name("accumulating_process.py"))
    sockets = reserve_ports(2)
    cluster = {"worker": [f"127.0.0.1:{socket.getsockname()[1]}" for socket in sockets]}
    with contextlib.ExitStack() as stack:
        for socket in sockets:
            stack.enter_context(socket)
        processes = [
            stack.enter_context(
                Process(
                    script,
                    str(folder),
                    ",".join(THE_SEVEN),
                    TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
                    TF_GRPC_REUSE_PORT="true",
                    PYTHONPATH=os.pathsep.join([ROOT, os.path.join(ROOT, "tests")]),
                )
            )
            for index in range(2)
        ]
        for finished in [process.finish() for process in processes]:
            assert finished.code == 0, finished.text
    return folder


def arrays(file, prefix):
    """Returns the four weights of the model that a file has as `prefix/0`, `prefix/1`, ..., a list."""
    with np.load(file) as content:
        return [content[f"{prefix}/{i}"] for i in range(4)]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", THE_SEVEN)
def test_two_processes_give_the_weights_of_one_large_batch(results, name, steps):
    assert_same(arrays(results / "weights.npz", f"{name}/{steps}"), large_batches(OPTIMIZERS[name]))


def test_one_reduction_a_window_is_executed_whatever_its_length(results):
    found = json.loads((results / "reductions.json").read_text())
    assert found.keys() == {f"{name}/{steps}" for name in THE_SEVEN for steps in (1, 2, 4)}
    # The profiler never sees more than there is, and once in a while misses one.
    assert all(max(counts) <= 1 for counts in found.values())
    assert sum(map(sum, found.values())) >= 0.9 * 4 * len(found)


@pytest.mark.parametrize("name", THE_SEVEN)
def test_fit_gives_the_weights_of_large_batches_and_evaluates(results, name):
    expected = large_batches(OPTIMIZERS[name], weights=example_weights())
    assert_same(arrays(results / "fit.npz", name), expected)
    with np.load(results / "fit.npz") as content:
        error = content[f"{name}/error"]
    model, (x, y) = make_model(), data()
    model.set_weights(expected)
    assert error == pytest.approx(np.mean(np.abs(model(x) - y)), rel=1e-5)


def test_they_go_on_from_a_checkpoint_in_mid_window(results):
    expected = large_batches(OPTIMIZERS["keras adamw"], 2)
    for way in ("0", "1"):  # without stopping, and from the checkpoint
        assert_same(arrays(results / "middle.npz", way), expected)


@pytest.mark.parametrize("replicas", [0, 1, 2, 4])
def test_one_process_goes_on_from_their_checkpoint_in_mid_window(results, replicas):
    loop = Loop(replicas, lambda: GradientAccumulation(OPTIMIZERS["keras adamw"](), steps=9, reduction="weighted"))
    checkpoint = tf.train.Checkpoint(model=loop.model, optimizer=loop.optimizer)
    checkpoint.read(str(results / "process_0" / "middle")).assert_consumed()
    (left,) = split(*data(2), SIZES[4], 2)[3:]
    x, y = data(1)
    if replicas == 4:
        left = [*left, (x[:0], y[:0]), (x[:0], y[:0])]
    loop.run([[piece] for piece in left] if replicas < 2 else [left])
    assert int(loop.optimizer.microbatches.numpy()) == 3 + (2 if replicas < 2 else 1)
    loop.optimizer.flush()
    assert_same(weights_of(loop.model), large_batches(OPTIMIZERS["keras adamw"], 2))
