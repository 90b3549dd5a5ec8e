"""One of several processes that accumulate gradients under MultiWorkerMirroredStrategy; `TF_CONFIG` says which one.

    python accumulating_process.py FOLDER NAME,NAME

Process 0 writes the weights of each optimizer and number of microbatches to FOLDER/weights.npz, those of `fit` to
FOLDER/fit.npz, and the numbers of reductions that were executed in each of four windows to FOLDER/reductions.json. All
write a checkpoint in mid-window to FOLDER/process_N, go on to the end of that window, and do so again from the checkpoint;
process 0 writes FOLDER/middle.npz.
"""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np

from trainer.environment import import_tensorflow_quietly

import_tensorflow_quietly(os.environ)

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from large_batches import (  # noqa: E402
    OPTIMIZERS,
    ROWS,
    SIZES,
    Loop,
    data,
    example_weights,
    make_model,
    split,
    weights_of,
)
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace  # noqa: E402

from trainer.optimizers.accumulation import GradientAccumulation  # noqa: E402
from trainer.optimizers.fitting import CountsExamples, FitsInSeveralProcesses  # noqa: E402


def executed_reductions(do, folder):
    """Returns how many reductions over the processes were executed meanwhile, as far as TensorFlow's profiler saw them."""
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory(dir=folder) as log:
        with tf.profiler.experimental.Profile(log, options):
            do()
            # A reduction may be done before the thread that began it has told the profiler so.
            for _ in range(20):
                tf.linalg.matmul(tf.ones((200, 200)), tf.ones((200, 200))).numpy()
        (path,) = pathlib.Path(log).glob("**/*.xplane.pb")
        space = XSpace.FromString(path.read_bytes())
    count = 0
    for plane in space.planes:
        reductions = {key for key, event in plane.event_metadata.items() if ":CollectiveReduce" in event.name}
        count += sum(event.metadata_id in reductions for line in plane.lines for event in line.events)
    return count


def new_loop(strategy, name, steps):
    return Loop(strategy, lambda: GradientAccumulation(OPTIMIZERS[name](), steps=steps, reduction="weighted"))


def train(strategy, name, steps, folder):
    """Returns the weights at the end, and the reductions in four of the windows."""
    loop = new_loop(strategy, name, steps)
    parts = split(*data(), SIZES[2 * steps], 2)
    windows = [parts[i : i + steps] for i in range(0, len(parts), steps)]
    for window in windows[:2]:
        loop.run(window)
    reductions = [executed_reductions(lambda window=window: loop.run(window), folder) for window in windows[2:6]]
    for window in windows[6:]:
        loop.run(window)
    return loop.weights(), reductions


class FittingModel(CountsExamples, FitsInSeveralProcesses, keras.Model):
    """What people use in `fit` in several processes where microbatches weigh differently."""


def fit(strategy, name, steps):
    """Returns the weights after `fit` with uneven weights, and a metric of `evaluate`."""
    with strategy.scope():
        model = make_model(FittingModel)
        optimizer = GradientAccumulation(OPTIMIZERS[name](), steps=steps, reduction="weighted")
        model.compile(optimizer, keras.losses.MeanSquaredError(reduction="sum"), metrics=["mae"])
    options = {"sample_weight": example_weights(), "batch_size": ROWS // steps, "verbose": 0}
    model.fit(*data(), shuffle=False, **options)
    return weights_of(model), model.evaluate(*data(), **options)[1]


def middle(strategy, path):
    """Returns the weights of a run that went on in mid-window, and of one that began there from a checkpoint."""
    parts = split(*data(2), SIZES[4], 2)
    loop, again = (new_loop(strategy, "keras adamw", 2) for _ in range(2))
    loop.run(parts[:3])
    tf.train.Checkpoint(model=loop.model, optimizer=loop.optimizer).write(path)
    tf.train.Checkpoint(model=again.model, optimizer=again.optimizer).read(path).assert_consumed()
    loop.run(parts[3:])
    again.run(parts[3:])
    return loop.weights(), again.weights()


def main(folder, names):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    process = strategy.cluster_resolver.task_id
    weights, fitted, reductions = {}, {}, {}
    for name in names:
        for steps in (1, 2, 4):
            values, reductions[f"{name}/{steps}"] = train(strategy, name, steps, folder)
            weights |= {f"{name}/{steps}/{i}": value for i, value in enumerate(values)}
        values, fitted[f"{name}/error"] = fit(strategy, name, steps=4)
        fitted |= {f"{name}/{i}": value for i, value in enumerate(values)}
    one, other = middle(strategy, str(folder / f"process_{process}" / "middle"))
    if process == 0:
        np.savez(folder / "weights.npz", **weights)
        np.savez(folder / "fit.npz", **fitted)
        np.savez(folder / "middle.npz", **{f"{way}/{i}": v for way in (0, 1) for i, v in enumerate((one, other)[way])})
        (folder / "reductions.json").write_text(json.dumps(reductions))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2].split(","))
