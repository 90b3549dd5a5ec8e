"""Settings for all tests: quiet TensorFlow, kept compilations, four logical CPU devices."""

import contextlib
import os
import sys

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
