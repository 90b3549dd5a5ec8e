"""Outputs of evaluation: of every example once, in the order of the data, from the same pass as the losses."""

import contextlib
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_runs import random_examples, small_task, strategy_of

from launch.local import reserve_ports
from trainer.distribution import divide_batch
from trainer.tasks.losses import cross_entropy
from trainer.tasks.pretraining import Pretraining
from trainer.tasks.task import Sums
from trainer.training.evaluation import EvaluationStep

GLOBAL_BATCH, NUM_STEPS = 8, 3
NUM_EXAMPLES = GLOBAL_BATCH * NUM_STEPS - 5  # the others are padding


class CountingTask(Pretraining):
    """Pretraining with columns: the example's number, its number of tokens, the score of its first answer, its weight."""

    output_columns = 4

    def prepare(self, examples, keys):
        names = ("example_index", "example_weight")
        return super().prepare(examples, keys) | {name: examples[name] for name in names}

    def sums(self, model, features, keys, embedding_offset=None):
        logits, _ = model(*(features[name] for name in ("token_ids", "segment_ids", "document_ids", "positions")))
        loss = ops.sum(cross_entropy(logits, features["labels"]) * features["token_weights"])
        columns = [
            features["example_index"],
            ops.count_nonzero(features["token_ids"], axis=1),
            logits[:, 0, 7],
            features["example_weight"],
        ]
        outputs = ops.stack([ops.cast(column, "float32") for column in columns], axis=1)
        return Sums({"masked_language_model": loss}, dict.fromkeys(self.metric_names, loss), outputs)

    def output_metrics(self, outputs):
        seen.append(outputs)
        return {"mean_tokens": float(outputs[outputs[:, 3] > 0, 1].mean())}

    def report(self, metrics):
        return super().report(metrics) | {"twice": 2 * metrics["mean_tokens"]}


seen = []  # what tasks were given


def counting_task():
    task = small_task()
    return CountingTask(task.data, task.encoder, task.masking)


def held_out():
    """Returns all examples in the order of the data, with padding."""
    examples = random_examples(0, GLOBAL_BATCH * NUM_STEPS)
    examples["example_weight"] = (np.arange(GLOBAL_BATCH * NUM_STEPS) < NUM_EXAMPLES).astype(np.float32)
    return examples


def evaluate(strategy, accumulation, compile_step=False):
    """Evaluates as a run does; returns the metrics, and the outputs that the task was given."""
    task, replicas = counting_task(), strategy.num_replicas_in_sync
    batch = divide_batch(GLOBAL_BATCH, replicas, GLOBAL_BATCH // replicas // accumulation, 1)
    with strategy.scope():
        model = task.build_model(seed=4, dtype="float32")

    def of_host(context):
        # As `trainer.data.evaluation_rows`: each host has a contiguous part, an element of it for each replica in turn.
        host, num_hosts = context.input_pipeline_id, context.num_input_pipelines
        part = {name: np.split(column, num_hosts)[host] for name, column in held_out().items()}
        return tf.data.Dataset.from_tensor_slices(part).batch(batch.rows_per_replica, drop_remainder=True).repeat()

    evaluation = EvaluationStep(strategy, task, model, batch, compile_step=compile_step)
    metrics = evaluation.metrics(iter(strategy.distribute_datasets_from_function(of_host)), NUM_STEPS)
    return metrics, seen.pop()


@pytest.fixture(scope="module")
def whole():
    """On one device, a global batch at a time."""
    return evaluate(strategy_of(1), 1, compile_step=True)


def test_outputs_are_those_of_every_example_in_order(whole):
    metrics, outputs = whole
    examples = held_out()
    assert outputs.shape == (GLOBAL_BATCH * NUM_STEPS, 4) and outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs[:, 0], np.arange(GLOBAL_BATCH * NUM_STEPS))
    np.testing.assert_array_equal(outputs[:, 1], np.count_nonzero(examples["token_ids"], axis=1))
    np.testing.assert_array_equal(outputs[:, 3], examples["example_weight"])
    mean = np.count_nonzero(examples["token_ids"][:NUM_EXAMPLES], axis=1).mean()
    assert metrics["mean_tokens"] == pytest.approx(mean)
    assert metrics["twice"] == pytest.approx(2 * mean)  # `report` sees them


TOPOLOGIES = {"4 microbatches": (1, 4), "2 replicas, 2 microbatches": (2, 2), "4 replicas": (4, 1)}


@pytest.mark.parametrize(
    "compile_step",
    # Everything is compiled once per replica.
    [pytest.param(True, id="xla", marks=pytest.mark.slow), pytest.param(False, id="no xla")],
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_outputs_do_not_depend_on_topology(whole, topology, compile_step):
    replicas, accumulation = TOPOLOGIES[topology]
    metrics, outputs = evaluate(strategy_of(replicas), accumulation, compile_step)
    np.testing.assert_array_equal(outputs[:, [0, 1, 3]], whole[1][:, [0, 1, 3]])
    np.testing.assert_allclose(outputs[:, 2], whole[1][:, 2], rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(whole[0], rel=1e-5)


@pytest.mark.slow  # starts two processes
def test_every_process_has_the_outputs_of_all(whole, tmp_path):
    from end_to_end.trainer_process import ROOT, Process

    sockets = reserve_ports(2)
    cluster = {"worker": [f"127.0.0.1:{socket.getsockname()[1]}" for socket in sockets]}
    with contextlib.ExitStack() as stack:
        for socket in sockets:
            stack.enter_context(socket)
        processes = [
            stack.enter_context(
                Process(
                    __file__,
                    str(tmp_path / f"{index}.npz"),
                    TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
                    TF_GRPC_REUSE_PORT="true",
                    PYTHONPATH=os.pathsep.join([ROOT, os.path.join(ROOT, "tests")]),
                )
            )
            for index in range(2)
        ]
        for finished in [process.finish() for process in processes]:
            assert finished.code == 0, finished.text
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as content:
            outputs = content["outputs"]
            np.testing.assert_array_equal(outputs[:, [0, 1, 3]], whole[1][:, [0, 1, 3]])
            np.testing.assert_allclose(outputs[:, 2], whole[1][:, 2], rtol=1e-5, atol=1e-6)
            assert content["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)


if __name__ == "__main__":  # one of the two processes
    found, found_outputs = evaluate(tf.distribute.MultiWorkerMirroredStrategy(), 2)
    np.savez(pathlib.Path(sys.argv[1]), outputs=found_outputs, loss=found["loss"])
