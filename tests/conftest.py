"""What all tests share: quiet TensorFlow, kept compilations, four logical CPU devices, and buckets."""

import contextlib
import os
import sys
import uuid

import pytest

from trainer.environment import import_tensorflow_quietly

# Before TensorFlow is imported anywhere. Compiled programs are kept between test runs, which saves minutes.
import_tensorflow_quietly(os.environ)
sys.path.insert(0, os.path.dirname(__file__))

LOGICAL_DEVICES = 4


@pytest.fixture(scope="session", autouse=True)
def logical_devices():
    """Four logical CPU devices, on which strategies of one, two or four replicas run in this process."""
    import tensorflow as tf

    physical = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # a test module did so when it was imported
        tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * LOGICAL_DEVICES)
    return tf.config.list_logical_devices("CPU")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Google Cloud Storage on this machine, one service a pytest worker; clients reach it in tests that use `bucket`."""
    from gcs.emulator import gcs_emulator

    with gcs_emulator(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture
def bucket(emulator, monkeypatch):
    """The `gs://` path of a new, empty bucket, without faults or latency, that clients of this process reach."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    emulator.reset()
    path = emulator.bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    yield path
    emulator.reset()
    for name in emulator.list(path):  # they are in memory
        emulator.delete(f"{path}/{name}")
