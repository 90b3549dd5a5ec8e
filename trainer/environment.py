"""What must be in place before TensorFlow is imported, and importing it without its chatter."""

import contextlib
import hashlib
import importlib
import os
import platform
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


def prefer_wide_vectors(environment):
    """Has XLA use vectors of 512 bits on the CPU where there are any: it would use 256, which is slower.

    Args:
        environment: `os.environ`, changed in place unless the person has chosen.
    """
    flags = environment.get("XLA_FLAGS", "").strip()
    chosen = "xla_cpu_prefer_vector_width" in flags or (flags and not flags.startswith("--"))  # the latter names a file
    if not chosen and "avx512f" in _processor_features().split():
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()


def prepare_environment(environment):
    """Sets what TensorFlow should find, unless the person has set it: fast, few log lines, compiled programs kept.

    Args:
        environment: `os.environ`, changed in place.
    """
    environment.setdefault("KERAS_BACKEND", "tensorflow")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    prefer_wide_vectors(environment)
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
