"""The run's files in a store that is reached through TensorFlow only: its in-memory file system stands for `gs://`."""

import io
import threading
import uuid

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from trainer import storage
from trainer.errors import InputError
from trainer.training.checkpoints import CheckpointManager
from trainer.training.run_directory import RunDirectory, read_metrics
from trainer.training.run_lock import RunLock, StoredRecord
from trainer.training.telemetry import Telemetry
from trainer.training.watchdog import Watchdog


@pytest.fixture
def remote():
    path = f"ram://{uuid.uuid4().hex}/run"
    assert storage.is_remote(path)
    return path


def test_checkpoints_are_saved_verified_kept_and_restored(remote):
    variable = tf.Variable(tf.zeros([1000]))
    manager = CheckpointManager(remote, {"weights": variable}, keep_last=2)
    for step in (10, 20, 30):
        variable.assign(tf.fill([1000], float(step)))
        manager.save(step)
    manager.wait()
    assert manager.steps() == [20, 30]
    path = storage.join(manager.path(30), "weights.data-00000-of-00001")
    storage.write_bytes(path, storage.read_bytes(path)[:-1] + b"\xff")
    reports = []
    manager = CheckpointManager(remote, {"weights": variable}, report=reports.append)
    assert manager.restore_latest() == 20
    np.testing.assert_array_equal(variable.numpy(), np.full(1000, 20.0, np.float32))
    assert "weights.data" in reports[0]


def test_metrics_are_uploaded_on_flush_and_continued_by_the_next_life(remote):
    run = RunDirectory(remote)
    run.append_metrics([{"step": 1, "kind": "train", "loss": 1.5}])
    run.flush()
    assert [r["step"] for r in read_metrics(remote)] == [1]
    run.append_metrics([{"step": 2, "kind": "train", "loss": 1.25}])
    run.close()
    run = RunDirectory(remote)
    run.append_metrics([{"step": 3, "kind": "train", "loss": 1.0}])
    run.write_status("finished", 3, 3)
    run.close()
    assert [r["loss"] for r in read_metrics(remote)] == [1.5, 1.25, 1.0]
    assert storage.read_json(run.status_path)["state"] == "finished"


def test_event_files_are_uploaded_whole(remote):
    screen = Console(file=io.StringIO())
    telemetry = Telemetry(RunDirectory(remote), total_steps=10, batch=2, console=screen)
    telemetry.start(0, config_text="steps = 10")
    telemetry.train([{"step": 1, "loss": 1.0}], seconds=1.0)
    telemetry.close()
    (name,) = storage.listing(storage.join(remote, "tensorboard"))
    records = tf.data.TFRecordDataset(storage.join(remote, "tensorboard", name)).as_numpy_iterator()
    steps = [tf.compat.v1.Event.FromString(record).step for record in records]
    assert steps == [0, 1, 0, 1]  # file version, start of a session, config, scalars
    assert "warning" not in screen.file.getvalue()


def test_stacks_are_copied_there(remote):
    told = threading.Event()
    with Watchdog(0.1, remote, report=lambda message: told.set()):
        assert told.wait(60)
    assert all("Thread" in storage.read_text(storage.join(remote, name)) for name in storage.listing(remote))
    assert storage.listing(remote)


def test_the_lock_refuses_a_second_job_and_is_released(remote):
    storage.make_folder(remote)
    path = storage.join(remote, "run.lock")
    make = lambda: RunLock(path, heartbeat_seconds=0.05, store=StoredRecord(path, settle_seconds=0.01))
    with make(), pytest.raises(InputError, match="in use"):
        make().acquire()
    assert not storage.exists(path)
