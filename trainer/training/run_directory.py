"""The run directory: where each file of a run lies, and the status and metrics that other programs read."""

import contextlib
import datetime
import json
import math
import os
import shutil
import socket
import tempfile
import time

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed

# What measures the machine rather than the model: the keys in which two equal runs may differ.
MEASURED_KEYS = frozenset(
    {
        "examples_per_second",
        "tokens_per_second",
        "step_seconds",
        "evaluation_seconds",
        "input_wait_share",
        "memory_bytes",
        "seconds",
    }
)

_WARN_EVERY_SECONDS = 600.0
# Every upload to an object store sends the whole file again.
_UPLOAD_EVERY_SECONDS = 300.0
# Lines kept in memory while the storage refuses them: about a day of logging every second.
_MAX_PENDING_LINES = 100_000
_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)


class RunDirectory:
    """The folder of one run, local or `gs://`.

    Only the chief writes the shared files; every host may ask for paths. A storage error in the status or the metrics
    warns once in a while and never stops training; metrics that could not be written are kept and tried again.

    Args:
        path: the folder; made if it is not there.
        is_chief: whether this process writes status and metrics.
        report: callable that shows one line to a person.

    Raises:
        StorageFailed: if the folder cannot be made.
    """

    def __init__(self, path, is_chief=True, report=print):
        self.path = str(path)
        self.is_chief = is_chief
        self._report = report
        self._pending = []
        self._descriptor = None
        self._good_bytes = 0
        self._staging = None
        self._uploaded_at = time.monotonic()
        self._upload_due = False
        self._warned_at = {}
        try:
            storage.make_folder(self.path)
        except (OSError, tf.errors.OpError) as error:
            raise StorageFailed(f"cannot make the run directory {self.path}: {_reason(error)}") from error

    @property
    def config_path(self):
        """The resolved configuration."""
        return storage.join(self.path, "config.gin")

    @property
    def metrics_path(self):
        """One JSON object a line for every logged step."""
        return storage.join(self.path, "metrics.jsonl")

    @property
    def status_path(self):
        """What the run is doing, for launchers."""
        return storage.join(self.path, "status.json")

    @property
    def best_path(self):
        """Which checkpoint is the best, in a run that looks for it."""
        return storage.join(self.path, "best.json")

    @property
    def lock_path(self):
        """The lock that refuses a second job."""
        return storage.join(self.path, "run.lock")

    @property
    def checkpoints_path(self):
        """Folder of the checkpoints."""
        return storage.join(self.path, "checkpoints")

    @property
    def tensorboard_path(self):
        """Folder of the TensorBoard event files."""
        return storage.join(self.path, "tensorboard")

    @property
    def data_path(self):
        """Folder of data prepared by the run itself."""
        return storage.join(self.path, "data")

    def write_status(self, state, step, total, last_error=None, seconds_per_step=None):
        """Writes `status.json` atomically; the caller decides how often.

        Args:
            state: a word such as `training`, `saving`, `preempted`, `finished` or `failed`.
            step: optimizer steps done.
            total: optimizer steps in the whole run.
            last_error: message of the last error, or None.
            seconds_per_step: of training alone, without compilation, evaluation and saving; None if not known.

        Returns:
            Whether it was written.
        """
        if not self.is_chief:
            return False
        status = {
            "state": state,
            "step": int(step),
            "total": int(total),
            "updated_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "last_error": None if last_error is None else str(last_error),
            "seconds_per_step": seconds_per_step,
        }
        try:
            storage.write_json(self.status_path, status)
        except _STORAGE_ERRORS as error:
            self._warn("status", f"cannot write {self.status_path}: {_reason(error)}; training goes on")
            return False
        return True

    def append_metrics(self, records):
        """Appends records to `metrics.jsonl`; on a mounted file system they are there when the call returns.

        Args:
            records: list of dicts of numbers, each with `step` and `kind`; NumPy scalars and eager tensors are fine.
        """
        if not self.is_chief:
            return
        self._pending += [encode_record(record) for record in records]
        try:
            self._write_pending()
        except _STORAGE_ERRORS as error:
            del self._pending[:-_MAX_PENDING_LINES]
            self._warn(
                "metrics",
                f"cannot write {self.metrics_path}: {_reason(error)}; training goes on, "
                f"{len(self._pending):,} lines wait in memory",
            )
        if self._upload_due and time.monotonic() - self._uploaded_at > _UPLOAD_EVERY_SECONDS:
            self._upload()

    def flush(self):
        """Brings the metrics to durable storage; call it before a checkpoint that builds on them."""
        if not self.is_chief:
            return
        self.append_metrics([])
        if self._upload_due:
            self._upload()
        elif self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def close(self):
        """Writes what is pending and closes the files."""
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._staging is not None and not self._upload_due:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None

    def _write_pending(self):
        if not self._pending:
            return
        self._open_metrics()
        content = memoryview(b"".join(self._pending))
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:
            # Take back a line of which only a part went in, so that the file always ends with a whole one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._good_bytes)
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self._good_bytes = os.fstat(self._descriptor).st_size
        self._pending.clear()
        self._upload_due = storage.is_remote(self.path)

    def _open_metrics(self):
        if self._descriptor is not None:
            return
        path = self.metrics_path
        if storage.is_remote(path):
            path = self._stage()
        repair_last_line(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._good_bytes = os.fstat(self._descriptor).st_size

    def _stage(self):
        """Returns the local file that stands for `metrics.jsonl` of an object store, which cannot append."""
        if self._staging is None:
            content = storage.read_bytes(self.metrics_path) if storage.exists(self.metrics_path) else b""
            self._staging = tempfile.mkdtemp(prefix="bert-trainer-metrics-")
            with open(os.path.join(self._staging, "metrics.jsonl"), "wb") as file:
                file.write(content)
        return os.path.join(self._staging, "metrics.jsonl")

    def _upload(self):
        self._uploaded_at = time.monotonic()
        try:
            with open(self._stage(), "rb") as file:
                storage.write_bytes(self.metrics_path, file.read())
            self._upload_due = False
        except _STORAGE_ERRORS as error:
            self._warn("upload", f"cannot write {self.metrics_path}: {_reason(error)}; training goes on")

    def _warn(self, subject, message):
        now = time.monotonic()
        if now - self._warned_at.get(subject, -math.inf) >= _WARN_EVERY_SECONDS:
            self._warned_at[subject] = now
            self._report(f"warning: {message}")


def encode_record(record):
    """Returns one record as a line of JSON.

    Floats keep all their digits, so that equal lines mean equal bits. JSON knows no non-finite numbers: they become the
    strings `"NaN"`, `"Infinity"` and `"-Infinity"`, which `read_metrics` turns back.

    Returns:
        UTF-8 bytes that end with a newline.
    """
    plain = {key: _plain(value) for key, value in record.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _plain(value):
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist() if np.asarray(value).dtype.kind in "biuUSf" else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read_metrics(path):
    """Reads the metrics of a run that may have been killed and resumed.

    Args:
        path: a `metrics.jsonl` or the run directory that holds it.

    Returns:
        List of dicts in the order of their steps. Of several with the same `kind` and `step` the last one counts: a
        resumed run writes again the steps since its checkpoint. A torn last line is left out.

    Raises:
        InputError: if there is no such file, or a line in the middle is not JSON.
    """
    path = str(path)
    if storage.is_folder(path):
        path = storage.join(path, "metrics.jsonl")
    if not storage.exists(path):
        raise InputError(f"no metrics at {path}: name a run directory or its metrics.jsonl")
    lines = storage.read_bytes(path).split(b"\n")
    records = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_line(line)
        if record is None:
            if number == len(lines):
                continue
            raise InputError(f"{path} line {number} is not a JSON object with a step: {line[:80]!r}. Remove that line.")
        key = (record["step"], record.get("kind", "train") != "train", record.get("kind", "train"))
        records[key] = {name: _NON_FINITE.get(v, v) if isinstance(v, str) else v for name, v in record.items()}
    return [records[key] for key in sorted(records)]


def _parse_line(line):
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def repair_last_line(path):
    """Makes a local file of lines end with a whole one: a kill or a full disk can leave a part of the last.

    A complete record that lacks only its newline gets it; anything else after the last newline is cut off.
    """
    if not os.path.exists(path) or not os.path.isfile(path):
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        start = end
        while start > 0 and b"\n" not in tail:
            piece = min(start, 1 << 16)
            start -= piece
            file.seek(start)
            tail = file.read(piece) + tail
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return
        if _parse_line(tail) is not None:
            file.seek(end)
            file.write(b"\n")
        else:
            file.truncate(end - len(tail))


def _reason(error):
    return getattr(error, "message", None) or str(error)
