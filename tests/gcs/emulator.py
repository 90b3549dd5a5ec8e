"""Google Cloud Storage on this machine, for TensorFlow's own gs:// client and for Google's Python client, with faults.

    with gcs_emulator(folder) as emulator:
        bucket = emulator.bucket("name")                           # "gs://name"
        emulator.faults.add(f"read {bucket}/*", "status", status=503, times=2)
        subprocess.run(command, env=os.environ | emulator.environment)
        emulator.requests.counts(by="operation")                   # {"read": Count(requests=3, ...), ...}

The service is a process of its own (`gcs_proxy.py` says why); `faults` and `requests` (`gcs_faults.py` describes both) are
called there. TensorFlow looks for proxy, certificate and token at every request, so that it can be pointed here at any time,
but reads GCS_* when it is imported.
"""

import contextlib
import json
import multiprocessing
import os
import secrets
import subprocess
import sys
import threading
from multiprocessing.managers import BaseManager


class _Control(BaseManager):
    pass


for _name in ("service", "faults", "requests"):
    _Control.register(_name)


def _environment(port, ca_path):
    address = f"http://127.0.0.1:{port}"
    nobody = "127.0.0.1,localhost"
    return {
        # Read by TensorFlow's client at every request.
        "https_proxy": address,
        "HTTPS_PROXY": address,
        "no_proxy": nobody,
        "NO_PROXY": nobody,
        "CURL_CA_BUNDLE": ca_path,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a-token",  # kept for ever after the first request
        "NO_GCE_CHECK": "true",
        # Read when TensorFlow is imported. Without an initial delay there is no jitter of up to a second either.
        "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "0",
        "GCS_RETRY_CONFIG_MAX_RETRIES": "5",
        "GCS_REQUEST_IDLE_TIMEOUT_SECS": "10",
        "GCS_READ_CACHE_BLOCK_SIZE_MB": "1",
        "GCS_READ_CACHE_MAX_SIZE_MB": "0",
        "GCS_STAT_CACHE_MAX_AGE": "0",
        "GCS_MATCHING_PATHS_CACHE_MAX_AGE": "0",
        # Read by Google's Python client when a client is made.
        "STORAGE_EMULATOR_HOST": address,
        # Read at every request: no requests of its own, by a thread, for metadata of buckets.
        "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
    }


def _split(path):
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


class Emulator:
    """The service and what a test can do with it.

    Attributes:
        environment: dict of environment variables with which TensorFlow and Google's Python client come here.
        faults: `gcs_faults.Faults`.
        requests: `gcs_faults.Requests`, the log of requests.
        latency: seconds that every request takes longer.
    """

    def __init__(self, control, environment):
        self.environment = environment
        self.faults = control.faults()
        self.requests = control.requests()
        self._service = control.service()
        self._latency = 0.0

    @property
    def latency(self):
        return self._latency

    @latency.setter
    def latency(self, seconds):
        self._latency = seconds
        self.faults.set_latency(seconds)

    def reset(self):
        """Ends faults and latency and forgets the requests; the objects stay."""
        self._latency = 0.0
        self.faults.clear()
        self.requests.clear()

    # Past network, faults and log.

    def bucket(self, name, location="US"):
        """Creates a bucket; returns its `gs://` path."""
        name = _split(name)[0]
        self._service.create_bucket(name, location)
        return f"gs://{name}"

    def put(self, path, content):
        """Stores bytes under a `gs://` path; returns the object's metadata, as the service gives it."""
        return self._service.put(*_split(path), content)

    def get(self, path):
        """Returns the bytes under a `gs://` path, None if there is no such object."""
        return self._service.get(*_split(path))

    def describe(self, path):
        """Returns the metadata of the object under a `gs://` path, None if there is none."""
        return self._service.describe(*_split(path))

    def list(self, bucket, prefix=""):
        """Returns the sorted names of the objects in a bucket (`gs://name`) that begin with `prefix`."""
        return self._service.names(_split(bucket)[0], prefix)

    def delete(self, path):
        """Removes the object under a `gs://` path; returns whether there was one."""
        return self._service.delete(*_split(path))


@contextlib.contextmanager
def gcs_emulator(folder):
    """Runs the service while the context lasts; its process also ends with the one that called this.

    Args:
        folder: where the certificate and what the process says are put.

    Yields:
        `Emulator`.
    """
    folder = os.path.abspath(folder)
    key = secrets.token_bytes(16)
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gcs_proxy.py")
    with open(os.path.join(folder, "emulator.log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, program, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which end it
        )
    with process:
        try:
            process.stdin.write(key.hex() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                with open(log.name, encoding="utf-8") as file:
                    raise RuntimeError(f"the emulator did not start:\n{file.read()}")
            ports = json.loads(line)
            control = _Control(("127.0.0.1", ports["control"]), key)
            control.connect()
            yield Emulator(control, _environment(ports["proxy"], os.path.join(folder, "ca.pem")))
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def end_with_parent():
    """Has this process, a child that `multiprocessing` started, end when its parent is gone, in whatever way."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
