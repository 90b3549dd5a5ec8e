"""What must be in place before TensorFlow is imported, and importing it without its chatter."""

import contextlib
import hashlib
import importlib
import os
import platform
import re
from importlib import metadata

_CACHED_PROGRAMS = 1000  # of half a megabyte to some megabytes each


def _processor_features():
    """Returns the line in which the system lists what the processor can do."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _tensorflow_version():
    for package in ("tensorflow", "tensorflow-cpu", "tensorflow-tpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def compilation_cache_folder(environment):
    """Returns where compiled programs are kept between runs: one folder a TensorFlow version, processor and XLA_FLAGS."""
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    compiled_for = _processor_features() + environment.get("XLA_FLAGS", "")
    key = hashlib.sha256(compiled_for.encode()).hexdigest()[:12]
    return os.path.join(cache, "bert-trainer", "xla", f"tensorflow-{_tensorflow_version()}-{key}")


def _forget_oldest(folder):
    """Removes the files that were written first from a cache that grows with every program."""
    if len(os.listdir(folder)) <= _CACHED_PROGRAMS:
        return
    with contextlib.suppress(OSError):  # another process may do the same
        files = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in files[_CACHED_PROGRAMS:]:
            os.unlink(entry.path)


_JOIN_LOOPS = "xla_cpu_use_multi_output_fusion"
_JOINS_LOOPS_SINCE = (2, 21)  # of TensorFlow; older ones take the option for an unknown one and say nothing


def prefer_fast_programs(environment):
    """Has XLA make faster programs for the CPU than it would by itself.

    Vectors have 512 bits where there are any, instead of 256; loops over the same inputs become one, which reads them
    once (see `Optimizer.update`).

    Args:
        environment: `os.environ`, changed in place unless the person has chosen.
    """
    flags = environment.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("--"):
        return  # it names a file
    if "xla_cpu_prefer_vector_width" not in flags and "avx512f" in _processor_features().split():
        flags += " --xla_cpu_prefer_vector_width=512"
    joins = tuple(map(int, re.findall(r"\d+", _tensorflow_version())[:2])) >= _JOINS_LOOPS_SINCE
    if joins and "xla_backend_extra_options" not in flags:
        flags += f" --xla_backend_extra_options={_JOIN_LOOPS}"
    environment["XLA_FLAGS"] = flags.strip()


def joins_loops(environment):
    """Returns whether XLA was told to join loops over the same inputs on the CPU."""
    return _JOIN_LOOPS in environment.get("XLA_FLAGS", "")


# TensorFlow's client of Google Cloud Storage. Every open file costs a block of memory and of traffic, and rows are read in
# runs of about a megabyte; what other jobs write must be seen; 10 tries with pauses of up to 32 s last three minutes.
GOOGLE_CLOUD_SETTINGS = {
    "GCS_READ_CACHE_BLOCK_SIZE_MB": "1",
    "GCS_READ_CACHE_MAX_SIZE_MB": "0",
    "GCS_STAT_CACHE_MAX_AGE": "0",
    "GCS_MATCHING_PATHS_CACHE_MAX_AGE": "0",
    "GCS_REQUEST_CONNECTION_TIMEOUT_SECS": "30",
    "GCS_REQUEST_IDLE_TIMEOUT_SECS": "30",
    "GCS_METADATA_REQUEST_TIMEOUT_SECS": "60",
    "GCS_READ_REQUEST_TIMEOUT_SECS": "60",
    "GCS_RETRY_CONFIG_MAX_RETRIES": "10",
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",  # else Google's client asks about each bucket besides
}


def prepare_environment(environment):
    """Sets what TensorFlow should find, unless the person has set it: fast, few log lines, compiled programs kept.

    Args:
        environment: `os.environ`, changed in place.
    """
    environment.setdefault("KERAS_BACKEND", "tensorflow")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    for name, value in GOOGLE_CLOUD_SETTINGS.items():
        environment.setdefault(name, value)
    prefer_fast_programs(environment)
    flags = environment.get("TF_XLA_FLAGS", "")
    if "persistent_cache" not in flags:
        folder = compilation_cache_folder(environment)
        try:
            os.makedirs(folder, exist_ok=True)
            _forget_oldest(folder)
        except OSError:
            return  # a home that cannot be written to: compile every time
        own = f"--tf_xla_persistent_cache_directory={folder}"
        environment["TF_XLA_FLAGS"] = f"{flags} {own}".strip()


def import_tensorflow_quietly(environment):
    """Imports TensorFlow without the lines it logs before it can be told not to.

    Args:
        environment: `os.environ`; nothing is hidden if TF_CPP_MIN_LOG_LEVEL asks for more than errors.
    """
    prepare_environment(environment)
    if environment["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        importlib.import_module("tensorflow")
        importlib.import_module("tensorflow_text")
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
