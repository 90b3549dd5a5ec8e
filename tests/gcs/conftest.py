"""A process of its own for what TensorFlow does when Google Cloud Storage fails."""

import concurrent.futures
import multiprocessing

import pytest
from gcs.emulator import end_with_parent


@pytest.fixture(scope="session")
def impatient_process(emulator):
    """A pool of one process whose TensorFlow tries again at once, three times, and waits a second for a byte.

    TensorFlow reads these settings when it is imported, so that this process keeps those that it started with.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        patch.setenv("GCS_RETRY_CONFIG_MAX_RETRIES", "3")
        patch.setenv("GCS_REQUEST_IDLE_TIMEOUT_SECS", "1")
        pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
        pool.submit(int).result()
    with pool:
        yield pool
