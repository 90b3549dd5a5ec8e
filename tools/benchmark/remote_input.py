"""`input`: rows per second from a local disk, from a bucket whose every answer takes a while, and with the cache."""

import contextlib
import importlib
import os
import sys
import tempfile

from tools.benchmark import processes
from tools.benchmark.rounds import median, ratios, spread
from tools.benchmark.tables import Findings

_BATCH = 256
_LATENCY_SECONDS = 0.03
_NUM_SHARDS = 8  # as many as `write_data_set` makes
_MEANINGS = {
    "disk": "local disk",
    "bucket": "bucket, as fast as it answers",
    "distant": f"bucket, {1000 * _LATENCY_SECONDS:.0f} ms a request",
    "cached": "bucket, shards in the cache",
}
_NOTE = (
    "the reader has half of the processors, wherever it reads; the other half has the bucket, an emulator behind a proxy "
    "that ends TLS. `bucket` against `disk` is what TensorFlow's client takes of a processor, `distant` against `bucket` is "
    "the latency; the disk's files lie in the system's cache of it"
)


def measure(settings, report):
    """Lets the places take turns.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    try:
        emulated = _emulator()
    except ImportError as error:
        reason = f"no emulator: it lies in the repository's tests/gcs and needs `pip install '.[test]'` ({error})"
        return Findings(f"Input: not measured, {reason}", (), (), (), {"absent": reason})
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bert-trainer-benchmark-"))
        local, scratch = os.path.join(folder, "data"), os.path.join(folder, "emulator")
        os.mkdir(scratch)
        row_bytes = 2 * settings.length + 56  # of an encoded row, about
        rows = _NUM_SHARDS * (settings.input_shard_megabytes << 20) // row_bytes
        report(f"writing {rows:,} rows")
        sizes = {"rows": rows, "length": settings.length, "vocabulary_size": settings.vocabulary_size}
        with processes.worker("synthetic_data", {"folder": local, **sizes}):
            """It has written them when it answers."""
        own, others = _halves_of_processors()
        with _running_on(others):
            emulator = stack.enter_context(emulated(scratch))
        stack.enter_context(_running_on(own))
        bucket = emulator.bucket("benchmark")
        for name in sorted(os.listdir(local)):
            with open(os.path.join(local, name), "rb") as file:
                emulator.put(f"{bucket}/data/{name}", file.read())
        variables = emulator.environment
        places = {
            "disk": (local, None, {}),
            "bucket": (f"{bucket}/data", None, variables),
            "distant": (f"{bucket}/data", None, variables),
            "cached": (f"{bucket}/data", os.path.join(folder, "cache"), variables),
        }
        workers = {
            name: stack.enter_context(_worker(settings, *where)) for name, where in places.items() if name != "distant"
        }
        workers["distant"] = workers["bucket"]
        report(f"{settings.rounds} rounds of {len(places)} places")
        rates = {name: [] for name in places}
        for _ in range(settings.rounds):
            for name in places:
                emulator.latency = _LATENCY_SECONDS if name == "distant" else 0.0
                answer = workers[name].ask("run", seconds=settings.round_seconds / 2)
                rates[name].append(answer["rows_per_second"])
    return summarize(settings, rates, rows)


def _halves_of_processors():
    """Returns two sets of processors; two empty ones where there is but one, or where none can be chosen."""
    if not hasattr(os, "sched_setaffinity"):
        return set(), set()
    processors = sorted(os.sched_getaffinity(0))
    half = len(processors) // 2
    return (set(processors[:half]), set(processors[half:])) if half else (set(), set())


@contextlib.contextmanager
def _running_on(processors):
    """Has processes that are started meanwhile run on these processors alone, if there are any."""
    if not processors:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _emulator():
    """Returns the context manager of the tests that runs a bucket on this machine."""
    tests = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "tests")
    sys.path.append(tests)
    try:
        for needed in ("gcp_storage_emulator", "trustme"):
            importlib.import_module(needed)
        from gcs.emulator import gcs_emulator
    finally:
        sys.path.remove(tests)
    return gcs_emulator


def _worker(settings, folder, cache, variables):
    own = settings.for_process(folder=folder, cache=cache, reader_batch=_BATCH)
    return processes.worker("source", own, variables)


def summarize(settings, rates, num_rows):
    """Turns rates into findings.

    Args:
        settings: `Settings`.
        rates: `{place: [rows per second of each round]}`.
        num_rows: rows of the data set.
    """
    rows, against_disk = [], {}
    for name, each in rates.items():
        against_disk[name] = ratios(each, rates["disk"])
        low, middle, high = spread(against_disk[name])
        rows.append((_MEANINGS[name], f"{median(each):,.0f}", f"{middle:.2f}x", f"{low:.2f} to {high:.2f}"))
    title = f"Input: {num_rows:,} rows of {settings.length} ids, elements of {_BATCH} rows"
    numbers = {"rows_per_second": rates, "against_disk": against_disk}
    return Findings(title, ("place", "rows/s", "against disk", "per round"), tuple(rows), (_NOTE,), numbers)
